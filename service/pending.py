"""A request that is answered beneath ASGI, from its body to the bytes of its answer."""

from functools import lru_cache
from typing import TYPE_CHECKING

from export.parity.metrics import Arrays
from service.models import ServedModel
from service.oip import BINARY_TYPE, format_infer, parse_infer
from service.protocol import parse_predict
from service.responses import error_body, refusal

if TYPE_CHECKING:
    from service.fastpath import FastProtocol, Lane


class Pending:
    """One request on its way: the batcher's waiter."""

    endpoint = ""

    def __init__(
        self,
        protocol: "FastProtocol",
        lane: "Lane",
        model: ServedModel,
        json_length: str | None,
        request_id: bytes | None,
    ) -> None:
        self._protocol, self._lane, self.model = protocol, lane, model
        self.json_length, self._request_id = json_length, request_id
        self._samples = 0
        self.body, self.keep_alive = b"", True

    def read(self, lane: "Lane") -> Arrays:
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
        refused = refusal(error, f"{self.endpoint} of {self.model.manifest.name}")
        status, body = refused.status, error_body(refused.message)
        lines = [f"HTTP/1.1 {status.value} {status.phrase}", "content-type: application/json"]
        lines += [f"{name.lower()}: {value}" for name, value in refused.headers.items()]
        lines += [f"content-length: {len(body)}"]
        head = ("\r\n".join(lines) + "\r\n").encode("latin-1")
        self._protocol.finish(head + _echo(self._request_id), body, keep_alive=self.keep_alive)
        self._lane.metrics.refused(status.value)


class Infer(Pending):
    """A request of the Open Inference Protocol."""

    endpoint = "infer"

    def read(self, lane: "Lane") -> Arrays:
        """Its tensors."""
        manifest = self.model.manifest
        self._asked = parse_infer(self.body, self.json_length, manifest, lane.max_samples)
        return self._asked.inputs

    def write(self, outputs: Arrays) -> tuple[bytes, int | None]:
        """The outputs asked for, in the form asked for."""
        return format_infer(outputs, self._asked, self.model.manifest)


class Predict(Pending):
    """Pixels as JSON."""

    endpoint = "predict"

    def read(self, lane: "Lane") -> Arrays:
        """Its images."""
        asked = parse_predict(self.body, lane.max_samples)
        if asked.model is not None:
            self.model = lane.served.get(asked.model)
        return self.model.inputs(asked.images)

    def write(self, outputs: Arrays) -> tuple[bytes, int | None]:
        """Labels and probabilities."""
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
