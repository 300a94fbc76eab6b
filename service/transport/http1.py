"""HTTP/1.1 connections on httptools: reads requests, refuses bad ones, closes slow connections.

Plain inference requests go straight to the core handler, others to an ASGI task (``asgi_cycle``);
``slots`` writes their responses in order. uvicorn looks up its default protocol in a registry under
"auto"; ``register`` puts ``HttpConnection`` there.

Clients send the same head again and again. Once a head was parsed and found to be plain, its bytes
are remembered, and a later request that begins with the same bytes is not parsed again.
"""

import asyncio
from time import perf_counter
from typing import Any

import httptools
from uvicorn.config import HTTP_PROTOCOLS, Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from service.protocol.errors import (
    ErrorKind,
    InvalidInputError,
    NotReadyError,
    PayloadTooLargeError,
    ServiceError,
)
from service.transport.asgi_cycle import AsgiSlot
from service.transport.context import CONTEXT
from service.transport.direct_router import DirectHead
from service.transport.gate import REQUEST_ID, check_host
from service.transport.slots import (
    MAX_PIPELINED,
    DirectSlot,
    OrderedConnection,
    ResponseSlot,
)

LARGEST_HEAD = 65_536
# A closing connection whose client does not read the rest of its response is reset after this time.
CLOSE_GRACE_S = 5.0
# While the server stops, a new connection has this much time to send its first request.
FIRST_REQUEST_GRACE_S = 1.0
LONGEST_SWEEP_INTERVAL_S = 1.0
HTTP_VERSIONS = ("1.1", "1.0")


class NotHttpError(ServiceError, kind=ErrorKind.NOT_HTTP):
    """The received bytes are not HTTP."""

    def __init__(self) -> None:
        super().__init__("Invalid HTTP request received.")


class HeadTooLargeError(ServiceError, kind=ErrorKind.HEAD_TOO_LARGE):
    """The head of a request, or the trailer of its body, has too many bytes or no end."""

    def __init__(self) -> None:
        super().__init__(
            f"the request line and headers, or the trailers, have more than {LARGEST_HEAD:,} bytes"
        )


class TooManyConnectionsError(
    ServiceError, kind=ErrorKind.TOO_MANY_CONNECTIONS, headers={"Retry-After": "1"}
):
    """The worker has no room for another connection; clients may try again in a second."""


def register() -> None:
    """Make uvicorn use ``HttpConnection`` wherever its HTTP protocol is "auto"."""
    HTTP_PROTOCOLS["auto"] = "service.transport.http1:HttpConnection"


class HttpConnection(OrderedConnection):
    """One client connection, created by uvicorn; see ``uvicorn.protocols.http.httptools_impl``."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        super().__init__(config, server_state, app_state)
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._connections: set[Any] = server_state.connections  # uvicorn calls shutdown
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._in_head = False
        self._head_bytes = 0  # 0 between requests
        self._stuck_bytes = 0  # received since the last complete header or part of a body
        self._head: bytes | None = None  # the bytes of the head that is being parsed, if known
        self._was_used = False  # whether anything was received
        self._unread_bytes = 0  # in the write buffer when the client last read any

    # The event loop's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the connection, or refuse it if too many are open."""
        self.transport = transport  # type: ignore[assignment] # uvloop has no common base class
        self.flow = FlowControl(self.transport)
        self._connections.add(self)
        CONTEXT.accepted += 1
        if not CONTEXT.is_sweeping:
            CONTEXT.is_sweeping = True
            _sweep_later(self._connections, self.config.timeout_keep_alive)
        most = CONTEXT.settings.max_connections
        if len(self._connections) > most:
            message = f"{most} connections are open already; try again later"
            self._refuse(TooManyConnectionsError(message))

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the connection's state; its pending requests are not computed any more."""
        self._connections.discard(self)
        for slot in self.slots:
            slot.disconnect()
        self.slots.clear()
        self.receiving = None
        self.flow.resume_writing()
        self.transport.close()
        # The parser and this object refer to each other. Breaking the cycle frees both without the
        # garbage collector, which matters when connections open and close often.
        self.is_done_reading = True
        del self._parser

    def data_received(self, data: bytes) -> None:
        """Receive bytes: handle requests with remembered heads at once, parse all others."""
        self._was_used = True
        if self.is_done_reading:
            return
        start = 0
        if not self._head_bytes:
            start = self._receive_remembered(data)
            if start == len(data):
                return
        self._parse(data[start:] if start else data)

    def pause_writing(self) -> None:
        """Stop reading while the client does not read, since its responses would pile up."""
        self.flow.pause_writing()
        self.since_s = None
        self._unread_bytes = self.transport.get_write_buffer_size()
        self.update_reading()

    def resume_writing(self) -> None:
        """Continue to read, because the client has read its responses."""
        self.flow.resume_writing()
        self.since_s = None
        self.update_reading()

    def shutdown(self) -> None:
        """Close once all requests are answered; uvicorn calls this when the server stops."""
        CONTEXT.is_draining = True
        if not self.slots and self._was_used and self.receiving is None:
            self.close()
        elif not self._was_used:
            self.since_s = perf_counter()

    # Receiving.

    def _receive_remembered(self, data: bytes) -> int:
        """Handle the complete requests with remembered heads; return how many bytes were used."""
        start, remembered = 0, CONTEXT.remembered
        while (end := data.find(b"\r\n\r\n", start)) >= 0:
            end += 4
            head = remembered.get(data[start:end])
            if head is None:
                break
            stop = end + head.length
            if stop > len(data):
                break
            request_id = CONTEXT.gate.choose_request_id(None)
            slot = DirectSlot(
                self, "POST", head.url, head.headers, "1.1", head.keep_alive, request_id, head
            )
            self.slots.append(slot)
            self.since_s = None
            if not head.keep_alive:
                self.is_last_announced = self.is_done_reading = True
            slot.handle(data[end:stop])
            start = stop
            if self.is_done_reading:
                return len(data)
        if len(self.slots) > MAX_PIPELINED:
            self.update_reading()
        return start

    def _parse(self, data: bytes) -> None:
        if not self._head_bytes:
            end = data.find(b"\r\n\r\n")
            self._head = data[: end + 4] if end >= 0 else None
        self._stuck_bytes += len(data)
        while data and not self.is_done_reading:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # No other protocol is supported: the bytes that follow are the next request.
                data = data[upgrade.args[0] :]
                continue
            except httptools.HttpParserError as error:
                cause = error.__context__  # what a callback raised
                self._refuse(cause if isinstance(cause, ServiceError) else NotHttpError())
                return
            break
        if self._stuck_bytes > LARGEST_HEAD and not self.is_done_reading:
            self._refuse(HeadTooLargeError())

    def on_message_begin(self) -> None:
        """Begin a request; a callback of the parser, like the following methods."""
        self._in_head, self._head_bytes, self._stuck_bytes = True, 1, 0
        self._url, self._headers, self.since_s = b"", [], None

    def on_url(self, url: bytes) -> None:
        """Add a part of the URL."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; trailers after a chunked body only count towards the limit."""
        self._stuck_bytes = 0
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > LARGEST_HEAD:
            raise HeadTooLargeError
        if self._in_head:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Pass the request to the core or to ASGI, or refuse it."""
        self._in_head = False
        known, self._head = self._head, None
        version = self._parser.get_http_version()
        if version not in HTTP_VERSIONS:
            raise NotHttpError
        method, url, headers = self._parser.get_method(), self._url, self._headers
        named = dict(headers)
        request_id = CONTEXT.gate.choose_request_id(named.get(REQUEST_ID))
        keep_alive = self._parser.should_keep_alive()
        self.is_last_announced = not keep_alive
        fields = self, method.decode("ascii"), url, headers, version, keep_alive, request_id
        head = CONTEXT.router.match(method, url, headers, keep_alive)
        slot = AsgiSlot(*fields) if head is None else DirectSlot(*fields, head)
        self.receiving = slot
        self.slots.append(slot)
        try:
            self._check(slot, named, head)
        except ServiceError as error:
            slot.refuse(error)
            return
        if self.slots[0] is slot:
            slot.take_turn()
        if head and known and REQUEST_ID not in named and _is_plain(known, head):
            CONTEXT.remember(known, head)

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body."""
        self._stuck_bytes = 0
        slot = self.receiving
        if slot is not None and not slot.is_complete:
            slot.receive_body(body)
            if slot.is_body_full:
                self.update_reading()

    def on_message_complete(self) -> None:
        """End the request."""
        self._head_bytes, self.since_s = 0, None
        slot, self.receiving = self.receiving, None
        if slot is None:
            return
        if not slot.keep_alive:
            self.is_done_reading = True
        if not slot.is_complete:
            slot.end_body()
        if len(self.slots) > MAX_PIPELINED:
            self.update_reading()

    def _check(
        self, slot: ResponseSlot, named: dict[bytes, bytes], head: DirectHead | None
    ) -> None:
        """Raise a ServiceError for a request that must not reach an endpoint."""
        has_body = named.get(b"content-length", b"0").strip(b"0") or b"transfer-encoding" in named
        if self._parser.should_upgrade() and has_body:
            # The parser would mistake the body for the next request.
            slot.keep_alive, self.is_done_reading = False, True
            raise InvalidInputError(
                "the request has a body and the header Upgrade; send it without Upgrade"
            )
        if not CONTEXT.is_ready:
            raise NotReadyError("the models are still being verified; try again")
        check_host(slot.headers, slot.http_version)
        if slot.url.split(b"?", 1)[0].decode("latin-1") not in CONTEXT.gate.open_paths:
            CONTEXT.gate.check_key(slot.headers)
        most = CONTEXT.settings.max_body_bytes
        if head is not None and head.length > most:
            slot.keep_alive, self.is_done_reading = False, True
            raise PayloadTooLargeError(
                f"the body has {head.length:,} bytes, at most {most:,} are allowed"
            )

    def _refuse(self, error: ServiceError) -> None:
        """Refuse invalid bytes, after the responses to earlier requests, and close."""
        slot = self.receiving
        if slot is None or slot.is_complete:
            request_id = CONTEXT.gate.choose_request_id(None)
            slot = ResponseSlot(self, "", self._url, self._headers, "1.1", False, request_id)
            self.slots.append(slot)
        else:
            slot.disconnect()  # the rest of its body is not HTTP
        self.receiving, self.is_done_reading = None, True
        slot.keep_alive = False
        slot.refuse(error)

    def check_times(self, now_s: float) -> None:
        """Close the connection if its client is too slow or was idle for too long."""
        if self.since_s is None:
            self.since_s = now_s
        limit_s = slow_s = CONTEXT.settings.slow_client_s
        is_receiving = self._head_bytes > 0 or not self._was_used
        if self.is_closing:
            limit_s = min(slow_s, CLOSE_GRACE_S)
        elif self.flow.write_paused:
            left = self.transport.get_write_buffer_size()
            if left < self._unread_bytes:
                self._unread_bytes, self.since_s = left, now_s
        elif is_receiving:
            if not self._was_used and CONTEXT.is_draining:
                limit_s = FIRST_REQUEST_GRACE_S
        elif self.slots:
            self.since_s = now_s
        else:
            limit_s = self.config.timeout_keep_alive
        if now_s - self.since_s <= limit_s:
            return
        if self.is_closing or self.flow.write_paused:
            self.transport.abort()
        else:
            self.is_last_announced |= is_receiving  # an incomplete request gets no response
            self.close()


def _sweep_later(connections: set[HttpConnection], keep_alive_s: float) -> None:
    times_s = (CONTEXT.settings.slow_client_s / 4, keep_alive_s / 4, LONGEST_SWEEP_INTERVAL_S)
    loop = asyncio.get_running_loop()
    loop.call_later(min(times_s), _sweep, connections, keep_alive_s)


def _sweep(connections: set[HttpConnection], keep_alive_s: float) -> None:
    """Check the times of all connections; this is cheaper than a timer for each request."""
    now_s = perf_counter()
    for connection in list(connections):
        connection.check_times(now_s)
    CONTEXT.is_sweeping = bool(connections)
    if connections:
        _sweep_later(connections, keep_alive_s)


def _is_plain(known: bytes, head: DirectHead) -> bool:
    """Whether these bytes are one request's head, with nothing before, between or after its lines.

    If not, the parser's head differs from the bytes up to the first empty line.
    """
    has_request_line = known.startswith(b"POST %b HTTP/1.1\r\n" % head.url)
    lines = len(head.headers) + 2
    return has_request_line and known.count(b"\r\n") == lines and known.count(b"\n") == lines
