"""Exactly the JSON of the standard is accepted."""

import json
import random
from collections import Counter
from collections.abc import Callable

import pytest

from service.protocol import json_values
from service.protocol.errors import InvalidInputError
from service.protocol.json_values import encode_json, parse_json


def _read(body: bytes, depth: int = 8) -> object:
    return parse_json(body, "something", depth)


@pytest.mark.parametrize(
    "value", [None, 7, -0.5, "text", [], {}, {"a": [1, {"b": "]}"}]}, ["[" * 50, "\\[" * 50]]
)
def test_what_is_json_is_read(value: object) -> None:
    """Any JSON value is read, and brackets in strings do not count as nesting."""
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
        ('{"é": 1}'.encode("latin-1"), "not UTF-8 text"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8 text"),
        (b"1" * 5000, "number with too many digits"),
        (b"[1] [2]", "Extra data"),
    ],
)
def test_what_is_not_is_refused_in_words(body: bytes, named: str) -> None:
    """The message names what came."""
    with pytest.raises(InvalidInputError, match=named):
        _read(body)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'["]", ['])
def test_depth_is_limited_before_anything_is_parsed(opening: bytes) -> None:
    """JSON up to the depth limit is parsed; one level more is refused before parsing."""
    levels = opening.count(b"[") + opening.count(b"{")
    allowed, further = opening * (8 // levels), opening * (8 // levels + 1)
    with pytest.raises(InvalidInputError, match="line 1"):
        _read(allowed)
    with pytest.raises(InvalidInputError, match=r"deep; at most 8 levels are allowed"):
        _read(further)
    with pytest.raises(InvalidInputError, match="1,000,000 deep; at most 8"):
        _read(b"[" * 1_000_000)


def test_endless_strings_are_looked_at_once() -> None:
    """Millions of quotes and backslashes without an end do not slow the service down."""
    for part in (b'\\"', b'"\\', b'""', b"\\"):
        with pytest.raises(InvalidInputError):
            _read(b"[" * 9 + part * 2_000_000)


def test_what_msgspec_decodes_is_what_the_standard_library_decodes() -> None:
    """For twenty thousand damaged documents, both decoders give the same value or error."""
    documents = [
        b'{"images": [[0, 255], [7, 1]], "model": "cnn"}',
        b'[{"a": [1.5e3, -0.0, 1e400, {"b": [true, null]}], "\\u00e9": "\\ud83d\\ude00"}]',
        '{"k": "\u00e9:{[", "K": {"k": ":"}, "n": [18446744073709551616, -9]}'.encode(),
    ]
    generator = random.Random(0)  # noqa: S311 - damages, not secrets
    outcomes = Counter[str]()
    for _ in range(20_000):
        body = bytearray(generator.choice(documents))
        for _ in range(generator.randint(0, 2)):
            position = generator.randrange(len(body))
            body[position : position + generator.randint(0, 2)] = generator.choice(
                [b"k", b'"', b":", b",", b"\\", b"[", b"}", b"9", b"\xff", b"e", b" ", b"\\ud800"]
            )
        found = _outcome(parse_json, bytes(body))
        assert found == _outcome(_parse_by_the_standard_library, bytes(body)), bytes(body)
        outcomes[found[0]] += 1
    assert min(outcomes.values()) > 4_000


def _outcome(parse: Callable[[bytes, str, int], object], body: bytes) -> tuple[str, str]:
    """A comparable value or error, including NaN and infinity, in which 1 is not 1.0."""
    try:
        return "value", repr(parse(body, "something", 32))
    except InvalidInputError as error:
        return "error", str(error)


def _parse_by_the_standard_library(body: bytes, expected: str, max_depth: int) -> object:
    if not body:
        raise InvalidInputError(f"the body is empty; expected {expected}")
    return json_values._parse_slowly(body, expected)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ({"a": [1, 0.5, True, None, "é"]}, '{"a":[1,0.5,true,null,"é"]}'),
        ({"id": "\ud800"}, '{"id":"\\ud800"}'),
    ],
)
def test_json_is_compact_and_utf8(value: object, encoded: str) -> None:
    """A lone surrogate, which UTF-8 cannot encode, is escaped."""
    assert encode_json(value).decode() == encoded
