"""Response slots: keep the responses of a connection in the order of its requests."""

import asyncio
from collections import deque
from http import HTTPStatus
from time import perf_counter
from typing import Protocol

from service.core.messages import Response
from service.observability.records import Exchange
from service.transport.context import CONTEXT

STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class SlotOwner(Protocol):
    """The connection of a slot."""

    transport: asyncio.Transport
    slots: "deque[ResponseSlot]"

    @property
    def client(self) -> tuple[str, int] | None:
        """Address and port of the client."""

    def default_lines(self) -> bytes:
        """Return the header lines of every response."""

    def closes_after(self, slot: "ResponseSlot") -> bool:
        """Whether the connection closes after this response."""

    def advance(self) -> None:
        """Write the responses whose turn it is."""

    def update_reading(self) -> None:
        """Pause or resume reading."""


class ResponseSlot:
    """The place of one response among the responses of its connection.

    Attributes:
        connection: The connection.
        method: The request's method.
        url: Its path and query as they were sent.
        headers: Its headers, lower-case names.
        http_version: "1.1" or "1.0".
        keep_alive: Whether the connection is kept after the response.
        is_last: The client said that it sends no request after this one.
        started_s: When the request's head had been read, by ``time.perf_counter``.
        request_id: As in the answer's header.
        is_complete: The whole response was written or buffered.
    """

    __slots__ = (
        "_buffer",
        "connection",
        "headers",
        "http_version",
        "is_complete",
        "is_last",
        "keep_alive",
        "method",
        "request_id",
        "started_s",
        "url",
    )

    def __init__(
        self,
        connection: SlotOwner,
        method: str,
        url: bytes,
        headers: list[tuple[bytes, bytes]],
        http_version: str,
        keep_alive: bool,
    ) -> None:
        self.connection = connection
        self.method, self.url, self.headers = method, url, headers
        self.http_version, self.keep_alive = http_version, keep_alive
        self.is_last = not keep_alive
        self.started_s = perf_counter()
        self.request_id = b""
        self.is_complete = False
        self._buffer: list[bytes] | None = None

    def is_connected(self) -> bool:
        """Return False once the client has gone."""
        return not self.connection.transport.is_closing()

    def respond(self, response: Response) -> None:
        """Write a whole response."""
        connection = self.connection
        if connection.transport.is_closing():
            return
        if connection.closes_after(self):
            self.keep_alive = False
        lines = [
            STATUS_LINES[response.status],
            response.lines,
            connection.default_lines(),
            b"x-request-id: %b\r\n" % self.request_id,
        ]
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        elif self.http_version == "1.0":
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        if self.method != "HEAD":
            lines.append(response.body)
        self.write(b"".join(lines))
        self.complete()
        gate = CONTEXT.gate
        if gate is not None and gate.is_recording:
            exchange = self.make_exchange()
            exchange.model, exchange.timing = response.model, response.timing
            gate.record(exchange, self.headers, response.status)

    def make_exchange(self) -> Exchange:
        """Return the request as log and traces record it."""
        path = self.url.decode("latin-1")
        client = self.connection.client
        return Exchange(self.request_id, self.started_s, client, self.method, path)

    def write(self, data: bytes) -> None:
        """Write a part of the response, or keep it until all responses before are written."""
        if self.connection.slots[0] is self:
            self.connection.transport.write(data)
        elif self._buffer is None:
            self._buffer = [data]
        else:
            self._buffer.append(data)

    def complete(self) -> None:
        """End the response, which lets the next one be written."""
        self.is_complete = True
        self.connection.advance()

    def take_buffer(self) -> bytes:
        """Return what was kept."""
        kept, self._buffer = self._buffer, None
        return b"".join(kept) if kept else b""
