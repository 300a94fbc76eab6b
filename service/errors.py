"""Everything that can be wrong with a request, each with its HTTP status.

    ServiceError
    |-- InvalidInputError        400  not JSON, wrong shape, type or range, not an image
    |-- UnauthorizedError        401  no API key, or another one, where one is asked for
    |-- UnknownModelError        404
    |-- PayloadTooLargeError     413  bytes, pixels or images over a limit
    |-- UnsupportedMediaError    415  a content type or encoding that no endpoint reads
    |-- OverloadedError          429  the queue is full; try again after Retry-After seconds
    `-- DeadlineError            504  it waited too long and was not computed

A message says what came, what was expected and what to do; it is all that a client gets to see.
"""

import math
from http import HTTPStatus

LONGEST_SHOWN = 80


def shown(text: object) -> str:
    """What a client sent, as it is named in an error: quoted, and not at any length."""
    quoted = repr(text)
    return quoted if len(quoted) <= LONGEST_SHOWN else f"{quoted[:LONGEST_SHOWN]}..."


class ServiceError(Exception):
    """A request that is refused; the message goes to the client."""

    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR

    @property
    def headers(self) -> dict[str, str]:
        """Further headers of the answer."""
        return {}


class InvalidInputError(ServiceError):
    """The body is not what the endpoint reads."""

    status = HTTPStatus.BAD_REQUEST


class UnauthorizedError(ServiceError):
    """The API key is missing or wrong."""

    status = HTTPStatus.UNAUTHORIZED

    @property
    def headers(self) -> dict[str, str]:
        """How to authenticate (RFC 6750)."""
        return {"WWW-Authenticate": "Bearer"}


class UnknownModelError(ServiceError):
    """No bundle of that name is served."""

    status = HTTPStatus.NOT_FOUND


class PayloadTooLargeError(ServiceError):
    """More bytes, pixels or images than a request may hold."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnsupportedMediaError(ServiceError):
    """The content type or encoding is none that the endpoint reads."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class OverloadedError(ServiceError):
    """More images wait than the queue holds."""

    status = HTTPStatus.TOO_MANY_REQUESTS

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

    status = HTTPStatus.GATEWAY_TIMEOUT
