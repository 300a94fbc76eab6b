"""One connection gets answers in the order of its requests, and only to valid requests."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.service.wire import (
    PATIENCE_S,
    TRANSPORTS,
    Connection,
    CutError,
    find_mistake,
    get,
    golden_images,
    infer,
    on_both_transports,
    post,
    running_services,
)

LARGE_BYTES = 7_500_000
ROUNDS = 3
# An idle connection is closed after 5 s, so one that closes earlier was refused.
LESS_THAN_IDLE_S = 4.0
GARBAGE = {
    "no HTTP": b"\xff\xfe\x00 what is this\r\n\r\n",
    "a line of text": b"this is no request line\r\n\r\n",
    "an endless head": b"GET /models HTTP/1.1\r\n" + b"x-filler: 0123456789abcdef\r\n" * 4000,
}
"""What follows valid requests in the same segment."""


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A service on each transport that accepts large requests."""
    settings = on_both_transports(
        MAX_REQUEST_SAMPLES="4000", MAX_QUEUE_SAMPLES="4000", MAX_BODY_BYTES="8388608"
    )
    with running_services(tmp_path_factory.mktemp("connections"), settings) as urls:
        yield urls


@pytest.fixture(scope="module", params=TRANSPORTS)
def url(request: pytest.FixtureRequest, urls: dict[str, str]) -> str:
    """The service on one transport."""
    return urls[request.param]


def test_answers_come_in_the_order_of_the_requests_whichever_model_is_asked(url: str) -> None:
    """A full batch and one image of the CNN and one of the MLP keep their order."""
    asked = [("cnn", 64, 0), ("cnn", 1, 5), ("mlp", 1, 9)]
    with Connection(url) as connection:
        connection.send(b"".join(infer(*each) for each in asked))
        mistakes = [find_mistake(connection.receive(), *each) for each in asked]
    assert mistakes == ["", "", ""]


def test_bytes_are_taken_for_a_head_seen_before_only_if_they_are_one(url: str) -> None:
    """Empty lines before a request and lines without CR do not corrupt the cache of heads.

    The service caches parsed heads; a cached entry must be exactly one complete head.
    """
    request = infer("cnn", 1, 5)
    image = golden_images("cnn", 1, 5).tobytes()
    bare = request.replace(b"\r\n", b"\n", request.count(b"\r\n"))
    for prelude in (b"\r\n\r\n", b"\r\n"):
        with Connection(url) as connection:
            for _ in range(2):
                connection.send(prelude + request)
                assert find_mistake(connection.receive(), "cnn", 1, 5) == ""
            connection.send(b"\r\n\r\n" + image)
            assert [answer.status_code for answer in connection.receive_all()] == [400]
    with Connection(url) as connection:
        for _ in range(2):
            connection.send(bare)
        statuses = {answer.status_code for answer in connection.receive_all()}
    assert statuses <= {200, 400}


def test_a_remembered_head_is_answered_alike_however_its_bytes_are_cut(url: str) -> None:
    """The same request is answered alike in one segment and split at various places."""
    request = infer("mlp", 2, 3)
    with Connection(url) as connection:
        connection.send(request * 2)
        for cut in (1, 40, len(request) - 1569, len(request) - 1568, len(request) - 1):
            connection.send(request[:cut])
            time.sleep(0.02)
            connection.send(request[cut:])
        mistakes = [find_mistake(connection.receive(), "mlp", 2, 3) for _ in range(7)]
    assert mistakes == [""] * 7


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("framing", ["content-length", "chunked"])
def test_a_body_behind_an_upgrade_is_never_read_as_a_request(
    framing: str, segments: int, url: str
) -> None:
    """A POST that requests an upgrade gets a single 400, and its connection is closed."""
    body = get("/metrics")
    head = post("/v2/models/cnn/infer", body, "connection: Upgrade", "upgrade: foo")
    head = head.removesuffix(body)
    if framing == "chunked":
        length = b"content-length: %d" % len(body)
        head = head.replace(length, b"transfer-encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with Connection(url, timeout_s=LESS_THAN_IDLE_S) as connection:
        if segments == 1:
            connection.send(head + body)
        else:
            connection.send(head)
            time.sleep(0.3)  # the head is parsed separately
            with suppress(CutError):  # it may be closed already
                connection.send(body)
        answers = connection.receive_all()
    assert [answer.status_code for answer in answers] == [400], [a.text[:80] for a in answers]


@pytest.mark.parametrize("name", GARBAGE)
def test_valid_requests_are_answered_before_the_garbage_behind_them(name: str, url: str) -> None:
    """Three requests before garbage get right answers, then one refusal and the end."""
    with Connection(url, timeout_s=LESS_THAN_IDLE_S) as connection:
        with suppress(CutError):  # it may close before all of a long head is sent
            connection.send(b"".join(infer("cnn", 1, i) for i in range(3)) + GARBAGE[name])
        answers = connection.receive_all()
    statuses = [answer.status_code for answer in answers]
    assert statuses in ([200, 200, 200, 400], [200, 200, 200, 431])
    assert [find_mistake(answers[i], "cnn", 1, i) for i in range(3)] == ["", "", ""]


@pytest.mark.parametrize("kind", ["infer", "models"])
def test_an_old_client_may_keep_its_connection(kind: str, url: str) -> None:
    """HTTP/1.0 with `Connection: keep-alive` gets that header back and can send again."""
    keep = "connection: keep-alive"
    request = get("/models", keep, version="1.0")
    if kind == "infer":
        request = infer("cnn", 1, 0, keep).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    with Connection(url) as connection:
        for _ in range(2):
            connection.send(request)
            answer = connection.receive()
            assert answer.status_code == 200
            assert answer.headers.get("connection", "(none)").lower() == "keep-alive"


def _large_predict() -> bytes:
    images = golden_images("cnn", 60).tolist()
    count = LARGE_BYTES // (len(json.dumps(images)) // 60)
    text = json.dumps({"images": (images * 80)[:count], "model": "cnn"})
    return post("/predict", text.encode())


def _large_infer() -> bytes:
    images = golden_images("cnn", 60).reshape(60, -1).tolist()
    count = LARGE_BYTES // (len(json.dumps(images)) // 60)
    data = [pixel for image in (images * 80)[:count] for pixel in image]
    tensor = {"name": "images", "shape": [count, 28, 28], "datatype": "UINT8", "data": data}
    return post("/v2/models/cnn/infer", json.dumps({"inputs": [tensor]}).encode())


LARGE = {"predict": _large_predict, "infer": _large_infer}


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_json_body_does_not_hold_up_another_connection(kind: str, url: str) -> None:
    """A small request sent after 7.5 MB of JSON is answered before it."""
    request, orders = LARGE[kind](), list[list[str]]()
    for _ in range(ROUNDS):
        with Connection(url) as large, Connection(url) as small:
            small.send(infer("cnn"))
            assert find_mistake(small.receive(), "cnn") == ""
            order = list[str]()
            large.send(request)
            _wait_until_read(url, large)
            reader = threading.Thread(target=_note_answer, args=("large", large, order))
            reader.start()
            small.send(infer("cnn"))
            _note_answer("small", small, order)
            reader.join(PATIENCE_S)
            orders.append(order)
    assert orders == [["small 200", "large 200"]] * ROUNDS


def _note_answer(name: str, connection: Connection, order: list[str]) -> None:
    order.append(f"{name} {connection.receive().status_code}")


def _wait_until_read(url: str, connection: Connection) -> None:
    """Wait until the service has taken every byte out of the kernel's buffers.

    The kernel buffers megabytes that the service has not read: a request sent meanwhile would
    overtake them there, and the test would show nothing.
    """
    service, client = (f":{int(port):04X}" for port in (url.rsplit(":", 1)[1], connection.port))
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        waiting = 0
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, _, queues, *_ = line.split()
            if {local[-5:], remote[-5:]} == {service, client}:
                waiting += sum(int(bytes_, 16) for bytes_ in queues.split(":"))
        if not waiting:
            return
    raise AssertionError("the service did not read the body")
