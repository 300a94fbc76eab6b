"""The errors that a request can end with, each with its HTTP status.

    ServiceError
    |-- InvalidInputError        400  not JSON, wrong shape, datatype or range, not an image
    |-- UnauthorizedError        401  an API key is required, and it is missing or wrong
    |-- UnknownModelError        404  no such model is served
    |-- NoFeatureMapsError       404  the model has no feature maps
    |-- PayloadTooLargeError     413  bytes, pixels or samples over a limit
    |-- UnsupportedMediaError    415  a content type or encoding that the endpoint does not support
    |-- NothingDrawnError        422  a readable image without a digit on it
    |-- NonFiniteOutputError     422  the answer holds NaN or infinity, which JSON cannot express
    |-- OverloadedError          429  the queue is full; Retry-After says when to try again
    |-- NotReadyError            503  the model is not verified, or fails its golden samples
    `-- DeadlineError            504  the request waited too long and was not computed

The message goes to the client. It says what came, what was expected and what to do.
"""

import math
from enum import Enum

MAX_QUOTED_CHARACTERS = 80


def quote_value(value: object) -> str:
    """Return the ``repr`` of a client's value for an error message, cut to 80 characters."""
    quoted = repr(value)
    if len(quoted) <= MAX_QUOTED_CHARACTERS:
        return quoted
    return f"{quoted[:MAX_QUOTED_CHARACTERS]}..."


class ErrorKind(Enum):
    """The ways in which a request can fail.

    Attributes:
        label: The value of the label in the metrics.
        status: The HTTP status code.
    """

    INVALID_INPUT = ("invalid_input", 400)
    NOT_HTTP = ("not_http", 400)
    UNAUTHORIZED = ("unauthorized", 401)
    UNKNOWN_MODEL = ("unknown_model", 404)
    NO_FEATURE_MAPS = ("no_feature_maps", 404)
    UNKNOWN_PATH = ("unknown_path", 404)
    WRONG_METHOD = ("wrong_method", 405)
    TOO_LARGE = ("too_large", 413)
    UNSUPPORTED_MEDIA = ("unsupported_media", 415)
    NOTHING_DRAWN = ("nothing_drawn", 422)
    NON_FINITE_OUTPUT = ("non_finite_output", 422)
    OVERLOADED = ("overloaded", 429)
    HEAD_TOO_LARGE = ("head_too_large", 431)
    CLIENT_GONE = ("client_gone", 499)  # nginx's code; the client never sees it
    ENGINE = ("engine", 500)  # the inference runtime failed on the batch
    INTERNAL = ("internal", 500)
    TOO_MANY_CONNECTIONS = ("too_many_connections", 503)
    NOT_READY = ("not_ready", 503)
    DEADLINE = ("deadline", 504)

    def __init__(self, label: str, status: int) -> None:
        self.label, self.status = label, status


class ServiceError(Exception):
    """A request is refused; the message goes to the client.

    Attributes:
        kind: The kind of error, set by each subclass; it has the HTTP status.
        headers: Additional headers of the response.
    """

    kind: ErrorKind
    headers: dict[str, str]

    def __init_subclass__(cls, kind: ErrorKind, headers: dict[str, str] | None = None) -> None:
        cls.kind, cls.headers = kind, headers or {}


class InvalidInputError(ServiceError, kind=ErrorKind.INVALID_INPUT):
    """The request's body or query does not have the form that the endpoint expects."""


class UnauthorizedError(
    ServiceError, kind=ErrorKind.UNAUTHORIZED, headers={"WWW-Authenticate": "Bearer"}
):
    """The API key is missing or wrong; the header gives the authentication scheme (RFC 6750)."""


class UnknownModelError(ServiceError, kind=ErrorKind.UNKNOWN_MODEL):
    """No model of that name is served."""


class NoFeatureMapsError(ServiceError, kind=ErrorKind.NO_FEATURE_MAPS):
    """The model's bundle holds no file of its first layer."""


class PayloadTooLargeError(ServiceError, kind=ErrorKind.TOO_LARGE):
    """The request holds more bytes, pixels or samples than the limits allow."""


class UnsupportedMediaError(ServiceError, kind=ErrorKind.UNSUPPORTED_MEDIA):
    """The endpoint or the model does not support this content type or encoding."""


class NothingDrawnError(ServiceError, kind=ErrorKind.NOTHING_DRAWN):
    """The image can be decoded, but there is no digit on it."""


class NonFiniteOutputError(ServiceError, kind=ErrorKind.NON_FINITE_OUTPUT):
    """The model's answer holds NaN or infinity, but was requested as JSON."""


class OverloadedError(ServiceError, kind=ErrorKind.OVERLOADED):
    """The queue has no room for the request's samples."""

    def __init__(self, message: str, retry_after_s: float = 1) -> None:
        """Set Retry-After to the time until the queue has room, in whole seconds, at least 1."""
        super().__init__(message)
        self.headers = {"Retry-After": str(max(1, math.ceil(retry_after_s)))}


class NotReadyError(ServiceError, kind=ErrorKind.NOT_READY, headers={"Retry-After": "1"}):
    """The model is not verified yet, or it failed its golden samples in this worker."""


class DeadlineError(ServiceError, kind=ErrorKind.DEADLINE):
    """The request waited longer than the timeout and was not computed."""
