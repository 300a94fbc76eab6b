"""JSON is read as the standard has it, and nothing beyond."""

import json

import pytest

from service.protocol.errors import InvalidInputError
from service.protocol.json_values import parse_json


def _read(body: bytes, depth: int = 8) -> object:
    return parse_json(body, "something", depth)


@pytest.mark.parametrize(
    "value", [None, 7, -0.5, "text", [], {}, {"a": [1, {"b": "]}"}]}, ["[" * 50, "\\[" * 50]]
)
def test_what_is_json_is_read(value: object) -> None:
    """Any value; brackets in strings nest nothing."""
    assert _read(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "empty"),
        (b"{", "line 1, column 2"),
        (b"NaN", "NaN, which is not JSON"),
        (b"[-Infinity]", "-Infinity, which is not JSON"),
        (b'{"a": 1, "b": 2, "a": 3}', "key 'a' is given twice"),
        (b'[{"x": {"y": 1, "y": 1}}]', "key 'y' is given twice"),
        ('{"é": 1}'.encode("latin-1"), "no UTF-8 text"),
        ('{"a": 1}'.encode("utf-16"), "no UTF-8 text"),
        (b"1" * 5000, "number of too many digits"),
        (b"[1] [2]", "Extra data"),
    ],
)
def test_what_is_not_is_refused_in_words(body: bytes, named: str) -> None:
    """The message names what came."""
    with pytest.raises(InvalidInputError, match=named):
        _read(body)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'["]", ['])
def test_depth_is_limited_before_anything_is_parsed(opening: bytes) -> None:
    """As deep as allowed is read, or found broken; one level more is not even looked at."""
    levels = opening.count(b"[") + opening.count(b"{")
    allowed, further = opening * (8 // levels), opening * (8 // levels + 1)
    with pytest.raises(InvalidInputError, match="line 1"):
        _read(allowed)
    with pytest.raises(InvalidInputError, match=r"deep; at most 8 are read"):
        _read(further)
    with pytest.raises(InvalidInputError, match="1,000,000 deep; at most 8"):
        _read(b"[" * 1_000_000)


def test_endless_strings_are_looked_at_once() -> None:
    """Millions of quotes and backslashes that close nothing do not hold up the service."""
    for part in (b'\\"', b'"\\', b'""', b"\\"):
        with pytest.raises(InvalidInputError):
            _read(b"[" * 9 + part * 2_000_000)
