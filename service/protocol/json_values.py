"""Decodes strict JSON (RFC 8259): no NaN, no duplicate keys, UTF-8 only, a limited depth.

msgspec decodes; it checks neither duplicate keys nor depth, and its messages lack line and column.
Both checks count brackets and colons outside of strings, which adds a few percent to the decoding
time. A body that is refused is decoded again by the standard library, for its error message.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import msgspec
import numpy as np

from service.protocol.errors import InvalidInputError, quote_value

# Possessive quantifiers, and an optional closing quote: the time is linear in the body's length.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_TOO_LARGE_TO_SHOW = 2**63
# msgspec's error messages for a value that does not fit its type, and its names for JSON types.
_WRONG_KIND = re.compile(r"Expected `([^`]+)`, got `(\w+)`")
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_WHERE = re.compile(r" - at `\$(.*)`$")
_EXPECTED_KINDS = {
    "object": "an object",
    "array": "a list",
    "str": "a string",
    "int": "an integer",
    "bool": "true or false",
    "null": "null",
}
_RECEIVED_KINDS = _EXPECTED_KINDS | {"int": "a number", "float": "a number"}
T = TypeVar("T")
# In ASCII a bracket and its brace differ by this bit, and "|" lies between "{" and "}".
_BRACE_BIT, _BETWEEN_BRACES = 0x20, ord("|")


def parse_json(body: bytes, expected: str, max_depth: int) -> object:
    """Decode a JSON document.

    Args:
        body: The bytes that the client sent.
        expected: What the endpoint expects, for the error message.
        max_depth: The largest nesting depth of lists and objects.

    Returns:
        dict, list, str, int, float, bool or None. Numbers too large for float64 become infinite.

    Raises:
        InvalidInputError: The body is empty, not JSON, nested too deeply, or has duplicate keys.
    """
    if not body:
        raise InvalidInputError(f"the body is empty; expected {expected}")
    outside = _remove_strings(body)
    _check_depth(outside, max_depth)
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return _parse_slowly(body, expected)
    if has_all_pairs(value, outside.count(b":")):
        return value
    return _parse_slowly(body, expected)


def convert_json(
    value: object,
    type_: type[T],
    expected: str,
    describe: Callable[[str, type[T]], str] | None = None,
) -> T:
    """Check the types of a decoded document, or of a part of it.

    Args:
        value: A value that ``parse_json`` returned.
        type_: The type that msgspec converts it to.
        expected: What the endpoint expects, for the error message.
        describe: Rewords msgspec's error; the default is for a ``type_`` that is a Struct.

    Raises:
        InvalidInputError: A value is missing, unknown or of another type; names the first one.
    """
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        words = (describe or _describe_misfit)(str(error), type_)
        raise InvalidInputError(f"{words}; send {expected}") from error
    except UnicodeEncodeError as error:  # msgspec cannot convert such a key or string
        known = ", ".join(getattr(type_, "__struct_fields__", ["lists and numbers"]))
        raise InvalidInputError(
            f"the body contains {error.object[error.start]!a}, half of a surrogate pair, which is "
            f"not a character; known: {known}; send {expected}"
        ) from error


def _describe_misfit(problem: str, type_: Any) -> str:
    """Reword an error of msgspec, e.g. "inputs.0.shape is a number; expected a list"."""
    found = _WHERE.search(problem)
    path = found[1].replace("[", ".").replace("]", "").lstrip(".") if found else ""
    if missing := _MISSING.match(problem):
        return f"the field {f'{path}.{missing[1]}'.lstrip('.')} is missing"
    if unknown := _UNKNOWN.match(problem):
        known = ", ".join(type_.__struct_fields__)
        return f"unknown field {quote_value(unknown[1])}; known: {known}"
    if wrong := _WRONG_KIND.match(problem):
        wanted = " or ".join(_EXPECTED_KINDS[kind] for kind in wrong[1].split(" | "))
        return f"{path or 'the body'} is {_RECEIVED_KINDS[wrong[2]]}; expected {wanted}"
    return problem


def encode_json(value: object) -> bytes:
    """Encode lists, dictionaries and scalars as compact UTF-8 JSON.

    Args:
        value: Must not contain NumPy arrays, or NaN and infinity, which would become null.
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # half of a surrogate pair, sent by a client
        return json.dumps(value, separators=(",", ":")).encode()


def _parse_slowly(body: bytes, expected: str) -> object:
    """Do what ``parse_json`` does, with the standard library's decoder."""

    def refuse_constant(name: str) -> NoReturn:
        raise InvalidInputError(f"the body contains {name}, which is not JSON; expected {expected}")

    try:
        # The bytes are decoded here, because json would also accept UTF-16 and UTF-32.
        return json.loads(
            body.decode(), parse_constant=refuse_constant, object_pairs_hook=_refuse_duplicate_keys
        )
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"the body is not JSON: it is not UTF-8 text (byte {error.start}); send image files "
            "to /predict/image"
        ) from error
    except json.JSONDecodeError as error:
        raise InvalidInputError(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except ValueError as error:  # Python refuses integers of thousands of digits
        raise InvalidInputError("the body contains a number with too many digits") from error


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise InvalidInputError(f"the key {quote_value(twice)} is given twice in one object")
    return found


def has_all_pairs(value: object, pairs: int) -> bool:
    """Whether the objects within a value hold this many pairs; with a repeated key they hold fewer.

    The search goes level by level and ends at the last pair, so lists of numbers below the last
    object are not visited.
    """
    level: list[Any] = [value]
    while pairs > 0 and level:
        below: list[Any] = []
        for part in level:
            if type(part) is dict:
                pairs -= len(part)
                below.extend(part.values())
            elif type(part) is list:
                below.extend(part)
        level = below
    return pairs == 0


def _remove_strings(body: bytes) -> bytes:
    """Return the JSON text without its strings, whose brackets and colons must not be counted."""
    if b"\\" in body:
        return _STRING.sub(b"", body)
    return b"".join(body.split(b'"')[::2])


def _check_depth(outside: bytes, max_depth: int) -> None:
    """Refuse deep nesting before decoding, because decoders are recursive."""
    if outside.count(b"[") + outside.count(b"{") <= max_depth:
        return
    braces = np.frombuffer(outside, np.uint8) | _BRACE_BIT
    braces = braces[(braces == ord("{")) | (braces == ord("}"))]
    # The code of "{" is one less than that of "|", the code of "}" one more: depth +1 and -1.
    depth = int(np.cumsum(_BETWEEN_BRACES - braces.astype(np.int64)).max(initial=0))
    if depth > max_depth:
        raise InvalidInputError(
            f"the body's lists and objects are nested {depth:,} deep; at most {max_depth} "
            "levels are allowed"
        )


def json_value(value: object) -> str:
    """Describe a JSON value in an error message: the number if it is short, otherwise its type."""
    if type(value) is float:
        return f"{value}, a fraction"
    if type(value) is int:
        return str(value) if abs(value) < _TOO_LARGE_TO_SHOW else "a number far out of range"
    return json_kind(value)


def json_kind(value: object) -> str:
    """Name the type of a JSON value in an error message, for example "a list"."""
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
