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
import logging
import uuid
from functools import lru_cache
from http import HTTPStatus

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from export.parity.metrics import Arrays
from service.errors import ServiceError
from service.metrics import Metrics
from service.models import ServedModel, ServedModels
from service.oip import (
    BINARY_TYPE,
    format_infer,
    infer_urls,
    parse_infer,
)
from service.protocol import parse_predict
from service.responses import error_body, incident_message
from service.tensors import sample_bytes

logger = logging.getLogger("bentoml.service")

REGISTERED = "service.fastpath:FastProtocol"
LARGEST_JSON = 16_384
COUNTED_EVERY_S = 0.5
# Whoever sends one of these wants something that only the ordinary way does.
ORDINARY = {b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"}


class Lane:
    """What is answered here: the requests' readers by the exact bytes of their URLs."""

    def __init__(self, models: ServedModels, metrics: Metrics, max_samples: int) -> None:
        """Collect the URLs of all models whose batches run in the event loop."""
        self.served, self.metrics, self.max_samples = models, metrics, max_samples
        here = [model for model in models.all() if model.batcher.in_loop]
        self._batchers = [model.batcher for model in here]
        self.routes: dict[bytes, tuple[type[_Pending], ServedModel]] = {}
        for model in here:
            for url in infer_urls(model.manifest):
                self.routes[url.encode()] = (_Infer, model)
            self.routes[f"/predict?model={model.manifest.name}".encode()] = (_Predict, model)
        if len(here) == len(models.all()):  # whichever the body names is answered here
            self.routes[b"/predict"] = (_Predict, models.get(None))
        self._answered: dict[tuple[str, str], int] = {}
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
        self._answered[model, endpoint] = self._answered.get((model, endpoint), 0) + samples

    def count(self) -> None:
        """Tell the metrics what was answered."""
        for (model, endpoint), samples in self._answered.items():
            self.metrics.answered(model, endpoint, samples)
        self._answered.clear()

    def default_headers(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Uvicorn's headers as lines; it makes a new list of them each second, for the date."""
        if headers is not self._headers:
            self._headers = headers
            self._lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return self._lines


def install(lane: Lane) -> None:
    """Let new connections of this process answer by themselves."""
    FastProtocol.lane = lane


def register() -> None:
    """Make uvicorn use this protocol where it chooses one itself; before it is configured."""
    HTTP_PROTOCOLS["auto"] = REGISTERED


class FastProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools, with a short way for inference requests."""

    lane: "Lane | None" = None
    _fast: "_Pending | None" = None

    def on_headers_complete(self) -> None:
        """Take the request if it is of the plain kind; else the ordinary way."""
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
        if self._fast is None:
            super().on_message_complete()
        else:
            fast, self._fast = self._fast, None
            fast.keep_alive = self.parser.should_keep_alive()
            fast.queue()

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
        closing = b"" if keep_alive else b"connection: close\r\n"
        self.transport.write(b"".join([head, defaults, closing, b"\r\n", body]))
        if keep_alive:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self.transport.close()

    def _accepted(
        self, lane: Lane, kind: "type[_Pending]", model: ServedModel
    ) -> "_Pending | None":
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
        largest = LARGEST_JSON
        if json_length is not None:
            sample = sum(sample_bytes(spec) for spec in model.manifest.inputs)
            largest += model.batcher.max_batch_samples * sample
        if int(length) > largest:  # it would hold up the others, or does not fit into a batch
            return None
        return kind(self, lane, model, json_length, request_id)


class _Pending:
    """One request on its way: the batcher's waiter."""

    endpoint = ""

    def __init__(
        self,
        protocol: FastProtocol,
        lane: Lane,
        model: ServedModel,
        json_length: str | None,
        request_id: bytes | None,
    ) -> None:
        self._protocol, self._lane, self.model = protocol, lane, model
        self.json_length, self._request_id = json_length, request_id
        self._samples = 0
        self.body, self.keep_alive = b"", True

    def read(self, lane: Lane) -> Arrays:
        """The checked inputs; may choose another model."""
        raise NotImplementedError

    def write(self, outputs: Arrays) -> tuple[bytes, int | None]:
        """The body of the answer, and how many bytes of it are JSON if not all are."""
        raise NotImplementedError

    def queue(self) -> None:
        """Check the request and wait for its batch."""
        try:
            inputs = self.read(self._lane)
            self._samples = len(next(iter(inputs.values())))
            self.model.batcher.enqueue(inputs, self._samples, self)
        except Exception as error:  # noqa: BLE001 - an answer is due, whatever it was
            self._lane.flush()
            self.fail(error)

    def waits(self) -> bool:
        """False if the client closed the connection."""
        return not self._protocol.transport.is_closing()

    def answer(self, outputs: Arrays) -> None:
        """Write the answer."""
        body, json_length = self.write(outputs)
        head = _head(len(body), json_length, self._request_id)
        self._protocol.finish(head, body, keep_alive=self.keep_alive)
        self._lane.answered(self.model.manifest.name, self.endpoint, self._samples)

    def fail(self, error: Exception) -> None:
        """Write the refusal."""
        headers: dict[str, str] = {}
        if isinstance(error, ServiceError):
            status, message, headers = error.status, str(error), error.headers
        else:
            incident = uuid.uuid4().hex[:12]
            logger.error("incident %s", incident, exc_info=error)
            status, message = HTTPStatus.INTERNAL_SERVER_ERROR, incident_message(incident)
        body = error_body(message)
        lines = [f"HTTP/1.1 {status.value} {status.phrase}", "content-type: application/json"]
        lines += [f"{name.lower()}: {value}" for name, value in headers.items()]
        lines += [f"content-length: {len(body)}"]
        head = ("\r\n".join(lines) + "\r\n").encode("latin-1")
        self._protocol.finish(head + _echo(self._request_id), body, keep_alive=self.keep_alive)
        self._lane.metrics.refused(status.value)


class _Infer(_Pending):
    """A request of the Open Inference Protocol."""

    endpoint = "infer"

    def read(self, lane: Lane) -> Arrays:
        manifest = self.model.manifest
        self._asked = parse_infer(self.body, self.json_length, manifest, lane.max_samples)
        return self._asked.inputs

    def write(self, outputs: Arrays) -> tuple[bytes, int | None]:
        return format_infer(outputs, self._asked, self.model.manifest)


class _Predict(_Pending):
    """Pixels as JSON."""

    endpoint = "predict"

    def read(self, lane: Lane) -> Arrays:
        asked = parse_predict(self.body, lane.max_samples)
        if asked.model is not None:
            self.model = lane.served.get(asked.model)
        return self.model.inputs(asked.images)

    def write(self, outputs: Arrays) -> tuple[bytes, int | None]:
        return self.model.answer(outputs), None


@lru_cache(maxsize=1024)
def _head(length: int, json_length: int | None, request_id: bytes | None) -> bytes:
    lines = ["HTTP/1.1 200 OK"]
    if json_length is None:
        lines += ["content-type: application/json"]
    else:
        lines += [f"content-type: {BINARY_TYPE}", f"inference-header-content-length: {json_length}"]
    lines += [f"content-length: {length}"]
    return ("\r\n".join(lines) + "\r\n").encode() + _echo(request_id)


def _echo(request_id: bytes | None) -> bytes:
    """The client's own id, given back; the parser let no line break into a header."""
    return b"" if request_id is None else b"x-request-id: %b\r\n" % request_id
