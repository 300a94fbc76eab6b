"""The query string of the /predict endpoints: which model, and whether to return the image."""

from typing import NamedTuple
from urllib.parse import parse_qsl

from service.protocol.errors import InvalidInputError, quote_value

MODEL, SHOW = "model", "show"
SHOWABLE = "image"


class Query(NamedTuple):
    """A checked query string.

    Attributes:
        model: The model's name; None if the query names none.
        show: Whether to return the image as the model reads it.
    """

    model: str | None
    show: bool


def decode_query(query_string: str, known: tuple[str, ...] = (MODEL,)) -> Query:
    """Decode a percent-encoded query string; ``known`` are the endpoint's parameters.

    Raises:
        InvalidInputError: A parameter is unknown or repeated, or ``show`` is not "image".
    """
    if not query_string:
        return Query(None, False)
    found: dict[str, str] = {}
    for name, value in parse_qsl(query_string, keep_blank_values=True):
        if name not in known:
            raise InvalidInputError(
                f"unknown query parameter {quote_value(name)}; known: {', '.join(known)}"
            )
        if name in found:
            raise InvalidInputError(f"the query parameter {name} is given twice; send it once")
        found[name] = value
    if found.get(SHOW, SHOWABLE) != SHOWABLE:
        raise InvalidInputError(
            f"the query parameter {SHOW} is {quote_value(found[SHOW])}; expected "
            f"{SHOW}={SHOWABLE}, which returns the 28x28 pixels that the model receives"
        )
    return Query(found.get(MODEL), SHOW in found)
