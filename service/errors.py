"""Everything that can be wrong with a request, each with its HTTP status.

    ServiceError
    |-- InvalidInputError        400  not JSON, wrong shape, type or range, not an image
    |-- UnauthorizedError        401  no API key, or another one, where one is asked for
    |-- UnknownModelError        404
    |-- NoFeatureMapsError       404  the model has none to show
    |-- PayloadTooLargeError     413  bytes, pixels or images over a limit
    |-- UnsupportedMediaError    415  a content type or encoding that no endpoint reads
    |-- NothingDrawnError        422  an image as it should be, but for a digit on it
    |-- OverloadedError          429  the queue is full; try again after Retry-After seconds
    `-- DeadlineError            504  it waited too long and was not computed

A message says what came, what was expected and what to do; it is all that a client gets to see.
"""

import math
from enum import Enum
from http import HTTPStatus

LONGEST_SHOWN = 80


def shown(text: object) -> str:
    """What a client sent, as it is named in an error: quoted, and not at any length."""
    quoted = repr(text)
    return quoted if len(quoted) <= LONGEST_SHOWN else f"{quoted[:LONGEST_SHOWN]}..."


class ErrorKind(Enum):
    """All that can become of a request but an answer: a label of the metrics, and its status.

    Attributes:
        label: The kind in a word.
        status: HTTP's.
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
    OVERLOADED = ("overloaded", 429)
    HEAD_TOO_LARGE = ("head_too_large", 431)
    CLIENT_GONE = ("client_gone", 499)  # nginx's code; nobody is there to read it
    ENGINE = ("engine", 500)  # the runtime failed at the batch
    INTERNAL = ("internal", 500)
    TOO_MANY_CONNECTIONS = ("too_many_connections", 503)
    DEADLINE = ("deadline", 504)

    def __init__(self, label: str, status: int) -> None:
        self.label, self.status = label, status


class ServiceError(Exception):
    """A request that is refused; the message goes to the client."""

    kind = ErrorKind.INTERNAL

    @property
    def status(self) -> HTTPStatus:
        """HTTP's."""
        return HTTPStatus(self.kind.status)

    @property
    def headers(self) -> dict[str, str]:
        """Further headers of the answer."""
        return {}


class InvalidInputError(ServiceError):
    """The body is not what the endpoint reads."""

    kind = ErrorKind.INVALID_INPUT


class UnauthorizedError(ServiceError):
    """The API key is missing or wrong."""

    kind = ErrorKind.UNAUTHORIZED

    @property
    def headers(self) -> dict[str, str]:
        """How to authenticate (RFC 6750)."""
        return {"WWW-Authenticate": "Bearer"}


class UnknownModelError(ServiceError):
    """No bundle of that name is served."""

    kind = ErrorKind.UNKNOWN_MODEL


class NoFeatureMapsError(ServiceError):
    """The model's bundle holds no file of its first layer."""

    kind = ErrorKind.NO_FEATURE_MAPS


class PayloadTooLargeError(ServiceError):
    """More bytes, pixels or images than a request may hold."""

    kind = ErrorKind.TOO_LARGE


class UnsupportedMediaError(ServiceError):
    """The content type or encoding is none that the endpoint reads."""

    kind = ErrorKind.UNSUPPORTED_MEDIA


class NothingDrawnError(ServiceError):
    """The image can be read, but there is nothing on it to be read as a digit."""

    kind = ErrorKind.NOTHING_DRAWN


class OverloadedError(ServiceError):
    """More images wait than the queue holds."""

    kind = ErrorKind.OVERLOADED

    def __init__(self, message: str, retry_after_s: float = 1) -> None:
        """Say when the queue will be worked off, in seconds, by the rate measured last."""
        super().__init__(message)
        self._retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """HTTP counts in whole seconds."""
        return {"Retry-After": str(max(1, math.ceil(self._retry_after_s)))}


class DeadlineError(ServiceError):
    """It waited longer than a request may; it was not computed."""

    kind = ErrorKind.DEADLINE
