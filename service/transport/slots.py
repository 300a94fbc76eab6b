"""Writes the responses of a connection in the order of its requests (RFC 9112, 9.3.2).

A connection has a response slot for each request. However and whenever a slot's response is
computed, it is written only after all responses before it.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from http import HTTPStatus
from time import perf_counter
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.utils import get_remote_addr
from uvicorn.server import ServerState

from service.core.messages import Request, Response
from service.observability.records import Exchange
from service.transport.context import CONTEXT
from service.transport.direct_router import DirectHead

# Number of requests of a connection that may wait for responses before reading pauses.
MAX_PIPELINED = 128
STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class OrderedConnection(asyncio.Protocol):
    """The writing side of a client's connection; ``http1`` has the reading side.

    Attributes:
        config: uvicorn's configuration.
        state: uvicorn's state of all connections.
        app_state: The ASGI app's state for all requests.
        slots: The slots of requests whose responses are incomplete, in the requests' order.
        receiving: The slot of the request whose body is being received.
        is_last_announced: The client announced that it sends no further request.
        is_done_reading: Further bytes from the client are ignored.
        is_closing: The connection only waits for the client to read the last response.
        since_s: When the connection entered its present state; None until the next check.
    """

    # Set when the connection is made.
    transport: asyncio.Transport
    flow: FlowControl

    def __init__(self, config: Config, state: ServerState, app_state: dict[str, Any]) -> None:
        self.config, self.state, self.app_state = config, state, app_state
        self.slots: deque[ResponseSlot] = deque()
        self.receiving: ResponseSlot | None = None
        self.is_last_announced = self.is_done_reading = self.is_closing = False
        self.since_s: float | None = None
        self._is_reading_paused = False

    def closes_after(self, slot: "ResponseSlot") -> bool:
        """Whether the connection closes after this response."""
        if slot.keep_alive and not CONTEXT.is_draining:
            return False
        if self.slots and self.slots[-1] is slot and self.receiving in (None, slot):
            self.is_done_reading = True
            return True
        return not slot.keep_alive

    def advance(self) -> None:
        """Write the responses whose turn it is, and start the next ASGI task."""
        slots = self.slots
        while slots and slots[0].is_complete:
            if not slots.popleft().keep_alive:
                self.close()
                return
            if slots:
                slots[0].take_turn()
        if self._is_reading_paused:
            self.update_reading()

    def update_reading(self) -> None:
        """Pause or resume reading."""
        should_pause = not self.is_closing and (
            self.flow.write_paused
            or len(self.slots) > MAX_PIPELINED
            or (self.receiving is not None and self.receiving.is_body_full)
        )
        if should_pause != self._is_reading_paused and not self.transport.is_closing():
            self._is_reading_paused = should_pause
            if should_pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def close(self) -> None:
        """Close the connection, leaving the client time to read the last response.

        If the client may still send, closing at once would reset the connection and may destroy the
        response on its way (RFC 9112, 9.6); so only the sending side is closed.
        """
        self.is_done_reading = self.is_closing = True
        for slot in self.slots:
            slot.disconnect()  # the task of an incomplete request waits for the rest of its body
        self.slots.clear()
        self.since_s = None
        if self.is_last_announced or not self.transport.can_write_eof():
            self.transport.close()
        elif not self.transport.is_closing():
            self.transport.write_eof()
            self.update_reading()


@dataclass(eq=False)
class ResponseSlot:
    """The place of one response among the responses of its connection.

    Attributes:
        url: The request's path and query as sent.
        headers: The request's headers, with lower-case names.
        http_version: "1.1" or "1.0".
        keep_alive: Whether the connection stays open after the response.
        request_id: The request's id, as in the response's header.
        started_s: When the request's head had been read, by ``time.perf_counter``.
        is_complete: Whether the whole response was written or buffered.
    """

    connection: OrderedConnection
    method: str
    url: bytes
    headers: list[tuple[bytes, bytes]]
    http_version: str
    keep_alive: bool
    request_id: bytes
    started_s: float = field(default_factory=perf_counter, init=False)
    is_complete: bool = field(default=False, init=False)
    _buffer: list[bytes] | None = field(default=None, init=False)

    @property
    def is_body_full(self) -> bool:
        """Whether enough of the body is buffered that reading should pause."""
        return False

    def receive_body(self, data: bytes) -> None:
        """Receive a part of the request's body."""

    def end_body(self) -> None:
        """Receive the end of the request's body."""

    def disconnect(self) -> None:
        """Abandon the request: its client disconnected or sent invalid HTTP."""

    def is_connected(self) -> bool:
        """Return False once the client disconnected."""
        return not self.connection.transport.is_closing()

    def refuse(self, error: Exception) -> None:
        """Write an error response."""
        where = self.url.decode("latin-1")
        self.respond(CONTEXT.refuse(error, where, self.request_id))

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
            CONTEXT.default_lines(connection.state.default_headers),
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
        if CONTEXT.gate.is_recording:
            exchange = self.make_exchange()
            exchange.model, exchange.timing = response.model, response.timing
            CONTEXT.gate.record(exchange, self.headers, response.status)

    def make_exchange(self) -> Exchange:
        """Return the request as logs and traces record it."""
        path = self.url.decode("latin-1")
        client = get_remote_addr(self.connection.transport)
        return Exchange(self.request_id, self.started_s, client, self.method, path)

    def write(self, data: bytes) -> None:
        """Write a part of the response, or buffer it until all earlier responses are written."""
        if self.connection.slots[0] is self:
            self.connection.transport.write(data)
        elif self._buffer is None:
            self._buffer = [data]
        else:
            self._buffer.append(data)

    def complete(self) -> None:
        """End the response, so that the next one can be written."""
        self.is_complete = True
        self.connection.advance()

    def take_turn(self) -> None:
        """Write what was buffered: all earlier responses are written."""
        if self._buffer:
            self.connection.transport.write(b"".join(self._buffer))
            self._buffer = None


@dataclass(eq=False)
class DirectSlot(ResponseSlot):
    """The slot of a response that the core computes without ASGI."""

    head: DirectHead
    _body: list[bytes] = field(default_factory=list, init=False)

    def receive_body(self, data: bytes) -> None:
        """Keep a part of the request's body."""
        self._body.append(data)

    def end_body(self) -> None:
        """Have the core compute the response."""
        self.handle(self._body[0] if len(self._body) == 1 else b"".join(self._body))
        self._body = []

    def handle(self, body: bytes) -> None:
        """Have the core compute the response to the request with this body."""
        head = self.head
        request = Request(
            head.target,
            body,
            head.content_type,
            head.json_length,
            self.request_id,
            self.started_s,
            self.is_connected,
        )
        CONTEXT.handler.handle(request, self.respond)

    def disconnect(self) -> None:
        """Record that the client disconnected, if its request was complete."""
        if not self.is_complete and self is not self.connection.receiving:
            CONTEXT.handler.record_client_gone()
