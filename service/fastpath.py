"""Inference requests answered beneath ASGI, where a request is cheapest.

Of what one request of the digit CNN costs under BentoML, the model is a few per cent; the rest is
a task, an ASGI scope, middleware, spans and timers. So the connection's protocol class, uvicorn's
own but for this, answers ``POST /v2/models/MODEL[/versions/VERSION]/infer``, ``POST /predict``
and ``POST /predict/image`` itself if the request is of the plain kind: a known model whose batches
run in the event loop, a body of known and moderate length. Anything else, and every request if the
setting ``fast_path`` is off, takes the ordinary way and gets the same answer.

The seam is the name "auto" in uvicorn's registry of HTTP protocols, which BentoML's worker leaves
at its default; ``tests/service/test_fastpath.py`` fails when either changes. The limits of a
connection (silence, endless heads, how many there are) hold in any case.
"""

import asyncio
from http import HTTPStatus

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import ErrorKind, UnauthorizedError
from service.lane import Lane
from service.metrics import Metrics
from service.models import ServedModel
from service.pending import Head, Pending
from service.reception import REQUEST_ID
from service.responses import error_body
from service.settings import Settings

REGISTERED = "service.fastpath:FastProtocol"
LARGEST_HEAD = 65_536
HTTP_VERSIONS = ("1.1", "1.0")
# Whoever sends one of these wants something that only the ordinary way does.
ORDINARY = {b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"}


def install(metrics: Metrics, lane: Lane | None) -> None:
    """Let connections of this process answer by themselves what the lane answers, if there is one.

    Args:
        metrics: Told of what never becomes a request.
        lane: What is answered here.
    """
    FastProtocol.metrics, FastProtocol.lane = metrics, lane


def register(settings: Settings) -> None:
    """Make uvicorn use this protocol where it chooses one itself; before it is configured."""
    FastProtocol.slow_client_s = settings.slow_client_s
    FastProtocol.max_connections = settings.max_connections
    HTTP_PROTOCOLS["auto"] = REGISTERED


class FastProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools, with a short way for inference requests."""

    lane: Lane | None = None
    metrics: Metrics | None = None
    slow_client_s = 20.0
    max_connections = 4096
    _fast: Pending | None = None
    _waiting = True  # for a request, or for the rest of one
    _in_head = _moved = _too_large = False
    _head_bytes = _still_bytes = 0
    unanswered = 0  # requests of this connection that wait for their batch
    _too_slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the client so long for its first request, if there is room for it."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse(
                ErrorKind.TOO_MANY_CONNECTIONS,
                f"{self.max_connections} connections are open already; try again later",
                b"retry-after: 1\r\n",
            )
            return
        self._too_slow = self.loop.call_later(self.slow_client_s, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._patient()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; a request that is not whole yet must be so in time, its head soon."""
        self._moved = False
        super().data_received(data)
        # What neither ends a header nor is a part of a body is a part of one endless line.
        self._still_bytes = 0 if self._moved else self._still_bytes + len(data)
        if self._still_bytes > LARGEST_HEAD and not self.transport.is_closing():
            self._refuse_head()
        if self._waiting and self._too_slow is None and not self.transport.is_closing():
            self._too_slow = self.loop.call_later(self.slow_client_s, self._give_up)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._waiting = self._in_head = self._moved = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count; what comes behind a body as a trailer speaks for nobody."""
        self._moved = True
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > LARGEST_HEAD:
            self._too_large = True
            raise ValueError("the parser ends here")
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Take the request if it is of the plain kind; else the ordinary way."""
        self._in_head = False
        if self.parser.get_http_version() not in HTTP_VERSIONS:
            raise ValueError("the parser ends here")
        lane = FastProtocol.lane
        if lane is not None:
            if self.cycle is None or self.cycle.response_complete:
                route = lane.routes.get(self.url)
                if route is not None and self.parser.get_method() == b"POST":
                    self._fast = self._accepted(lane, *route)
            if self._fast is None:
                self.answer_first()
        if self._fast is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Collect."""
        self._moved = True
        if self._fast is None:
            super().on_body(body)
        else:
            self._fast.body += body

    def on_message_complete(self) -> None:
        """Queue the request for the next batch."""
        self._waiting = False
        self._patient()
        if self._fast is None:
            super().on_message_complete()
            if self.cycle.response_complete and self.timeout_keep_alive_task is None:
                # It was answered before its body had come, which stopped the clock again.
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        else:
            fast, self._fast = self._fast, None
            fast.keep_alive = self.parser.should_keep_alive()
            if fast.suits():
                fast.queue()
            else:
                self._take_the_ordinary_way(fast.body)

    def pause_writing(self) -> None:
        """The client does not read: nor do we."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self.cycle is None or self.cycle.response_complete:  # else its end resumes reading
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or has no end, as everything is refused."""
        if self._too_large:
            self._refuse_head()
        else:
            self._refuse(ErrorKind.NOT_HTTP, msg)

    def shutdown(self) -> None:
        """Answer what waits before uvicorn closes the connection."""
        self.answer_first()
        super().shutdown()

    def finish(self, head: bytes, body: bytes, *, keep_alive: bool) -> None:
        """Write a whole response and make ready for the next request."""
        if self.transport.is_closing():
            return
        lane = FastProtocol.lane
        defaults = lane.default_headers(self.server_state.default_headers) if lane else b""
        if lane is not None and lane.readiness.draining:
            keep_alive = False  # the client's next connection may find another server
        closing = b"" if keep_alive else b"connection: close\r\n"
        self.transport.write(b"".join([head, defaults, closing, b"\r\n", body]))
        if keep_alive:
            self.on_response_complete()
            if self.flow.write_paused:  # who does not read its answers gets no further ones
                self.flow.pause_reading()
        else:
            self.server_state.total_requests += 1
            self.transport.close()

    def answer_first(self) -> None:
        """Answer this connection's earlier requests before one that does not wait for a batch."""
        if self.unanswered and FastProtocol.lane is not None:
            FastProtocol.lane.flush()
            self._unset_keepalive_if_required()  # an answer that was just written armed it

    def _take_the_ordinary_way(self, body: bytes) -> None:
        """Do for a request that was read here what uvicorn would have done as it came."""
        self.answer_first()
        super().on_headers_complete()
        super().on_body(body)
        super().on_message_complete()

    def _refuse(self, kind: ErrorKind, message: str, further: bytes = b"") -> None:
        """Refuse what never became a request, and close the connection."""
        if FastProtocol.metrics is not None:
            FastProtocol.metrics.refused(kind)
        body, status = error_body(message), HTTPStatus(kind.status)
        head = b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode())
        head += b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        self.finish(head + further, body, keep_alive=False)

    def _refuse_head(self) -> None:
        self._refuse(
            ErrorKind.HEAD_TOO_LARGE,
            f"the request's head, or what comes behind its body, has more than {LARGEST_HEAD:,} "
            "bytes",
        )

    def _should_upgrade_to_ws(self) -> bool:
        """Nobody here speaks WebSocket: what asks for it is a request like others."""
        return False

    def _patient(self) -> None:
        if self._too_slow is not None:
            self._too_slow.cancel()
            self._too_slow = None

    def _give_up(self) -> None:
        """Close what holds a connection without asking anything."""
        if not self.transport.is_closing():
            self.transport.close()

    def _accepted(self, lane: Lane, kind: type[Pending], model: ServedModel) -> Pending | None:
        """A pending request, or None if a header asks for more than the short way gives."""
        headers = dict(self.headers)
        length = headers.get(b"content-length")
        plain = len(headers) == len(self.headers) and ORDINARY.isdisjoint(headers)
        if not plain or length is None or b"host" not in headers:
            return None
        try:
            lane.reception.check_key(self.headers)
        except UnauthorizedError:
            return None
        json_length = headers.get(b"inference-header-content-length")
        head = Head(
            None if json_length is None else json_length.decode("latin-1"),
            headers.get(b"content-type", b"").decode("latin-1"),
            lane.reception.request_id(headers.get(REQUEST_ID)),
            self.headers,
        )
        if int(length) > kind.largest(lane, model, head):
            return None
        return kind(self, lane, model, head)
