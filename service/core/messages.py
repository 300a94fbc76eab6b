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
    """The endpoint and the model that a URL names.

    Attributes:
        endpoint: A name from the table in ``endpoints``; also its label in the metrics.
        model: The model that the path names, if it names one.
        version: The model's version, if the path names one.
        query: The query string.
    """

    endpoint: str
    model: str | None = None
    version: str | None = None
    query: str = ""


@dataclass(slots=True)
class Request:
    """One complete inference request.

    Attributes:
        target: The endpoint and the model that its URL names.
        body: Its body.
        content_type: The Content-Type header; "" if there is none.
        json_length: The header Inference-Header-Content-Length; None if there is none.
        request_id: The id in the response header.
        started_s: The time when its head had been read, from ``time.perf_counter``.
        is_connected: Returns False once the client has disconnected.
        is_stable_only: Only the stable version may answer, because the canary failed.
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
    """A decoded request: its inputs, the model that computes it, and the encoder of its outputs.

    Attributes:
        model: The model's name.
        version: The version that computes it.
        batcher: The model's batcher.
        inputs: Checked arrays by name, N samples each.
        samples: N.
        encode: Encodes the outputs as a body. Its second result is the length of the JSON at the
            body's start, in bytes, if raw tensors follow it; otherwise None.
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
    """A complete response.

    Attributes:
        status: The HTTP status.
        lines: Header lines, each "name: value" with CR LF; without date, connection, request id.
        body: Its body.
        kind: The kind of error; None for a success.
        model: The model that answered.
        timing: Batch size and timing of the computation.
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
    """Return an error response; its body is the Open Inference Protocol's {"error": "text"}.

    Lone surrogates, which a client's JSON may contain and UTF-8 cannot encode, are escaped.
    """
    body = encode_json({"error": message.encode("utf-8", "backslashreplace").decode()})
    lines = [f"{name.lower()}: {value}\r\n" for name, value in (headers or {}).items()]
    lines.append(f"content-length: {len(body)}\r\n")
    return Response(
        HTTPStatus(kind.status), JSON_LINE + "".join(lines).encode("latin-1"), body, kind
    )


def describe_failure(error: Exception, where: str, request_id: bytes) -> Response:
    """Return the response for an exception.

    Errors in the request are described to the client. Internal errors are logged with ``where``
    they happened and their traceback; the client receives only the request id.
    """
    if isinstance(error, ServiceError):
        return refuse(error.kind, str(error), error.headers)
    name = request_id.decode("latin-1")
    logger.error("request %s failed in %s", name, where, exc_info=error, extra={"request_id": name})
    kind = ErrorKind.ENGINE if isinstance(error, EngineError) else ErrorKind.INTERNAL
    return refuse(
        kind,
        "internal error of the service, not of the request; its log has the details of "
        f"request {name}",
    )
