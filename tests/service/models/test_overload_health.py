"""Golden checks and readiness withstand overload: a full queue is not a wrong model."""

import selectors
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.service.wire import (
    PATIENCE_S,
    Connection,
    infer,
    on_both_transports,
    read_metrics,
    running_services,
    wait_for,
)

CONNECTIONS, FOR_S = 32, 2.5
# Two requests fill the queue and one fills a batch, so the queue is never empty.
QUEUE = {"MAX_QUEUE_SAMPLES": "8", "MAX_REQUEST_SAMPLES": "8", "MAX_BATCH_SAMPLES": "4"}
FAILURES, CHECKS = "inference_golden_check_failures_total", "inference_golden_checks_total"
SETTINGS = {
    f"{transport}, {engine}": further
    for engine in ("thread", "loop")
    for transport, further in on_both_transports(
        GOLDEN_CHECK_S="0.2", ENGINE=engine, **QUEUE
    ).items()
}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Services with a small queue, for each transport and each engine."""
    with running_services(tmp_path_factory.mktemp("overload"), SETTINGS) as urls:
        yield urls


@pytest.fixture(scope="module", params=SETTINGS)
def url(request: pytest.FixtureRequest, urls: dict[str, str]) -> str:
    """The URL of one of these services."""
    return urls[request.param]


def _fill_the_queue(url: str, statuses: Counter[int], seconds: float) -> None:
    """Send requests of four images on many connections, each as soon as the last is answered."""
    requests = [infer(model, 4) for model in ("cnn", "mlp")]
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for number in range(CONNECTIONS):
            connection = stack.enter_context(Connection(url))
            request = requests[number % len(requests)]
            connection.send(request)
            selector.register(connection.socket, selectors.EVENT_READ, (connection, request))
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            for key, _ in selector.select(timeout=0.5):
                connection, request = key.data
                statuses[connection.receive().status_code] += 1
                connection.send(request)


def test_overload_is_no_wrong_answer(url: str) -> None:
    """While requests are refused for seconds, /readyz stays 200 and no golden check fails."""
    statuses, readiness = Counter[int](), Counter[int]()
    load = threading.Thread(target=_fill_the_queue, args=(url, statuses, FOR_S), daemon=True)
    load.start()
    while load.is_alive():
        readiness[httpx.get(f"{url}/readyz", timeout=PATIENCE_S).status_code] += 1
        time.sleep(0.03)
    assert set(statuses) == {200, 429}, statuses
    metrics = read_metrics(url)
    failures = {name: value for name, value in metrics.items() if name.startswith(FAILURES)}
    assert set(readiness) == {200}, f"readiness {readiness}, {failures}, answers {statuses}"
    assert len(failures) == 2
    assert set(failures.values()) == {0}, f"{failures}, answers {statuses}"


def test_golden_checks_go_on_after_an_overload(url: str) -> None:
    """An idle service checks its models again and reports that they are right."""
    before = read_metrics(url)

    def checked() -> bool:
        now = read_metrics(url)
        return all(now[name] > before[name] for name in before if name.startswith(CHECKS))

    assert wait_for(checked, PATIENCE_S)
    assert httpx.get(f"{url}/readyz", timeout=PATIENCE_S).status_code == 200
