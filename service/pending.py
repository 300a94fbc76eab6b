"""A request that is answered beneath ASGI, from its body to the bytes of its answer."""

import struct
import time
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.trace import INVALID_SPAN_CONTEXT

from export.parity.metrics import Arrays
from service.adapters.digits import decode_predict as parse_predict
from service.body import uploaded_file
from service.exchange import Exchange
from service.images import read_image
from service.models import ServedModel
from service.oip import BINARY_TYPE, format_infer, parse_infer
from service.reception import REQUEST_ID
from service.responses import error_body, identity_headers, refusal, timing_lines
from service.waiting import Ran

if TYPE_CHECKING:
    from service.fastpath import FastProtocol
    from service.lane import Lane

LARGEST_JSON = 16_384
LARGEST_UPLOAD = 16_384
# A picture of so many pixels is read in less than a millisecond, the other way would take two.
LARGEST_PICTURE = 128 * 128
_PNG = b"\x89PNG\r\n\x1a\n"
# What may unfold to much more than it is, and has nothing to do with the picture.
_COMPRESSED = (b"zTXt", b"iTXt", b"iCCP")


class Head(NamedTuple):
    """What the headers said, as far as it matters here."""

    json_length: str | None
    content_type: str
    request_id: bytes
    headers: list[tuple[bytes, bytes]]


class Pending:
    """One request on its way: the batcher's waiter."""

    endpoint = ""

    def __init__(
        self, protocol: "FastProtocol", lane: "Lane", model: ServedModel, head: Head
    ) -> None:
        self._protocol, self._lane, self.model, self._head = protocol, lane, model, head
        self._samples, self._url = 0, protocol.url
        self._inputs: Arrays = {}
        self._begun_s = time.perf_counter()
        self.body, self.keep_alive, self._queued = b"", True, False

    @staticmethod
    def largest(lane: "Lane", model: ServedModel, head: Head) -> int:
        """Bytes of a body that is read here: longer ones would hold up the others."""
        raise NotImplementedError

    def suits(self) -> bool:
        """Is it, now that its body is there, still one to be answered here?"""
        return True

    def read(self, lane: "Lane") -> Arrays:
        """The checked inputs; may choose another model."""
        raise NotImplementedError

    def write(self, outputs: Arrays) -> tuple[bytes, int | None]:
        """The body of the answer, and how many bytes of it are JSON if not all are."""
        return self.model.answer(outputs, self._inputs), None

    def queue(self) -> None:
        """Check the request and wait for its batch."""
        try:
            self._inputs = self.read(self._lane)
            self._samples = len(next(iter(self._inputs.values())))
            self.model.batcher.enqueue(self._inputs, self._samples, self)
            self._queued = True
            self._protocol.unanswered += 1
        except Exception as error:  # noqa: BLE001 - an answer is due, whatever it was
            self._protocol.answer_first()
            self.fail(error)

    def waits(self) -> bool:
        """False if the client closed the connection."""
        return not self._protocol.transport.is_closing()

    def answer(self, outputs: Arrays, ran: Ran) -> None:
        """Write the answer; whatever goes wrong with it is this request's matter alone."""
        try:
            body, json_length = self.write(outputs)
            head = _head(len(body), json_length, self._lane.identity(self.model))
            if self._lane.answer_headers:
                head += timing_lines(ran)
        except Exception as error:  # noqa: BLE001 - an answer is due, whatever it was
            self.fail(error)
            return
        seconds = self._finish(200, head, body, ran)
        metrics = self._lane.metrics
        metrics.answered(self.model.manifest.name, self.endpoint, self._samples, seconds)

    def fail(self, error: Exception) -> None:
        """Write the refusal."""
        where = f"{self.endpoint} of {self.model.manifest.name}"
        refused = refusal(error, where, self._head.request_id)
        status, body = refused.status, error_body(refused.message)
        lines = [f"HTTP/1.1 {status.value} {status.phrase}", "content-type: application/json"]
        lines += [f"{name.lower()}: {value}" for name, value in refused.headers.items()]
        lines += [f"content-length: {len(body)}"]
        self._finish(status.value, ("\r\n".join(lines) + "\r\n").encode("latin-1"), body)
        self._lane.metrics.refused(refused.kind)

    def _finish(self, status: int, head: bytes, body: bytes, ran: Ran | None = None) -> float:
        """Write the answer; how long it took."""
        request_id, lane = self._head.request_id, self._lane
        head += b"%b: %b\r\n" % (REQUEST_ID, request_id)
        self._protocol.unanswered -= self._queued
        self._protocol.finish(head, body, keep_alive=self.keep_alive)
        seconds = time.perf_counter() - self._begun_s
        if lane.told:
            self._tell(status, seconds, ran)
        return seconds

    def _tell(self, status: int, seconds: float, ran: Ran | None) -> None:
        """Let log and traces know."""
        lane, client, url = self._lane, self._protocol.client, self._url.decode("latin-1")
        exchange = Exchange(self._head.request_id, self._begun_s, client, "POST", url)
        if ran is not None:
            exchange.model, exchange.batch_images = self.model.manifest.name, ran.batch_samples
        span = INVALID_SPAN_CONTEXT
        if lane.tracing is not None:
            span = lane.tracing.request(exchange, self._head.headers, status, seconds, ran)
        if lane.reception.logs:
            lane.reception.log(exchange, status, seconds, span)


class Infer(Pending):
    """A request of the Open Inference Protocol."""

    endpoint = "infer"

    @staticmethod
    def largest(lane: "Lane", model: ServedModel, head: Head) -> int:
        """JSON and, if there are blobs, a batch of them."""
        blobs = 0 if head.json_length is None else lane.batch_bytes[model.manifest.name]
        return LARGEST_JSON + blobs

    def read(self, lane: "Lane") -> Arrays:
        """Its tensors."""
        manifest = self.model.manifest
        self._asked = parse_infer(self.body, self._head.json_length, manifest, lane.limits)
        return self._asked.inputs

    def write(self, outputs: Arrays) -> tuple[bytes, int | None]:
        """The outputs asked for, in the form asked for."""
        return format_infer(outputs, self._asked, self.model.manifest)


class Predict(Pending):
    """Pixels as JSON."""

    endpoint = "predict"

    @staticmethod
    def largest(lane: "Lane", model: ServedModel, head: Head) -> int:
        """A few images."""
        return LARGEST_JSON

    def read(self, lane: "Lane") -> Arrays:
        """Its images."""
        asked = parse_predict(self.body, lane.limits)
        in_query = self.model.manifest.name if b"?" in self._url else None
        self.model = lane.served.chosen(in_query, asked.model)
        return self.model.inputs(asked.images)


class Upload(Pending):
    """A picture as a file; here only small ones as PNG, whose size stands in their first bytes."""

    endpoint = "predict_image"
    _file = b""

    @staticmethod
    def largest(lane: "Lane", model: ServedModel, head: Head) -> int:
        """A small file, with a form around it or without."""
        return LARGEST_UPLOAD

    def suits(self) -> bool:
        """A PNG of few pixels, with nothing compressed in it but them."""
        try:
            content = uploaded_file(self.body, self._head.content_type)
            width, height = struct.unpack(">II", content[16:24])
        except Exception:  # noqa: BLE001 - the ordinary way says in words what is wrong
            return False
        self._file = content
        return (
            content.startswith(_PNG)
            and width * height <= LARGEST_PICTURE
            and not any(chunk in content for chunk in _COMPRESSED)
        )

    def read(self, lane: "Lane") -> Arrays:
        """Its pixels."""
        return self.model.inputs(read_image(self._file, LARGEST_PICTURE)[None])


class Overflow(Pending):
    """What finds the queue of a model full whose batches run in a thread: refused at least cost."""

    endpoint = "overflow"

    @staticmethod
    def largest(lane: "Lane", model: ServedModel, head: Head) -> int:
        """Nothing as long as there is room; then a batch."""
        return LARGEST_JSON + lane.batch_bytes[model.manifest.name] if model.batcher.full else -1

    def suits(self) -> bool:
        """Is there still no room, now that its body is there?"""
        return self.model.batcher.full

    def read(self, lane: "Lane") -> Arrays:
        """Say when there will be."""
        raise self.model.batcher.overloaded(1)


@lru_cache(maxsize=1024)
def _head(length: int, json_length: int | None, identity: bytes) -> bytes:
    lines = ["HTTP/1.1 200 OK"]
    if json_length is None:
        lines += ["content-type: application/json"]
    else:
        lines += [f"content-type: {BINARY_TYPE}", f"inference-header-content-length: {json_length}"]
    lines += [f"content-length: {length}"]
    return ("\r\n".join(lines) + "\r\n").encode() + identity


def identity_lines(model: ServedModel) -> bytes:
    """Who answers, as lines of an answer's head."""
    headers = identity_headers(model)
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")
