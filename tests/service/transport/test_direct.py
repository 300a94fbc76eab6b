"""Answers beneath ASGI come in order, in any mix of requests, and respect the limits."""

import asyncio
import contextlib
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
import uvicorn.config
import uvloop
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from export.bundle.golden import Golden
from loadtest.server import running_service
from service.transport.context import CONTEXT
from service.transport.http1 import HttpConnection, register
from tests.service.answers import read_logits
from tests.tiny import SERVED_BUNDLES

GOLDEN = Golden.load(SERVED_BUNDLES / "cnn" / "golden.npz")
URL = "/v2/models/cnn/infer"
LENGTH = "inference-header-content-length"


def test_the_answers_are_the_references(service_url: str) -> None:
    """Sixteen concurrent clients get the reference's answer for every golden image."""

    def ask(image: np.ndarray) -> httpx.Response:
        return client.post(URL, content=image.tobytes(), headers={LENGTH: "0"})

    with httpx.Client(base_url=service_url) as client, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, GOLDEN.inputs["images"]))
    logits, expected = np.concatenate([read_logits(a) for a in answers]), GOLDEN.fp32["logits"]
    assert np.abs(logits - expected).max() <= 2e-6 * np.abs(expected).max()
    # Alone or in a batch: an answer does not depend on other samples.
    with httpx.Client(base_url=service_url) as client:
        alone = [ask(image) for image in GOLDEN.inputs["images"]]
    assert [answer.content for answer in alone] == [answer.content for answer in answers]


def _exchange(url: str, sent: bytes, chunks: int = 1) -> bytes:
    """Send bytes on one connection, in this many parts, and read until it is closed."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        size = max(1, -(-len(sent) // chunks))
        for start in range(0, len(sent), size):
            connection.sendall(sent[start : start + size])
        received = b""
        while part := connection.recv(65536):
            received += part
    return received


def _post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@pytest.mark.parametrize("chunks", [1, 7, 5000])
def test_pipelined_requests_are_answered_in_their_order(chunks: int, service_url: str) -> None:
    """Fast, broken and ordinary requests on one connection stay in order, however split."""
    image = GOLDEN.inputs["images"][0].tobytes()
    raw = f"{LENGTH}: 0"
    sent = b"".join(
        [
            _post(URL, image, raw, "x-request-id: first"),
            _post(URL, image[:5], raw, "x-request-id: second"),
            b"GET /v2/models/cnn/ready HTTP/1.1\r\nhost: x\r\n\r\n",
            _post(URL, image, raw, "x-request-id: fourth", "connection: close"),
        ]
    )
    received = _exchange(service_url, sent, chunks)
    statuses = [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 400, 200, 200]
    ids = [part.split(b"\r\n")[0] for part in received.split(b"x-request-id: ")[1:]]
    assert ids[0] == b"first"
    assert ids[-1] == b"fourth"
    assert b"connection: close" in received


def test_an_old_client_is_answered_and_its_connection_closed(service_url: str) -> None:
    """An HTTP/1.0 request without keep-alive is answered, then the connection closes."""
    image = GOLDEN.inputs["images"][0].tobytes()
    sent = _post(URL, image, f"{LENGTH}: 0").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert _exchange(service_url, sent).startswith(b"HTTP/1.1 200 OK\r\n")


def test_who_hangs_up_harms_nobody(service_url: str) -> None:
    """After a hundred half-sent and unread requests, the next one is answered."""
    image = GOLDEN.inputs["images"][0].tobytes()
    whole = _post(URL, image, f"{LENGTH}: 0")
    host, port = service_url.removeprefix("http://").split(":")
    for i in range(100):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(whole if i % 2 else whole[: 100 + i])
    answer = httpx.post(service_url + URL, content=image, headers={LENGTH: "0"})
    assert answer.status_code == 200


def test_who_does_not_read_is_not_read(service_url: str) -> None:
    """If a client does not read, sending stalls, and reading then gets every answer."""
    image = GOLDEN.inputs["images"][0].tobytes()
    request = _post(URL, image, f"{LENGTH}: 0")
    host, port = service_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=2) as connection:
        sent, block, stalled = 0, request * 200, False
        while not stalled and sent < 180_000_000:  # 90 MB of answers
            try:
                sent += connection.send(block[sent % len(request) :])
            except TimeoutError:
                stalled = True
        assert stalled
        connection.settimeout(20)
        rest = request[sent % len(request) :] if sent % len(request) else b""
        threading.Thread(target=connection.sendall, args=(rest,), daemon=True).start()
        expected, received = -(-sent // len(request)), 0
        head = b"HTTP/1.1 "  # 200, or 429 if one connection fills the queue
        tail = b""
        while received < expected:
            part = connection.recv(1 << 20)
            assert part
            received += (tail + part).count(head) - tail.count(head)
            tail = (tail + part)[-len(head) + 1 :]
        assert received == expected
    assert httpx.post(service_url + URL, content=image, headers={LENGTH: "0"}).status_code == 200


def test_a_flood_of_headers_is_refused(service_url: str) -> None:
    """A request whose head never ends is refused with 431."""
    flood = b"".join(b"x-%d: %s\r\n" % (i, b"a" * 100) for i in range(2000))
    sent = b"POST " + URL.encode() + b" HTTP/1.1\r\nhost: x\r\n" + flood
    with contextlib.suppress(ConnectionError):  # it may close before all of it is sent
        assert _exchange(service_url, sent, 50).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("sent", [b"", b"POST /v2/models/cnn/infer HTTP/1.1\r\nhost: x\r\n"])
def test_who_does_not_ask_loses_the_connection(sent: bytes, tmp_path: Path) -> None:
    """A silent client and an endless request are disconnected after the configured time."""
    settings = {"INFERENCE_BUNDLES": str(SERVED_BUNDLES), "INFERENCE_SLOW_CLIENT_S": "0.5"}
    with running_service(tmp_path / "service.log", settings=settings) as url:
        start_s = time.monotonic()
        assert _exchange(url, sent) == b""
        assert 0.3 < time.monotonic() - start_s < 10
        image = GOLDEN.inputs["images"][0].tobytes()
        with httpx.Client(base_url=url) as client:
            for _ in range(3):  # idle time between requests has another limit
                assert client.post(URL, content=image, headers={LENGTH: "0"}).status_code == 200
                time.sleep(0.7)


def test_the_seam_is_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uvicorn still selects protocol and event loop by the name "auto", as BentoML leaves it."""
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "unregistered")
    register()
    config = uvicorn.Config(app="service.transport.asgi_app:make_app", http="auto")
    config.load()
    assert config.http_protocol_class is HttpConnection
    assert config.get_loop_factory() is uvloop.new_event_loop
    server = uvicorn.Server(config)
    with server.capture_signals():  # a worker finds its server here to stop it
        assert getattr(signal.getsignal(signal.SIGTERM), "__self__", None) is server
    worker = Path(uvicorn.__file__).parents[1] / "_bentoml_impl" / "worker" / "service.py"
    call = worker.read_text().split("uvicorn.Config(", 1)[1].split(")", 1)[0]
    assert "http=" not in call
    assert "loop=" not in call
    assert "run(sockets=[socket])" in worker.read_text()
    for name in ("run_asgi", "send", "receive"):
        assert name in vars(RequestResponseCycle), name


def test_requests_before_the_models_are_verified_are_refused() -> None:
    """While its worker has no models, a connection answers 503 with an explanation."""

    async def ask() -> bytes:
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(app="service.transport.asgi_app:make_app", lifespan="off")
        server = await loop.create_server(
            lambda: HttpConnection(config, ServerState(), {}), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        server.close()
        return answer

    assert not CONTEXT.is_ready
    answer = asyncio.run(ask())
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"the models are still being verified" in answer


def test_the_metrics_count_the_fast_ones_too(service_url: str) -> None:
    """Images by endpoint, batches and refusals are counted for requests of the fast path."""

    def counted() -> dict[str, float]:
        lines = httpx.get(service_url + "/metrics").text.splitlines()
        return {
            name: float(value)
            for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")
        }

    before = counted()
    image = GOLDEN.inputs["images"][0].tobytes()
    for body, status in ((image, 200), (image * 3, 200), (image[:5], 400)):
        answer = httpx.post(service_url + URL, content=body, headers={LENGTH: "0"})
        assert answer.status_code == status
    after = counted()

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert grown('inference_samples_total{endpoint="infer",model="cnn"}') == 4
    assert grown('inference_refused_requests_total{kind="invalid_input",status="400"}') == 1
    assert grown('inference_batch_samples_sum{model="cnn"}') == 4
