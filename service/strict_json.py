"""JSON as the standard has it: no NaN, no key twice, UTF-8 alone, nested so deep and no deeper."""

import json
import re
from collections import Counter
from typing import Any, NoReturn

import numpy as np

from service.errors import InvalidInputError, shown

# Possessive, and closed or not: each byte is looked at once, whatever comes.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
FAR_OUT = 2**63
_OPENS, _CLOSES = b"[{", b"]}"


def parse_json(body: bytes, expected: str, max_depth: int) -> object:
    """A JSON value (RFC 8259).

    Args:
        body: What the client sent.
        expected: What is expected in its place, for the error's text.
        max_depth: Lists and objects within each other, at most.

    Raises:
        InvalidInputError: Says what came and what was expected.
    """

    def refuse_constant(name: str) -> NoReturn:
        raise InvalidInputError(f"the body holds {name}, which is not JSON; expected {expected}")

    if not body:
        raise InvalidInputError(f"the body is empty; expected {expected}")
    _check_depth(body, max_depth)
    try:
        # Decoded here: json would guess at UTF-16 and UTF-32, which JSON on the wire is not.
        return json.loads(
            body.decode(), parse_constant=refuse_constant, object_pairs_hook=_with_single_keys
        )
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"the body is not JSON: it is no UTF-8 text (byte {error.start}); image files go to "
            "/predict/image"
        ) from error
    except json.JSONDecodeError as error:
        raise InvalidInputError(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except ValueError as error:  # Python reads no integer of thousands of digits
        raise InvalidInputError("the body holds a number of too many digits") from error


def _with_single_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two values for one key nobody can say which was meant."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise InvalidInputError(f"the key {shown(twice)} is given twice in one object")
    return found


def _check_depth(body: bytes, max_depth: int) -> None:
    """Refuse what is nested too deeply before a parser, which would recurse, looks at it."""
    if body.count(b"[") + body.count(b"{") <= max_depth:
        return
    depth = _depth(_STRING.sub(b"", body))  # brackets in strings nest nothing
    if depth > max_depth:
        raise InvalidInputError(
            f"the body's lists and objects are nested {depth:,} deep; at most {max_depth} are read"
        )


def _depth(text: bytes) -> int:
    values = np.frombuffer(text, np.uint8)
    steps = np.zeros(len(values), np.int8)
    for opening in _OPENS:
        steps[values == opening] = 1
    for closing in _CLOSES:
        steps[values == closing] = -1
    return int(np.cumsum(steps, dtype=np.int64).max(initial=0))


def json_value(value: object) -> str:
    """A value as it came, if it is a number of readable length; else its kind."""
    if type(value) is float:
        return f"{value}, a fraction"
    if type(value) is int:
        return str(value) if abs(value) < FAR_OUT else "a number far out of range"
    return json_kind(value)


def json_kind(value: object) -> str:
    """A value's kind in JSON's own words."""
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return kinds.get(type(value), "a value of another kind")
