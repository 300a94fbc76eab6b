"""The old name of ``service.protocol.errors``."""

from service.protocol.errors import (
    DeadlineError,
    ErrorKind,
    InvalidInputError,
    NoFeatureMapsError,
    NothingDrawnError,
    OverloadedError,
    PayloadTooLargeError,
    ServiceError,
    UnauthorizedError,
    UnknownModelError,
    UnsupportedMediaError,
    quote_value,
)

shown = quote_value

__all__ = [
    "DeadlineError",
    "ErrorKind",
    "InvalidInputError",
    "NoFeatureMapsError",
    "NothingDrawnError",
    "OverloadedError",
    "PayloadTooLargeError",
    "ServiceError",
    "UnauthorizedError",
    "UnknownModelError",
    "UnsupportedMediaError",
    "shown",
]
