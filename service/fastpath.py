"""Inference requests answered beneath ASGI, where a request is cheapest.

Of what one request of the digit CNN costs under BentoML, the model is a few per cent; the rest is
a task, an ASGI scope, middleware, spans and timers. So the connection's protocol class, uvicorn's
own but for this, answers ``POST /v2/models/MODEL[/versions/VERSION]/infer`` and ``POST /predict``
itself if the request is of the plain kind: a known model whose batches run in the event loop, a
body of known and moderate length. Anything else, and every request if the setting ``fast_path`` is
off, takes the ordinary way and gets the same answer.

The seam is the name "auto" in uvicorn's registry of HTTP protocols, which BentoML's worker leaves
at its default; ``tests/service/test_fastpath.py`` fails when either changes.
"""

import asyncio

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.metrics import Metrics
from service.models import ServedModel, ServedModels
from service.oip import infer_urls
from service.pending import Infer, Pending, Predict
from service.readiness import Readiness
from service.tensors import sample_bytes

REGISTERED = "service.fastpath:FastProtocol"
LARGEST_JSON = 16_384
LARGEST_HEAD = 65_536
HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n"
COUNTED_EVERY_S = 0.5
# Whoever sends one of these wants something that only the ordinary way does.
ORDINARY = {b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"}


class Lane:
    """What is answered here: the requests' readers by the exact bytes of their URLs."""

    def __init__(
        self, models: ServedModels, metrics: Metrics, readiness: Readiness, max_samples: int
    ) -> None:
        """Collect the URLs of all models whose batches run in the event loop."""
        self.served, self.metrics, self.readiness = models, metrics, readiness
        self.max_samples = max_samples
        here = [model for model in models.all() if model.batcher.in_loop]
        self._batchers = [model.batcher for model in here]
        self.routes: dict[bytes, tuple[type[Pending], ServedModel]] = {}
        # Blobs of more samples than a batch holds, and longer JSON, would hold up the others.
        self.largest = {
            model.manifest.name: LARGEST_JSON
            + model.batcher.max_batch_samples * sum(map(sample_bytes, model.manifest.inputs))
            for model in here
        }
        for model in here:
            for url in infer_urls(model.manifest):
                self.routes[url.encode()] = (Infer, model)
            self.routes[f"/predict?model={model.manifest.name}".encode()] = (Predict, model)
        if len(here) == len(models.all()):  # whichever the body names is answered here
            self.routes[b"/predict"] = (Predict, models.get(None))
        self._answered: dict[tuple[str, str], tuple[int, int]] = {}
        self._headers: list[tuple[bytes, bytes]] = []
        self._lines = b""

    def flush(self) -> None:
        """Answer what waits now: answers leave a connection in the order of its requests."""
        for batcher in self._batchers:
            batcher.flush()
        self.count()

    def answered(self, model: str, endpoint: str, samples: int) -> None:
        """Note an answer; the metrics, which take microseconds, are told now and then."""
        if not self._answered:
            asyncio.get_running_loop().call_later(COUNTED_EVERY_S, self.count)
        before, requests = self._answered.get((model, endpoint), (0, 0))
        self._answered[model, endpoint] = (before + samples, requests + 1)

    def count(self) -> None:
        """Tell the metrics what was answered."""
        for (model, endpoint), (samples, requests) in self._answered.items():
            self.metrics.answered(model, endpoint, samples, requests)
        self._answered.clear()

    def default_headers(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Uvicorn's headers as lines; it makes a new list of them each second, for the date."""
        if headers is not self._headers:
            self._headers = headers
            self._lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return self._lines


def install(lane: Lane, slow_client_s: float) -> None:
    """Let connections of this process answer by themselves.

    Args:
        lane: What they answer.
        slow_client_s: Seconds that a client may take to send a request.
    """
    FastProtocol.lane, FastProtocol.slow_client_s = lane, slow_client_s


def register() -> None:
    """Make uvicorn use this protocol where it chooses one itself; before it is configured."""
    HTTP_PROTOCOLS["auto"] = REGISTERED


class FastProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools, with a short way for inference requests."""

    lane: "Lane | None" = None
    slow_client_s = 20.0
    _fast: Pending | None = None
    _waiting = True  # for a request, or for the rest of one
    _in_head = _begun = False
    _head_bytes = 0
    _too_slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Give the client so long for its first request."""
        super().connection_made(transport)
        self._too_slow = self.loop.call_later(self.slow_client_s, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._patient()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; a request that is not whole yet must be so in time, its head soon."""
        self._begun = False
        super().data_received(data)
        # Of a part in which a request began, only what comes after it can belong to its head.
        same = self._in_head and not self._begun
        self._head_bytes = self._head_bytes + len(data) if same else 0
        if self._head_bytes > LARGEST_HEAD and not self.transport.is_closing():
            self.finish(HEAD_TOO_LARGE, b"", keep_alive=False)
        if self._waiting and self._too_slow is None and not self.transport.is_closing():
            self._too_slow = self.loop.call_later(self.slow_client_s, self._give_up)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._waiting = self._in_head = self._begun = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Take the request if it is of the plain kind; else the ordinary way."""
        self._in_head = False
        lane = FastProtocol.lane
        if lane is not None:
            if self.cycle is None or self.cycle.response_complete:
                route = lane.routes.get(self.url)
                if route is not None and self.parser.get_method() == b"POST":
                    self._fast = self._accepted(lane, *route)
            if self._fast is None:
                lane.flush()
                self._unset_keepalive_if_required()  # an answer that was just written armed it
        if self._fast is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Collect."""
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
        else:
            fast, self._fast = self._fast, None
            fast.keep_alive = self.parser.should_keep_alive()
            fast.queue()

    def pause_writing(self) -> None:
        """The client does not read: nor do we."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self.cycle is None or self.cycle.response_complete:  # else its end resumes reading
            self.flow.resume_reading()

    def shutdown(self) -> None:
        """Answer what waits before uvicorn closes the connection."""
        if FastProtocol.lane is not None:
            FastProtocol.lane.flush()
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
        length = json_length = request_id = None
        for name, value in self.headers:
            if name == b"content-length":
                length = value
            elif name == b"inference-header-content-length":
                json_length = value.decode("latin-1")
            elif name == b"x-request-id":
                request_id = value
            elif name in ORDINARY:
                return None
        if length is None:
            return None
        largest = LARGEST_JSON if json_length is None else lane.largest[model.manifest.name]
        if int(length) > largest:
            return None
        return kind(self, lane, model, json_length, request_id)
