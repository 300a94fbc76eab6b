"""Requests that break HTTP: lengths, chunks, encodings, versions, heads, upgrades."""

import gzip
import zlib

from tests.service.transport.bad.rows import GOOD, LAST, LIMIT_BYTES, Row, chunked, request
from tests.service.transport.bad.tensors import LENGTH, RAW, URL

PREDICT, UPLOAD = "/predict", "/predict/image"
PNG_KIND = "content-type: image/png"
ANSWERED = '"predictions"'


def _parser(name: str, sent: bytes, *statuses: int) -> Row:
    """A request that the parser refuses, with its own message or with ours."""
    return Row(f"wire: {name}", sent, statuses or (400,), parser=True)


def _head(name: str, *lines: str | bytes, body: bytes = GOOD) -> Row:
    return _parser(name, request("POST", PREDICT, None, *lines) + body)


def _row(name: str, sent: bytes, status: int, *named: str, piece: int = 0) -> Row:
    return Row(f"wire: {name}", sent, (status,), named, piece=piece)


RIGHT = f"content-length: {len(GOOD)}"
CHUNKED = "transfer-encoding: chunked"
LENGTHS = [
    _head("length no number", "content-length: abc"),
    _head("length negative", "content-length: -5"),
    _head("length with a plus", "content-length: +5"),
    _head("length with a comma", f"{RIGHT}, {len(GOOD)}"),
    _head("length in hexadecimal", "content-length: 0x10"),
    _head("length empty", "content-length:"),
    _head("length of no digit", b"content-length: \xb2"),
    _head("length of 24 digits", "content-length: " + "9" * 24),
    _head("length of 5,000 zeros", "content-length: " + "0" * 5000 + str(len(GOOD))),
    _head("length twice", RIGHT, RIGHT),
    _head("length twice, differing", RIGHT, "content-length: 2"),
    _head("length and chunks", RIGHT, CHUNKED, body=b"2\r\n{}\r\n" + LAST),
    _head("chunks and length", CHUNKED, RIGHT, body=b"2\r\n{}\r\n" + LAST),
    # Bytes after the first request are read as a second one, which the parser may refuse first.
    _parser("no length, so no body", request("POST", PREDICT) + GOOD),
    _parser("length too small", request("POST", PREDICT, None, "content-length: 9") + GOOD),
]
LENGTHS += [
    _row(
        f"100 MB announced for {path}, {headers[0]}",
        request("POST", path, None, "content-length: 100000000", *headers) + b"{}",
        *(413, "100,000,000", "1,000,000"),
    )
    for path, headers in (
        (PREDICT, [PNG_KIND]),
        (PREDICT, ["expect: 100-continue"]),
        (UPLOAD, [PNG_KIND]),
        (URL, [f"{LENGTH}: 0"]),
    )
]
BEYOND = bytes(LIMIT_BYTES + 65_536)
CHUNKS = [
    _head("chunk's size no number", CHUNKED, body=b"zz\r\n{}\r\n" + LAST),
    _head("chunk's size negative", CHUNKED, body=b"-2\r\n{}\r\n" + LAST),
    _head("chunk's size 2^72", CHUNKED, body=b"f" * 18 + b"\r\n{}\r\n" + LAST),
    _head("chunk's size with 0x", CHUNKED, body=b"0x2\r\n{}\r\n" + LAST),
    _head("chunk too long", CHUNKED, body=b"2\r\n{}}\r\n" + LAST),
    _head("chunks twice", CHUNKED, CHUNKED, body=b"2\r\n{}\r\n" + LAST),
    _head("chunks not last", "transfer-encoding: chunked, gzip", body=b"2\r\n{}\r\n" + LAST),
    _head("an unknown transfer encoding", "transfer-encoding: zip", body=GOOD),
    Row(
        "wire: a compressed transfer",
        chunked(PREDICT, GOOD, 100).replace(b": chunked", b": gzip, chunked", 1),
        (400, 415),
        ("gzip",),
        parser=True,
    ),
    _row("good, a byte a chunk", chunked(PREDICT, GOOD, 1), 200, ANSWERED),
    _row("good, byte by byte", chunked(PREDICT, GOOD, 500), 200, ANSWERED, piece=1),
    _row("bad, a byte a chunk", chunked(PREDICT, GOOD[:-9], 1), 400, "not JSON"),
    _row("bad, a byte a chunk, byte by byte", chunked(PREDICT, b"{", 1), 400, "JSON", piece=1),
    _row("pixels, a byte a chunk", chunked(URL, RAW, 1, f"{LENGTH}: 0"), 200, '"cnn"'),
    _row("no chunk", chunked(PREDICT, b"", 1), 400, "empty"),
    _row("chunks beyond the limit", chunked(PREDICT, BEYOND, 65_536), 413, "1,000,000"),
    _row("pixels beyond the limit", chunked(URL, BEYOND, 9_999, f"{LENGTH}: 0"), 413, "1,000,000"),
    _row("a file beyond the limit", chunked(UPLOAD, BEYOND, 65_536, PNG_KIND), 413, "1,000,000"),
    _row(
        "trailers without end",
        chunked(PREDICT, GOOD, 500)[:-2] + b"x: y\r\n" * 50_000 + b"\r\n",
        *(431, "(?i)head|trailer"),
        piece=10_000,
    ),
]
ENCODED = {"gzip": gzip.compress(GOOD), "deflate": zlib.compress(GOOD), "br": b"\x0b\x02\x80{}\x03"}
BOMB = gzip.compress(b" " * 50_000_000)
ENCODINGS = [
    _row(
        f"{coding} for {path}",
        request("POST", path, ENCODED[coding], f"content-encoding: {coding}", kind),
        *(415, coding),
    )
    for coding in ENCODED
    for path, kind in ((PREDICT, PNG_KIND), (UPLOAD, PNG_KIND), (URL, f"{LENGTH}: 0"))
]
ENCODINGS += [
    _row(f"{name} for {path}", request("POST", path, BOMB, header, PNG_KIND), 415, "(?i)gzip")
    for name, header in (
        ("a gzip bomb", "content-encoding: gzip"),
        ("gzip twice", "content-encoding: gzip, gzip"),
        ("GZIP", "Content-Encoding: GZIP"),
    )
    for path in (PREDICT, UPLOAD, URL)
]
ENCODINGS += [
    _row("gzip unsaid", request("POST", PREDICT, BOMB), 400, "UTF-8"),
    _row("identity", request("POST", PREDICT, GOOD, "content-encoding: identity"), 200, ANSWERED),
]
FLOOD = [f"x-{i}: {'a' * 100}" for i in range(3000)]
TOO_LARGE = "(?i)head"
HEADS = [
    _row("a flood of headers", request("GET", "/v2", None, *FLOOD), 431, TOO_LARGE, piece=10_000),
    _row("a flood of headers at once", request("GET", "/v2", None, *FLOOD[:1500]), 431, TOO_LARGE),
    _row("a header of 200,000", request("GET", "/v2", None, "x: " + "a" * 200_000), 431, TOO_LARGE),
    Row(
        "wire: a URL of 300,000", request("GET", "/" + "a" * 300_000), (400, 414, 431), ("",), True
    ),
    Row("wire: a URL of 70,000", request("GET", "/" + "a" * 70_000), (400, 414, 431), ("",), True),
    _parser("a NUL in a header", request("GET", "/v2", None, b"x: a\0b")),
    _parser("a header without a colon", request("GET", "/v2", None, "x")),
    _parser("a header without a name", request("GET", "/v2", None, ": x")),
    _parser("a space before the colon", request("GET", "/v2", None, "x : y")),
    _parser("a folded header", request("GET", "/v2", None, "x: a", " b")),
    _parser("bare line feeds", request("GET", "/v2").replace(b"\r\n", b"\n")),
    _parser("bare carriage returns", request("GET", "/v2").replace(b"\r\n", b"\r") + b"\n"),
    _parser("no Host", request("GET", "/v2").replace(b"host: service\r\n", b"")),
    _parser("two Hosts", request("GET", "/v2", None, "host: other")),
    _parser("a Host of two words", request("GET", "/v2").replace(b"service", b"a b/c")),
]
VERSIONS = [
    _parser(f"version {version}", request("GET", "/v2").replace(b"HTTP/1.1", version.encode()))
    for version in ("HTTP/3.0", "HTTP/2.0", "HTTP/1.7", "HTTP/9.9", "HTTP/x", "http/1.1", "FTP/1.1")
]
VERSIONS += [
    _parser("no version", b"GET /v2\r\n\r\n"),
    _parser("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    _parser("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50)),
    _parser("SSH", b"SSH-2.0-OpenSSH_9.6\r\n"),
    _parser("noise", b"\xff\xfe\xfd\x00" * 20 + b"\r\n\r\n"),
    _row("HTTP/1.0", request("GET", "/v2").replace(b"HTTP/1.1", b"HTTP/1.0"), 200, '"name"'),
]
SOCKET = (
    *("connection: Upgrade", "upgrade: websocket", "sec-websocket-version: 13"),
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
)
UPGRADES = [
    Row(f"wire: websocket on {path}", request("GET", path, None, *SOCKET), statuses)
    for path, statuses in (
        (PREDICT, (400, 403, 405, 426)),
        (URL, (400, 403, 405, 426)),
        ("/nowhere", (400, 403, 404, 426)),
    )
]
UPGRADES += [
    Row("wire: websocket by POST", request("POST", URL, RAW[1:], f"{LENGTH}: 0", *SOCKET), (400,)),
    _row("HTTP/2 offered", request("GET", "/v2", None, "upgrade: h2c"), 200, '"name"'),
    _row(
        "HTTP/2 offered in full",
        request("GET", "/v2", None, "connection: Upgrade, HTTP2-Settings", "upgrade: h2c"),
        *(200, '"name"'),
    ),
    _row("expects to go on", request("POST", PREDICT, GOOD, "expect: 100-continue"), 200, ANSWERED),
    _row(
        "expects to go on, bad", request("POST", PREDICT, b"{", "expect: 100-continue"), 400, "JSON"
    ),
]
# Headers that neither change the answer nor cause a refusal.
STRANGE = [
    _row(f"header {header[:30]!a}", request("POST", PREDICT, GOOD, header), 200, ANSWERED)
    for header in (
        *("traceparent: 00-zz-zz-01", "traceparent: " + "f" * 9000, "x-request-id: \u2026 %s {}"),
        *("accept: application/xml", "range: bytes=0-3", "authorization: Bearer", "cookie: =;=;"),
        *("if-none-match: *", "te: gzip", "origin: null", "forwarded: for=_x", "x-api-key: "),
    )
]
ROWS = [*LENGTHS, *CHUNKS, *ENCODINGS, *HEADS, *VERSIONS, *UPGRADES, *STRANGE]
