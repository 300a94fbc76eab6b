"""The time limit of a request starts when its body has arrived; slow clients have another limit."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.service.wire import (
    TRANSPORTS,
    Connection,
    find_mistake,
    golden_images,
    infer,
    on_both_transports,
    post,
    read_metrics,
    running_services,
)

PIECES, OVER_S = 10, 2.5
DEADLINES = 'inference_refused_requests_total{kind="deadline",status="504"}'
# Batches of one image: far more than this machine can run within the time limit.
TOO_MANY_IMAGES = 100_000


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A service on each transport with limits of 1 s for requests and 20 s for clients."""
    settings = on_both_transports(
        TIMEOUT_S="1",
        SLOW_CLIENT_S="20",
        MAX_BATCH_SAMPLES="1",
        MAX_REQUEST_SAMPLES=str(TOO_MANY_IMAGES),
        MAX_QUEUE_SAMPLES=str(TOO_MANY_IMAGES),
        MAX_BODY_BYTES=str(TOO_MANY_IMAGES * 784),
    )
    with running_services(tmp_path_factory.mktemp("slow_bodies"), settings) as urls:
        yield urls


@pytest.fixture(scope="module", params=TRANSPORTS)
def url(request: pytest.FixtureRequest, urls: dict[str, str]) -> str:
    """The service on one transport."""
    return urls[request.param]


def _predict() -> bytes:
    return post(
        "/predict?model=cnn", json.dumps({"images": golden_images("cnn", 1).tolist()}).encode()
    )


def _ask_slowly(url: str, request: bytes) -> httpx.Response:
    """Send the head at once and the body in pieces."""
    head, separator, body = request.partition(b"\r\n\r\n")
    size = -(-len(body) // PIECES)
    with Connection(url) as connection:
        connection.send(head + separator)
        for start in range(0, len(body), size):
            time.sleep(OVER_S / PIECES)
            connection.send(body[start : start + size])
        return connection.receive()


def test_the_time_that_a_body_takes_is_not_the_services(url: str) -> None:
    """A body that takes 2.5 s is answered rightly, although a request may take only 1 s."""
    before = read_metrics(url)[DEADLINES]
    with ThreadPoolExecutor(2) as threads:
        raw = threads.submit(_ask_slowly, url, infer("cnn"))
        predicted = threads.submit(_ask_slowly, url, _predict()).result()
    assert (raw.result().status_code, predicted.status_code) == (200, 200)
    assert find_mistake(raw.result(), "cnn") == ""
    assert predicted.json()["model"] == "cnn"
    assert read_metrics(url)[DEADLINES] == before


def test_a_timeout_bears_the_requests_id(url: str) -> None:
    """A request that takes too long gets 504 with the id that it was sent with."""
    with Connection(url) as connection:
        connection.send(infer("cnn", TOO_MANY_IMAGES, 0, "x-request-id: late-one"))
        answer = connection.receive()
    assert answer.status_code == 504
    assert answer.headers.get("x-request-id") == "late-one"
