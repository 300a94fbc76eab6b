"""API key, request id, access log and connection limit apply on both transports."""

import logging
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from opentelemetry.trace import INVALID_SPAN_CONTEXT
from pydantic import SecretStr

from loadtest.server import running_service
from service.observability.logs import AccessLog
from service.observability.records import Exchange
from service.protocol.errors import UnauthorizedError
from service.settings import Settings
from service.transport.gate import RequestGate
from service.web.pages import PAGE_PATHS
from tests.tiny import SERVED_BUNDLES

URL = "/v2/models/cnn/infer"
RAW = {"inference-header-content-length": "0"}
KEY = "a key of moderate length"
CONNECTIONS = 20


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of the guarded service."""
    return tmp_path_factory.mktemp("guarded") / "service.log"


@pytest.fixture(scope="module")
def guarded_url(log_file: Path) -> Iterator[str]:
    """The real service with a key, a complete access log and few connections."""
    settings = {
        "INFERENCE_BUNDLES": str(SERVED_BUNDLES),
        "INFERENCE_API_KEY": KEY,
        "INFERENCE_ACCESS_LOG_SHARE": "1",
        "INFERENCE_MAX_CONNECTIONS": str(CONNECTIONS),
        "INFERENCE_ANSWER_HEADERS": "false",
    }
    with running_service(log_file, settings=settings) as url:
        yield url


@pytest.mark.parametrize(
    "headers",
    [{"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}, {"AUTHORIZATION": f"bearer  {KEY}"}],
)
def test_who_brings_the_key_is_answered(headers: dict[str, str], guarded_url: str) -> None:
    """Either header is accepted on both transports."""
    for path in (URL, "/predict/image?model=nobody", "/metrics"):
        method = "GET" if path == "/metrics" else "POST"
        answer = httpx.request(
            method, guarded_url + path, content=bytes(784), headers=RAW | headers
        )
        assert answer.status_code in (200, 404), path


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({}, "the API key is missing"),
        ({"x-api-key": ""}, "the API key is missing"),
        ({"x-api-key": KEY[:-1]}, "the API key is wrong"),
        ({"authorization": f"Basic {KEY}"}, "the API key is missing"),
        ({"authorization": f"Bearer {KEY}x"}, "the API key is wrong"),
        ({"x-api-key": "\xff" * 16}, "the API key is wrong"),
    ],
)
@pytest.mark.parametrize(
    "path", [URL, "/predict", "/models", "/metrics", "/docs.json", "/page", "/no"]
)
def test_who_does_not_is_refused(
    path: str, headers: dict[str, str], named: str, guarded_url: str
) -> None:
    """Without the key, any request gets 401 with instructions that do not show the key."""
    method = "POST" if path in (URL, "/predict") else "GET"
    sent = [(name.encode(), value.encode("latin-1")) for name, value in (RAW | headers).items()]
    answer = httpx.request(method, guarded_url + path, content=b"x", headers=sent)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert named in answer.json()["error"]
    assert "Authorization: Bearer" in answer.json()["error"]
    assert KEY not in answer.text


def test_refusals_at_the_door_are_counted(guarded_url: str) -> None:
    """A missing key on either transport and one connection too many are counted."""
    counted = [
        'inference_refused_requests_total{kind="unauthorized",status="401"}',
        'inference_refused_requests_total{kind="too_many_connections",status="503"}',
    ]

    def read() -> list[float]:
        text = httpx.get(guarded_url + "/metrics", headers={"x-api-key": KEY}).text
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines())
        return [float(lines[name]) for name in counted]

    before = read()
    for path in (URL, "/models"):
        assert httpx.post(guarded_url + path, content=bytes(784), headers=RAW).status_code == 401
    host, port = guarded_url.removeprefix("http://").split(":")
    held = [socket.create_connection((host, int(port)), timeout=20) for _ in range(CONNECTIONS)]
    with socket.create_connection((host, int(port)), timeout=20) as further:
        assert further.recv(65536).startswith(b"HTTP/1.1 503 ")
    for connection in held:
        connection.close()
    assert [now - then for now, then in zip(read(), before, strict=True)] == [2, 1]


def test_health_needs_no_key(guarded_url: str) -> None:
    """Health endpoints need no key."""
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert httpx.get(guarded_url + path).status_code == 200, path


def test_the_page_needs_no_key_to_ask_the_person_for_it(guarded_url: str) -> None:
    """Files of the page and Swagger UI need no key, but the endpoints that they use do."""
    for path in PAGE_PATHS:
        assert httpx.get(guarded_url + path).status_code == 200, path


def test_requests_are_found_again_in_the_log(guarded_url: str, log_file: Path) -> None:
    """An answer's id is in a log line with the request, the status and the time."""
    asked = {
        "mine": ("POST", URL, RAW, 200),
        "yours": ("POST", URL, {}, 400),
        "theirs": ("GET", "/models", {}, 200),
    }
    for request_id, (method, path, further, status) in asked.items():
        headers = {"x-api-key": KEY, "x-request-id": request_id, **further}
        answer = httpx.request(method, guarded_url + path, content=bytes(784), headers=headers)
        assert (answer.status_code, answer.headers["x-request-id"]) == (status, request_id)
        line = rf'"{method} {path}" {status} \d+\.\d\d\d ms {request_id}\b'
        give_up_s = time.monotonic() + 10  # the log line is written after the answer
        while not re.search(line, log_file.read_text()) and time.monotonic() < give_up_s:
            time.sleep(0.01)
        assert re.search(line, log_file.read_text())
    assert KEY not in log_file.read_text()


def test_each_of_many_equal_requests_is_logged_with_its_path(
    guarded_url: str, log_file: Path
) -> None:
    """Five identical requests on one connection give five lines with five ids."""
    with httpx.Client(base_url=guarded_url) as client:
        answers = [
            client.post(URL, content=bytes(784), headers=RAW | {"x-api-key": KEY}) for _ in range(5)
        ]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 5
    give_up_s = time.monotonic() + 10
    missing = set(ids)
    while missing and time.monotonic() < give_up_s:
        text = log_file.read_text()
        missing = {i for i in ids if not re.search(rf'"POST {URL}" 200 \d+\.\d\d\d ms {i}\b', text)}
    assert missing == set()


def test_a_client_that_leaves_within_its_last_request_is_logged(
    guarded_url: str, log_file: Path
) -> None:
    """A body cut off after `Connection: close` is logged as 499, without a traceback."""
    host, port = guarded_url.removeprefix("http://").split(":")
    lines = ["POST /predict HTTP/1.1", "host: x", f"x-api-key: {KEY}", "x-request-id: broken-off"]
    lines += ["connection: close", "transfer-encoding: chunked", "", "2", "{}", ""]
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall("\r\n".join(lines).encode())
        time.sleep(0.3)  # the endpoint waits for the rest
    line = r'"POST /predict" 499 \d+\.\d\d\d ms broken-off\b'
    give_up_s = time.monotonic() + 10
    while not re.search(line, log_file.read_text()) and time.monotonic() < give_up_s:
        time.sleep(0.01)
    assert re.search(line, log_file.read_text())
    assert "Traceback" not in log_file.read_text()


def test_an_id_is_given_to_who_brings_none(guarded_url: str) -> None:
    """Requests without an id get distinct ids, and an id of thousands of bytes is replaced."""
    ids = {
        httpx.post(guarded_url + URL, content=bytes(784), headers=headers).headers["x-request-id"]
        for headers in (RAW, RAW | {"x-request-id": "y" * 3000}, RAW | {"x-api-key": KEY})
    }
    assert len(ids) == 3
    assert all(0 < len(request_id) < 40 for request_id in ids)


def test_the_headers_of_answers_can_be_turned_off(service_url: str, guarded_url: str) -> None:
    """Headers with model, batch and timing are sent unless the setting disables them."""
    headers = RAW | {"x-api-key": KEY}
    said, unsaid = (
        httpx.post(url + URL, content=bytes(784 * 5), headers=headers).headers
        for url in (service_url, guarded_url)
    )
    assert said["x-model"] == "cnn"
    assert said["x-model-variant"] == "onnx"
    assert said["x-provider"] == "CPUExecutionProvider"
    assert int(said["x-batch-size"]) >= 5
    timing = re.fullmatch(
        r"queue;dur=(\d+\.\d{3}), compute;dur=(\d+\.\d{3})", said["server-timing"]
    )
    assert timing is not None
    assert float(timing[2]) > 0
    assert set(said) - set(unsaid) == {
        *("x-model", "x-model-version", "x-model-variant", "x-provider"),
        *("x-batch-size", "server-timing"),
    }
    assert said["x-content-type-options"] == unsaid["x-content-type-options"] == "nosniff"


def test_one_connection_too_many_is_refused_in_words(guarded_url: str) -> None:
    """It gets 503, open connections stay, and closing one makes room for another."""
    host, port = guarded_url.removeprefix("http://").split(":")
    address = (host, int(port))
    held = [socket.create_connection(address, timeout=20) for _ in range(CONNECTIONS)]
    try:
        with socket.create_connection(address, timeout=20) as further:
            received = b"".join(iter(lambda: further.recv(65536), b""))
        assert received.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"retry-after: 1\r\n" in received
        assert b'{"error":"20 connections are open already; try again later"}' in received
        held[0].sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert held[0].recv(100).startswith(b"HTTP/1.1 200 ")
    finally:
        for connection in held:
            connection.close()
    for _ in range(50):
        if httpx.get(guarded_url + "/livez").status_code == 200:
            return
    raise AssertionError("no place became free")


def test_what_is_not_http_is_refused_as_everything_is(service_url: str) -> None:
    """Bytes that are not HTTP get a JSON error, and the connection is closed."""
    host, port = service_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"\x16\x03\x01 what is this\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert received.endswith(b'{"error":"Invalid HTTP request received."}')


def test_the_log_takes_the_share_that_is_set(caplog: pytest.LogCaptureFixture) -> None:
    """With a share of a tenth, 1,000 requests give a hundred lines."""
    caplog.set_level(logging.INFO, logger="bentoml.access")
    access_log = AccessLog(0.1)
    exchange = Exchange(b"id", 0, ("::1", 7), "GET", "/")
    for _ in range(1000):
        access_log.log(exchange, 200, 0.001, INVALID_SPAN_CONTEXT)
    assert len(caplog.records) in (99, 100)  # a tenth is not exact in binary
    assert caplog.records[0].getMessage() == '::1:7 "GET /" 200 1.000 ms id'


def test_the_key_is_compared_whole() -> None:
    """Neither a prefix of the key nor anything longer is accepted."""
    gate = RequestGate(Settings(api_key=SecretStr(KEY)))
    gate.check_key([(b"x-api-key", KEY.encode())])
    for wrong in (KEY[:-1], KEY + "x", KEY.upper(), ""):
        with pytest.raises(UnauthorizedError):
            gate.check_key([(b"x-api-key", wrong.encode())])


def test_tls_is_served_by_bentomls_own_options(tmp_path: Path) -> None:
    """With a certificate and its key, requests on either transport are answered."""
    key, certificate, authority = (tmp_path / f"{n}.pem" for n in ("key", "certificate", "ca"))
    issuer = trustme.CA()
    issued = issuer.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(certificate)
    issuer.cert_pem.write_to_path(authority)
    options = ["--ssl-keyfile", str(key), "--ssl-certfile", str(certificate)]
    trusted = ssl.create_default_context(cafile=str(authority))
    settings = {"INFERENCE_BUNDLES": str(SERVED_BUNDLES)}
    log = tmp_path / "service.log"
    with running_service(log, settings=settings, options=options, trusted=trusted) as url:
        assert url.startswith("https://")
        for path, body in ((URL, bytes(784)), ("/models", None)):
            asked = urllib.request.Request(url + path, body, RAW)
            with urllib.request.urlopen(asked, timeout=20, context=trusted) as answer:
                assert answer.status == 200
