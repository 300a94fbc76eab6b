"""The table of bad requests: the exact bytes of each, and the expected response."""

import json
from dataclasses import dataclass

LIMIT_BYTES = 1_000_000  # as the fixture `service_url` sets INFERENCE_MAX_BODY_BYTES
LAST = b"0\r\n\r\n"  # of a chunked body
IMAGE = [[0] * 28 for _ in range(28)]
PLACE = 77_777  # placeholder for a literal


@dataclass(frozen=True)
class Row:
    """A request and its answer.

    Attributes:
        name: What is wrong with it.
        sent: The bytes, from the request line on.
        statuses: The expected HTTP statuses, usually one.
        named: Regular expressions, each found in the error, or in the answer of a 200.
        parser: Whether the HTTP parser may refuse it, whose message is always the same.
        piece: Number of bytes sent at a time; 0 sends all at once.
    """

    name: str
    sent: bytes
    statuses: tuple[int, ...]
    named: tuple[str, ...] = ()
    parser: bool = False
    piece: int = 0


def request(
    method: str, target: str | bytes, body: bytes | None = None, *headers: str | bytes
) -> bytes:
    """An HTTP/1.1 request, with a Content-Length if it has a body."""
    lines = [method.encode() + b" " + _bytes(target) + b" HTTP/1.1", b"host: service"]
    if body is not None:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*lines, *map(_bytes, headers)]) + b"\r\n\r\n" + (body or b"")


def chunked(target: str, body: bytes, size: int, *headers: str) -> bytes:
    """A POST whose body is sent in chunks of this size."""
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return request("POST", target, None, "transfer-encoding: chunked", *headers) + chunks + LAST


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def dumped(value: object) -> bytes:
    """JSON."""
    return json.dumps(value).encode()


GOOD = dumped({"images": IMAGE})
