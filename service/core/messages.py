"""Requests and responses of the inference endpoints, independent of the transport."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple

from export.bundle.metrics import Arrays
from service.engine.batcher import Batcher, EngineError
from service.observability.records import BatchTiming
from service.protocol.errors import ErrorKind, ServiceError
from service.protocol.json_values import encode_json

logger = logging.getLogger("bentoml.service")

JSON_LINE = b"content-type: application/json\r\n"


class Target(NamedTuple):
    """What a URL asks for.

    Attributes:
        endpoint: A name of the table in ``endpoints``, which is also the label of the metrics.
        model: The model that the path names, if it names one.
        version: Its version, if the path names it.
        query: The query string.
    """

    endpoint: str
    model: str | None = None
    version: str | None = None
    query: str = ""


@dataclass(slots=True)
class Request:
    """One inference request, received whole.

    Attributes:
        target: What its URL asks for.
        body: Its body.
        content_type: The header of that name; "" without one.
        json_length: The header Inference-Header-Content-Length, if it has one.
        request_id: As in the answer's header.
        started_s: When its head had been read, by ``time.perf_counter``.
        is_connected: Returns False once the client has gone.
        is_stable_only: The stable version answers it, although the canary would: it failed.
    """

    target: Target
    body: bytes
    content_type: str
    json_length: str | None
    request_id: bytes
    started_s: float
    is_connected: Callable[[], bool]
    is_stable_only: bool = False


@dataclass(slots=True)
class Job:
    """A decoded request: what is computed, by which model, and how the outputs are encoded.

    Attributes:
        model: The model's name.
        version: The version that computes it.
        batcher: The model's batcher.
        inputs: By name, checked, N samples each.
        samples: N.
        encode: Makes the body of the outputs; its second result is the number of bytes of JSON at
            the body's start if raw tensors follow it, otherwise None.
        identity_lines: Header lines that name the model, its version, variant and provider.
    """

    model: str
    version: str
    batcher: Batcher
    inputs: Arrays
    samples: int
    encode: Callable[[Arrays], tuple[bytes, int | None]]
    identity_lines: bytes


class Response(NamedTuple):
    """A whole response.

    Attributes:
        status: The HTTP status.
        lines: Header lines, each "name: value" with CR LF; without date, connection, request id.
        body: Its body.
        kind: What kind of refusal it is; None for an answer.
        model: The model that answered.
        timing: How it was computed.
    """

    status: int
    lines: bytes
    body: bytes
    kind: ErrorKind | None = None
    model: str | None = None
    timing: BatchTiming | None = None

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the header lines as pairs of lower-case name and value."""
        pairs = [line.partition(b": ") for line in self.lines.splitlines()]
        return [(name, value) for name, _, value in pairs]


def refuse(kind: ErrorKind, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return the response of a refused request, the Open Inference Protocol's {"error": "text"}.

    Lone surrogates, which a client's JSON may hold and UTF-8 cannot express, are escaped.
    """
    body = encode_json({"error": message.encode("utf-8", "backslashreplace").decode()})
    lines = [f"{name.lower()}: {value}\r\n" for name, value in (headers or {}).items()]
    lines.append(f"content-length: {len(body)}\r\n")
    return Response(
        HTTPStatus(kind.status), JSON_LINE + "".join(lines).encode("latin-1"), body, kind
    )


def describe_failure(error: Exception, where: str, request_id: bytes) -> Response:
    """Return the response for an exception.

    Errors of the request are described to the client. Faults of the service are logged with their
    traceback and ``where`` they happened; the client gets the request's id.
    """
    if isinstance(error, ServiceError):
        return refuse(error.kind, str(error), error.headers)
    name = request_id.decode("latin-1")
    logger.error("request %s failed at %s", name, where, exc_info=error, extra={"request_id": name})
    kind = ErrorKind.ENGINE if isinstance(error, EngineError) else ErrorKind.INTERNAL
    return refuse(
        kind, f"the service failed, not the request; its log tells more of request {name}"
    )
