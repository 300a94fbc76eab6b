"""HTTP/1.1 connections on httptools: requests in, responses out in the order of the requests.

Each connection keeps a queue of response slots, one for each request, and writes a response only
when all before it are written, whatever computes them (RFC 9112, 9.3.2). Plain inference requests
go straight to the core handler; others run as an ASGI task (``asgi_cycle``). uvicorn chooses its
protocol by the registry entry "auto"; ``register`` puts this one there.

Clients send the same head again and again. The bytes of a head that was parsed and found plain are
remembered, and a later request that begins with the same bytes is not parsed again.
"""

import asyncio
from collections import deque
from time import perf_counter
from typing import Any

import httptools
from uvicorn.config import HTTP_PROTOCOLS, LOOP_FACTORIES, Config
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from service.core.messages import Request, refuse
from service.protocol.errors import (
    ErrorKind,
    InvalidInputError,
    NotReadyError,
    PayloadTooLargeError,
    ServiceError,
)
from service.transport.asgi_cycle import AsgiCycle, Flow
from service.transport.context import CONTEXT, RememberedHead
from service.transport.direct_router import DirectRequest
from service.transport.gate import REQUEST_ID, check_host
from service.transport.slots import ResponseSlot

LARGEST_HEAD = 65_536
# Requests of a connection that may wait for their responses before reading pauses.
MAX_PIPELINED = 128
# A closed connection whose client does not take the rest of its answer is reset after this time.
CLOSE_GRACE_S = 5.0
# While the server stops, a new connection may still send its first request for this time.
FIRST_REQUEST_GRACE_S = 1.0
HTTP_VERSIONS = ("1.1", "1.0")
NOT_HTTP = "Invalid HTTP request received."


def register() -> None:
    """Make uvicorn use these connections and this worker's event loop where it chooses itself."""
    HTTP_PROTOCOLS["auto"] = "service.transport.http1:HttpConnection"
    LOOP_FACTORIES["auto"] = "service.transport.listener:make_loop_factory"


class HttpConnection(asyncio.Protocol):
    """One client connection; uvicorn makes it, see ``uvicorn.protocols.http.httptools_impl``."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self.loop = _loop or asyncio.get_event_loop()
        self.keep_alive_s: float = config.timeout_keep_alive
        self._config, self._state, self._app_state = config, server_state, app_state
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.transport: asyncio.Transport = None  # type: ignore[assignment] # set when connected
        self.flow: Flow = None  # type: ignore[assignment] # the same
        self._server_connections: set[Any] = server_state.connections  # uvicorn calls shutdown
        self.slots: deque[ResponseSlot] = deque()
        self.cycles: dict[ResponseSlot, AsgiCycle] = {}  # of the slots that ASGI tasks answer
        self._begin_state()

    def _begin_state(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._in_head = self._has_progress = self._is_head_too_large = False
        self._head_bytes = self._stuck_bytes = 0  # the first is 0 between requests
        self._head: bytes | None = None  # the bytes of the head that is being parsed, if known
        self._slot: ResponseSlot | None = None  # of the request that is being received
        self._direct: DirectRequest | None = None
        self._body: list[bytes] = []
        self._was_used = False  # anything was received
        self._is_done_reading = False  # what else comes is no request
        self._receiving_since_s: float | None = perf_counter()
        self._idle_since_s: float | None = None
        self._closing_since_s: float | None = None
        self._stalled_since_s: float | None = None
        self._stalled_bytes = 0

    # The event loop's callbacks.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first request, if there is room for the connection."""
        self.transport = transport  # type: ignore[assignment] # uvloop has no common base class
        self.flow = Flow(self.transport)
        self._server_connections.add(self)
        CONTEXT.add(self, self.loop, self.keep_alive_s)
        most = CONTEXT.settings.max_connections
        if len(CONTEXT.connections) > most:
            message = f"{most} connections are open already; try again later"
            self._refuse(ErrorKind.TOO_MANY_CONNECTIONS, message, {"retry-after": "1"})

    @property
    def client(self) -> tuple[str, int] | None:
        """Address and port of the client."""
        return get_remote_addr(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client; what it still waits for is not computed."""
        self._server_connections.discard(self)
        CONTEXT.connections.discard(self)
        for slot in self.slots:
            if (cycle := self.cycles.get(slot)) is not None:
                cycle.disconnect()
            elif not slot.is_complete and slot is not self._slot and CONTEXT.handler is not None:
                CONTEXT.handler.record_client_gone()
        self.slots.clear()
        self.cycles.clear()
        self.flow.resume_writing()
        self.transport.close()
        # The parser and this object refer to each other: garbage that only the collector would
        # find, and churning connections make much of it.
        self._is_done_reading = True
        del self._parser

    def data_received(self, data: bytes) -> None:
        """Receive bytes: of remembered heads without parsing, of others by the parser."""
        self._was_used = True
        self._idle_since_s = None
        if self._is_done_reading:
            return
        start = 0
        if not self._head_bytes:
            start = self._receive_remembered(data)
            if start == len(data):
                return
        self._parse(data[start:] if start else data)

    def pause_writing(self) -> None:
        """Stop reading while the client does not read: its responses would pile up."""
        self.flow.pause_writing()
        self._stalled_since_s = perf_counter()
        self._stalled_bytes = self.transport.get_write_buffer_size()
        self.update_reading()

    def resume_writing(self) -> None:
        """Read again: the client has read."""
        self.flow.resume_writing()
        self._stalled_since_s = None
        self.update_reading()

    def shutdown(self) -> None:
        """Close once all requests are answered; called by uvicorn when the server stops."""
        CONTEXT.is_draining = True
        if not self.slots and self._was_used and self._slot is None:
            self._close()
        elif not self._was_used:
            self._receiving_since_s = perf_counter()

    # Receiving.

    def _receive_remembered(self, data: bytes) -> int:
        """Handle the whole requests at the start whose heads are remembered.

        Returns:
            How many bytes they took.
        """
        start, remembered = 0, CONTEXT.remembered
        while (end := data.find(b"\r\n\r\n", start)) >= 0:
            end += 4
            head = remembered.get(data[start:end])
            if head is None:
                break
            stop = end + head.request.length
            if stop > len(data):
                break
            slot = ResponseSlot(self, "POST", head.url, head.headers, "1.1", head.keep_alive)
            self.slots.append(slot)
            self._receiving_since_s = None
            self._handle(slot, head.request, data[end:stop])
            start = stop
            if self._is_done_reading:
                return len(data)
        if len(self.slots) > MAX_PIPELINED:
            self.update_reading()
        return start

    def _parse(self, data: bytes) -> None:
        if self._slot is None and not self._head_bytes:
            end = data.find(b"\r\n\r\n")
            self._head = data[: end + 4] if end >= 0 else None
        if self._receiving_since_s is None:
            self._receiving_since_s = perf_counter()
        self._has_progress = False
        while data and not self._is_done_reading:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # No other protocol is spoken here: what follows is the next request.
                data = data[upgrade.args[0] :]
                continue
            except httptools.HttpParserError:
                self._refuse_unparsable()
                return
            break
        # Bytes that neither end a header nor belong to a body are part of one endless line.
        self._stuck_bytes = 0 if self._has_progress else self._stuck_bytes + len(data)
        if self._stuck_bytes > LARGEST_HEAD and not self._is_done_reading:
            self._is_head_too_large = True
            self._refuse_unparsable()

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_head = self._has_progress = True
        self._url, self._headers, self._head_bytes = b"", [], 1
        if self._receiving_since_s is None:
            self._receiving_since_s = perf_counter()

    def on_url(self, url: bytes) -> None:
        """Take a part of the URL."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers behind a chunked body are only counted."""
        self._has_progress = True
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > LARGEST_HEAD:
            self._is_head_too_large = True
            raise ValueError("the head is too large")
        if self._in_head:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Decide where the request goes: straight to the core, to ASGI, or back."""
        self._in_head = False
        version = self._parser.get_http_version()
        if version not in HTTP_VERSIONS:
            raise ValueError("another version of HTTP")
        method = self._parser.get_method()
        headers = self._headers
        keep_alive = self._parser.should_keep_alive()
        slot = ResponseSlot(self, method.decode("ascii"), self._url, headers, version, keep_alive)
        named = dict(headers)
        gate = CONTEXT.gate
        if gate is not None:
            slot.request_id = gate.choose_request_id(named.get(REQUEST_ID))
        self._slot, self._direct, self._body = slot, None, []
        self.slots.append(slot)
        head, self._head = self._head, None
        try:
            self._check(slot, named)
        except ServiceError as error:
            self._refuse_request(slot, error)
            return
        if CONTEXT.router is not None:
            self._direct = CONTEXT.router.match(method, self._url, headers)
        if self._direct is None:
            self._start_asgi(slot)
        elif self._direct.length > CONTEXT.settings.max_body_bytes:
            self._refuse_large(slot, self._direct.length)
        elif head is not None and REQUEST_ID not in named and _is_plain(head, self._url, headers):
            parsed = RememberedHead(self._direct, self._url, headers, slot.keep_alive)
            CONTEXT.remember(head, parsed)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._has_progress = True
        slot = self._slot
        if slot is None or slot.is_complete:
            return
        if (cycle := self.cycles.get(slot)) is not None:
            cycle.receive_body(body)
            self.update_reading()
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """End the request."""
        self._head_bytes = 0
        self._receiving_since_s = None
        slot, self._slot = self._slot, None
        if slot is None:
            return
        if not slot.keep_alive:
            self._is_done_reading = True
        if (cycle := self.cycles.get(slot)) is not None:
            cycle.end_body()
        elif self._direct is not None and not slot.is_complete:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body = []
            self._handle(slot, self._direct, body)
        if len(self.slots) > MAX_PIPELINED:
            self.update_reading()

    def _check(self, slot: ResponseSlot, named: dict[bytes, bytes]) -> None:
        """Raise a ServiceError for a request that no endpoint may see."""
        has_body = named.get(b"content-length", b"0").strip(b"0") or b"transfer-encoding" in named
        if self._parser.should_upgrade() and has_body:
            # The parser would take the body for the next request.
            slot.keep_alive, self._is_done_reading = False, True
            raise InvalidInputError(
                "the request has a body and the header Upgrade; send it without Upgrade"
            )
        gate = CONTEXT.gate
        if gate is None:
            raise NotReadyError("the models are still being verified; try again")
        check_host(slot.headers, slot.http_version)
        if self._path() not in gate.open_paths:
            gate.check_key(slot.headers)

    def _path(self) -> str:
        return self._url.split(b"?", 1)[0].decode("latin-1")

    def _handle(self, slot: ResponseSlot, direct: DirectRequest, body: bytes) -> None:
        """Hand a whole request to the core."""
        gate, handler = CONTEXT.gate, CONTEXT.handler
        if gate is None or handler is None:
            raise RuntimeError("a request came before the models were verified")
        if not slot.request_id:
            slot.request_id = gate.choose_request_id(None)
        if not slot.keep_alive:
            self._is_done_reading = True
        request = Request(
            direct.target,
            body,
            direct.content_type,
            direct.json_length,
            slot.request_id,
            slot.started_s,
            slot.is_connected,
        )
        handler.handle(request, slot.respond)

    # Answering.

    def default_lines(self) -> bytes:
        """Return the header lines of every response."""
        return CONTEXT.default_lines(self._state.default_headers)

    def closes_after(self, slot: ResponseSlot) -> bool:
        """Whether the connection closes after this response."""
        if slot.keep_alive and not CONTEXT.is_draining:
            return False
        if self.slots[-1] is slot and self._slot in (None, slot):
            self._is_done_reading = True
            return True
        return not slot.keep_alive

    def advance(self) -> None:
        """Write the responses whose turn it is, and start the next ASGI task."""
        slots = self.slots
        while slots and slots[0].is_complete:
            slot = slots.popleft()
            if self.cycles:
                self.cycles.pop(slot, None)
            if not slot.keep_alive:
                self._close(is_expected=slot.is_last)
                return
            if not slots:
                break
            if kept := slots[0].take_buffer():
                self.transport.write(kept)
        if self.cycles and slots and (cycle := self.cycles.get(slots[0])) is not None:
            cycle.start(self._config.loaded_app, self._state.tasks)
        if self.flow.read_paused:
            self.update_reading()

    def update_reading(self) -> None:
        """Pause or resume reading."""
        cycle = None if self._slot is None else self.cycles.get(self._slot)
        should_pause = (
            self.flow.write_paused
            or len(self.slots) > MAX_PIPELINED
            or (cycle is not None and cycle.is_body_full)
        )
        if not self.transport.is_closing():
            self.flow.set_reading_paused(should_pause)

    def _start_asgi(self, slot: ResponseSlot) -> None:
        url = httptools.parse_url(self._url)
        scope = {
            "type": "http",
            "asgi": {"version": self._config.asgi_version, "spec_version": "2.3"},
            "http_version": slot.http_version,
            "server": get_local_addr(self.transport),
            "client": self.client,
            "scheme": "https" if is_ssl(self.transport) else "http",
            "method": slot.method,
            "root_path": self._config.root_path,
            "headers": slot.headers,
            "state": self._app_state.copy(),
        }
        cycle = AsgiCycle(slot, scope, url, self.flow, self._state.default_headers)
        self.cycles[slot] = cycle
        if self.slots[0] is slot:
            cycle.start(self._config.loaded_app, self._state.tasks)

    def _refuse_request(self, slot: ResponseSlot, error: ServiceError) -> None:
        if CONTEXT.metrics is not None:
            CONTEXT.metrics.record_refusal(error.kind)
        slot.respond(refuse(error.kind, str(error), error.headers))

    def _refuse_large(self, slot: ResponseSlot, length: int) -> None:
        most = CONTEXT.settings.max_body_bytes
        slot.keep_alive, self._is_done_reading = False, True
        words = f"the body has {length:,} bytes, at most {most:,} are read"
        self._refuse_request(slot, PayloadTooLargeError(words))

    def _refuse_unparsable(self) -> None:
        """Refuse what is not HTTP, or has no end, behind the answers to earlier requests."""
        if self._is_head_too_large:
            self._refuse(
                ErrorKind.HEAD_TOO_LARGE,
                f"the request's head, or its trailer, has more than {LARGEST_HEAD:,} bytes",
            )
        else:
            self._refuse(ErrorKind.NOT_HTTP, NOT_HTTP)

    def _refuse(self, kind: ErrorKind, message: str, headers: dict[str, str] | None = None) -> None:
        """Refuse what is no request, and close the connection."""
        self._is_done_reading = True
        if CONTEXT.metrics is not None:
            CONTEXT.metrics.record_refusal(kind)
        slot = self._slot
        if slot is None or slot.is_complete:
            slot = ResponseSlot(self, "", self._url, self._headers, "1.1", False)
            self.slots.append(slot)
        elif (cycle := self.cycles.pop(slot, None)) is not None:
            # The rest of its body is no HTTP: the ASGI task sees that the client has gone.
            cycle.disconnect()
        slot.keep_alive, self._slot = False, None
        if CONTEXT.gate is not None and not slot.request_id:
            slot.request_id = CONTEXT.gate.choose_request_id(None)
        slot.respond(refuse(kind, message, headers))

    # Closing.

    def _close(self, *, is_expected: bool = False) -> None:
        """Close the connection, after the client was given the time to read the last response.

        If the client still sends, closing at once would reset the connection and may destroy the
        response on its way (RFC 9112, 9.6); so only the sending side is closed.

        Args:
            is_expected: The client said that it sends nothing more.
        """
        self._is_done_reading = True
        self.slots.clear()
        if self._closing_since_s is None:
            self._closing_since_s = perf_counter()
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof() and not is_expected:
            self.transport.write_eof()
            self.flow.set_reading_paused(False)
        else:
            self.transport.close()

    def check_times(self, now_s: float) -> None:
        """Close a connection whose client is too slow, or idle for too long."""
        slow_s = CONTEXT.settings.slow_client_s
        if self._closing_since_s is not None:
            if now_s - self._closing_since_s > min(slow_s, CLOSE_GRACE_S):
                self.transport.abort()
        elif self._stalled_since_s is not None:
            self._check_stalled(now_s, now_s - self._stalled_since_s > slow_s)
        elif self._receiving_since_s is not None:
            is_new = not self._was_used and CONTEXT.is_draining
            if now_s - self._receiving_since_s > (FIRST_REQUEST_GRACE_S if is_new else slow_s):
                self._give_up()
        elif not self.slots:
            if self._idle_since_s is None:
                self._idle_since_s = now_s
            elif now_s - self._idle_since_s > self.keep_alive_s:
                self._close()

    def _check_stalled(self, now_s: float, is_over: bool) -> None:
        """Reset a connection whose client reads nothing of its responses."""
        left = self.transport.get_write_buffer_size()
        if left < self._stalled_bytes:
            self._stalled_since_s, self._stalled_bytes = now_s, left
        elif is_over:
            self.transport.abort()

    def _give_up(self) -> None:
        """Close without an answer: the client does not send its request."""
        self._closing_since_s = perf_counter()
        self.transport.close()


def _is_plain(head: bytes, url: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether these bytes are one request's head, with nothing before, between or behind its lines.

    Otherwise the parser read other bytes as the head than those up to the first empty line.
    """
    has_request_line = head.startswith(b"POST %b HTTP/1.1\r\n" % url)
    lines = len(headers) + 2
    return has_request_line and head.count(b"\r\n") == lines and head.count(b"\n") == lines
