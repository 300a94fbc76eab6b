"""What all connections of a worker share, and the check of their times."""

import asyncio
from time import perf_counter
from typing import NamedTuple, Protocol

from service.core.handler import Handler
from service.observability.metrics import Metrics
from service.settings import Settings
from service.transport.direct_router import DirectRequest, DirectRouter
from service.transport.gate import RequestGate

LARGEST_REMEMBERED_HEAD, MOST_REMEMBERED_HEADS = 2048, 1024
LONGEST_SWEEP_INTERVAL_S = 1.0
# A browser must not guess another content type for any answer.
SECURITY_HEADERS = [(b"x-content-type-options", b"nosniff")]


class RememberedHead(NamedTuple):
    """A plain request's head that need not be parsed again."""

    request: DirectRequest
    url: bytes
    headers: list[tuple[bytes, bytes]]
    keep_alive: bool


class Connection(Protocol):
    """An open connection."""

    def check_times(self, now_s: float) -> None:
        """Close the connection if its client is too slow, or idle for too long."""


class ServerContext:
    """What all connections of a worker share.

    Attributes:
        gate: Checks and records requests; None before the models are verified.
        handler: The core; None before the models are verified.
        router: Finds the requests that bypass ASGI; None if none do.
        metrics: Counts what never becomes a request.
        accepted: Connections accepted so far.
        is_draining: Each response closes its connection.
    """

    def __init__(self) -> None:
        self.gate: RequestGate | None = None
        self.handler: Handler | None = None
        self.router: DirectRouter | None = None
        self.metrics: Metrics | None = None
        self.settings = Settings()
        self.accepted = 0
        self.is_draining = False
        self.connections: set[Connection] = set()
        self.remembered: dict[bytes, RememberedHead] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._default_headers: list[tuple[bytes, bytes]] = []
        self._default_lines = b""

    def serve(
        self,
        gate: RequestGate,
        handler: Handler,
        router: DirectRouter | None,
        metrics: Metrics,
        settings: Settings,
    ) -> None:
        """Begin to answer."""
        self.gate, self.handler, self.router = gate, handler, router
        self.metrics, self.settings = metrics, settings

    def default_lines(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return uvicorn's default headers as lines; it makes a new list each second."""
        if headers is not self._default_headers:
            self._default_headers = headers
            lines = [b"%b: %b\r\n" % header for header in [*headers, *SECURITY_HEADERS]]
            self._default_lines = b"".join(lines)
        return self._default_lines

    def remember(self, head: bytes, parsed: RememberedHead) -> None:
        """Remember the bytes of a plain request's head."""
        if len(head) > LARGEST_REMEMBERED_HEAD:
            return
        if len(self.remembered) >= MOST_REMEMBERED_HEADS:
            self.remembered.clear()
        self.remembered[head] = parsed

    def add(
        self, connection: Connection, loop: asyncio.AbstractEventLoop, keep_alive_s: float
    ) -> None:
        """Count an accepted connection, and check its times from now on."""
        self.accepted += 1
        self.connections.add(connection)
        if self._sweep_timer is None:
            self._sweep_later(loop, keep_alive_s)

    def _sweep_later(self, loop: asyncio.AbstractEventLoop, keep_alive_s: float) -> None:
        times_s = (self.settings.slow_client_s / 4, keep_alive_s / 4, LONGEST_SWEEP_INTERVAL_S)
        self._sweep_timer = loop.call_later(min(times_s), self._sweep, loop, keep_alive_s)

    def _sweep(self, loop: asyncio.AbstractEventLoop, keep_alive_s: float) -> None:
        """Check the times of all connections; cheaper than timers for each request."""
        now_s = perf_counter()
        for connection in list(self.connections):
            connection.check_times(now_s)
        self._sweep_timer = None
        if self.connections:
            self._sweep_later(loop, keep_alive_s)


CONTEXT = ServerContext()
