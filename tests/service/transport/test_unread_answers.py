"""Clients that send requests and never read an answer lose their connection."""

import time
from collections.abc import Iterator
from functools import partial

import psutil
import pytest

from tests.service.processes import main_process, worker_processes
from tests.service.wire import (
    TRANSPORTS,
    Connection,
    find_mistake,
    get,
    infer,
    on_both_transports,
    running_services,
    wait_for,
)

RECLAIMED_WITHIN_S = 10.0
STOPPED_WITHIN_S = 15.0
MOST_BYTES = 64_000_000
REQUESTS = {"models": get("/models"), "infer": infer("cnn")}


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A service on each transport with a limit of 1 s; each service's last test stops it."""
    settings = on_both_transports(SLOW_CLIENT_S="1")
    with running_services(tmp_path_factory.mktemp("unread"), settings) as urls:
        yield urls


@pytest.fixture(scope="module", params=TRANSPORTS)
def url(request: pytest.FixtureRequest, urls: dict[str, str]) -> str:
    """The service on one transport."""
    return urls[request.param]


class Flood:
    """A client that pipelines one request without end and never reads."""

    def __init__(self, url: str, request: bytes) -> None:
        """Connect, with a receive buffer that a few answers fill."""
        self.connection = Connection(url, receive_bytes=4096)
        self.connection.socket.setblocking(False)
        self._block, self._size, self.sent = request * 200, len(request), 0

    def send_what_is_taken(self) -> None:
        """Send until the kernel's buffers are full or the service has closed the connection."""
        try:
            while self.sent < MOST_BYTES:
                self.sent += self.connection.socket.send(self._block[self.sent % self._size :])
        except (BlockingIOError, ConnectionError):
            pass

    def send_until_stalled(self) -> None:
        """Send until the service has not read for half a second, for 2 s at most."""
        moved_s = begun_s = time.monotonic()
        while time.monotonic() < min(moved_s + 0.5, begun_s + 2):
            before = self.sent
            self.send_what_is_taken()
            if self.sent > before:
                moved_s = time.monotonic()
            time.sleep(0.02)

    def is_held(self, worker: psutil.Process) -> bool:
        """Whether the worker still has this connection open."""
        self.send_what_is_taken()
        ends = worker.net_connections("tcp")
        return any(end.raddr and end.raddr.port == self.connection.port for end in ends)


def test_a_client_that_never_reads_loses_its_connection(url: str) -> None:
    """After the limit of 1 s the worker closes such connections and answers others."""
    (worker,) = worker_processes(url)
    floods = {kind: Flood(url, request) for kind, request in REQUESTS.items()}
    try:
        for flood in floods.values():
            assert wait_for(partial(flood.is_held, worker), RECLAIMED_WITHIN_S)  # it is accepted
        held = set(floods)

        def are_reclaimed() -> bool:
            held.difference_update([kind for kind in held if not floods[kind].is_held(worker)])
            return not held

        reclaimed = wait_for(are_reclaimed, RECLAIMED_WITHIN_S)
        sent = {kind: flood.sent for kind, flood in floods.items()}
        assert reclaimed, f"{held} held after {RECLAIMED_WITHIN_S:g} s; bytes sent: {sent}"
    finally:
        for flood in floods.values():
            flood.connection.socket.close()
    with Connection(url) as other:
        other.send(infer("cnn"))
        assert find_mistake(other.receive(), "cnn") == ""


def test_a_client_that_never_reads_does_not_keep_the_service_from_stopping(url: str) -> None:
    """With such clients connected, SIGTERM still ends the service in time."""
    main = main_process(url)
    floods = [Flood(url, request) for request in REQUESTS.values()]
    for flood in floods:
        flood.send_until_stalled()
    main.terminate()
    stopped = wait_for(lambda: not _runs(main), STOPPED_WITHIN_S)
    for flood in floods:
        flood.connection.socket.close()
    assert stopped, f"runs {STOPPED_WITHIN_S:g} s after SIGTERM"


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
