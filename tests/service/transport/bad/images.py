"""Bad uploads: truncated, damaged, foreign and oversized images, and broken forms."""

import io
import pickle
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image

from tests.service.transport.bad.rows import GOOD, Row, request

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_END = 33  # of a PNG: signature and IHDR
# With a dark edge, as in MNIST's images.
NOISE = Image.fromarray(np.pad(np.random.default_rng(0).integers(0, 256, (26, 26), np.uint8), 1))
TYPES = "image/png or image/jpeg"


def _encoded(format_: str, image: Image.Image = NOISE, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def _png(
    width: int, height: int, pixels: bytes, *, bits: int = 8, colour: int = 0, extra: bytes = b""
) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return SIGNATURE + header + extra + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((28, 28), np.uint8))
    return file.getvalue()


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("digit.png", PNG)
    return file.getvalue()


def _upload(
    name: str, content: bytes, *named: str, status: int = 400, kind: str = "image/png"
) -> Row:
    sent = request("POST", "/predict/image", content, f"content-type: {kind}")
    return Row(f"image: {name}", sent, (status,), named)


PNG, JPEG = _encoded("PNG"), _encoded("JPEG")
PIXELS = zlib.compress(bytes(29 * 28))
DAMAGED = "damaged|truncated|cut|checksum|CRC|PNG or JPEG"
BOMB = zlib.compress(bytes(50_000_000))
FRAMES = [NOISE, *(Image.new("L", (28, 28), grey) for grey in (100, 200))]

CUT = [
    _upload(f"PNG cut after {end} of {len(PNG)} bytes", PNG[:end], DAMAGED)
    for end in (1, 7, 8, 20, HEADER_END - 1, HEADER_END, HEADER_END + 5, 60, len(PNG) // 2)
]
CUT += [
    _upload("PNG without its last 20 bytes", PNG[:-20], DAMAGED),
    _upload("PNG without its end", PNG[:-12], DAMAGED),
    _upload("PNG with a wrong header CRC", PNG[:29] + b"\0\0\0\0" + PNG[33:], DAMAGED),
    _upload("PNG with a wrong pixel CRC", PNG[:-16] + b"\0\0\0\0" + PNG[-12:], DAMAGED),
    _upload("PNG whose pixels are garbage", _png(28, 28, b"garbage"), DAMAGED),
    _upload("PNG with too few pixels", _png(28, 28, zlib.compress(bytes(100))), DAMAGED),
    _upload("PNG with unknown filters", _png(28, 28, zlib.compress(b"\x09" * 812)), DAMAGED),
    _upload("PNG without pixels", PNG[:HEADER_END] + _chunk(b"IEND", b""), DAMAGED),
    _upload("PNG of 7 bits", _png(28, 28, PIXELS, bits=7), DAMAGED),
    _upload("PNG of an unknown colour type", _png(28, 28, PIXELS, colour=5), DAMAGED),
    _upload("PNG of no pixels", _png(0, 0, PIXELS), DAMAGED),
    _upload("PNG with an endless part", SIGNATURE + b"\xff\xff\xff\xffIHDR" + bytes(20), DAMAGED),
]
CUT += [
    _upload(f"JPEG cut after {end} bytes", JPEG[:end], DAMAGED, kind="image/jpeg")
    for end in (2, 3, 10, 20, 100, 300, len(JPEG) // 2, len(JPEG) - 2)
]
LARGE = [
    _upload("1001 x 1000 pixels", _png(1001, 1000, PIXELS), "1001 x 1000", "1,000,000", status=413),
    _upload("50,000 x 50,000 pixels", _png(50_000, 50_000, PIXELS), "50,?000 x 50", status=413),
    _upload("2^31 pixels a side", _png(2**31 - 1, 2**31 - 1, PIXELS), "2147483647", status=413),
    _upload(
        "1 x 1,000,001 pixels, all there",
        _encoded("PNG", Image.new("L", (1, 1_000_001))),
        *("1 x 1000001", "1,000,000"),
        status=413,
    ),
    _upload("50 MB of text in it", _png(28, 28, PIXELS, extra=_chunk(b"zTXt", b"k\0\0" + BOMB))),
    _upload("50 MB of profile in it", _png(28, 28, PIXELS, extra=_chunk(b"iCCP", b"k\0\0" + BOMB))),
    _upload("a million bytes and one", b"\0" * 1_000_001, "1,000,001", "1,000,000", status=413),
]
FOREIGN = {
    "GIF": _encoded("GIF"),
    "BMP": _encoded("BMP"),
    "WEBP": _encoded("WEBP"),
    "TIFF": _encoded("TIFF"),
    "ICO": _encoded("ICO", Image.new("L", (32, 32))),
    "PGM": _encoded("PPM"),
    "PDF": _encoded("PDF"),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "HTML": b"<!doctype html><html></html>",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n",
    "text": b"seven",
    "JSON": GOOD,
    "a URL": b"http://127.0.0.1/7.png",
    "a file's URL": b"file:///etc/passwd",
    "a data URL": b"data:image/png;base64,iVBORw0KGgo=",
    "base64": b"iVBORw0KGgoAAAANSUhEUg==",
    "a pickle": pickle.dumps([1]),
    "a zip": _zip(),
    "an npy": _npy(),
    "raw pixels": bytes(784),
}
OTHERS = [
    _upload(name, content, "PNG or JPEG", f"{len(content):,} bytes", kind=kind)
    for name, content in FOREIGN.items()
    for kind in ("application/octet-stream",)
]
OTHERS += [
    _upload(f"{name} as image/png", FOREIGN[name], "PNG or JPEG") for name in ("GIF", "SVG", "ICO")
]
OTHERS += [
    _upload("empty", b"", "empty", "PNG or JPEG"),
    _upload(
        "animated PNG: its first frame",
        _encoded("PNG", FRAMES[0], save_all=True, append_images=FRAMES[1:]),
        '"predictions"',
        status=200,
    ),
    _upload("JPEG called a PNG", JPEG, '"predictions"', status=200),
    _upload("one pixel", _encoded("PNG", Image.new("L", (1, 1))), "nothing is drawn", status=422),
]
KINDS = [
    _upload(
        f"content type {kind or 'empty'}",
        PNG,
        kind.split(";")[0] or "none",
        TYPES,
        status=415,
        kind=kind,
    )
    for kind in (
        *("text/plain", "application/json", "image/gif", "image/svg", "application/pdf", "image"),
        *("multipart/mixed; boundary=x", "application/x-www-form-urlencoded", "image/avif", ""),
    )
]
KINDS += [
    Row("image: no content type", request("POST", "/predict/image", PNG), (415,), ("none", TYPES)),
    _upload("content type IMAGE/PNG", PNG, '"predictions"', status=200, kind="IMAGE/PNG; x=y"),
]
FILE = b'Content-Disposition: form-data; name="image"; filename="7.png"\r\n\r\n'
TEXT = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n7\r\n'
PART = b"--x\r\n" + FILE + PNG + b"\r\n"
FORM = PART + b"--x--\r\n"
FORM_KIND = "multipart/form-data; boundary=x"
UNREADABLE = "form cannot be read"
NO_FILE = "no file in a field named image"
NAMELESS = f"{UNREADABLE}|{NO_FILE}"
ENDS = "end|truncated|cut|incomplete|boundary"


def _form(name: str, body: bytes, *named: str, status: int = 400, kind: str = FORM_KIND) -> Row:
    return _upload(f"form {name}", body, *named, status=status, kind=kind)


FORMS = [
    _form("without a boundary", FORM, UNREADABLE, "boundary", kind="multipart/form-data"),
    _form("with an empty boundary", FORM, UNREADABLE, kind="multipart/form-data; boundary="),
    _form("with another boundary", FORM, UNREADABLE, kind="multipart/form-data; boundary=y"),
    _form("with a long boundary", FORM, UNREADABLE, kind=f"{FORM_KIND}{'x' * 3000}"),
    _form("empty", b"", f"{NO_FILE}|{ENDS}"),
    _form("of nothing but its end", b"--x--\r\n", NO_FILE),
    _form("cut in a part's head", b"--x\r\nContent-Disp", f"{NO_FILE}|{ENDS}"),
    _form("cut in the picture", PART[:200], ENDS),
    _form("cut before its end", PART, ENDS),
    _form("that begins another part", PART + b"--x\r\n", ENDS),
    _form("whose picture is cut", FORM.replace(PNG, PNG[:200]), DAMAGED),
    _form("with line feeds alone", FORM.replace(b"\r\n", b"\n"), UNREADABLE),
    _form("of JSON", GOOD, UNREADABLE),
    _form("whose part says nothing", b"--x\r\n\r\n" + PNG + b"\r\n--x--\r\n", NAMELESS),
    _form("without a name", FORM.replace(b'name="image"; ', b""), NAMELESS),
    _form("with another field", FORM.replace(b'"image"', b'"file"'), NO_FILE, "'file'"),
    _form("with a huge field name", FORM.replace(b'"image"', b'"%b"' % (b"a" * 50_000))),
    _form("with a URL for a file", TEXT % b"image" + b"--x--\r\n", NO_FILE, "'image'"),
    _form("with two files", PART + FORM, UNREADABLE, "files"),
    _form("with a text of that name first", TEXT % b"image" + FORM, "image", "twice|two|file"),
    _form("with a text of that name last", PART + TEXT % b"image" + b"--x--\r\n", "image"),
    _form("that names a model", TEXT % b"model" + FORM, "model"),
    _form("with 1,000 fields", TEXT % b"a" * 1000 + FORM, UNREADABLE, "fields|parts"),
    _form("with an empty file", FORM.replace(PNG, b""), "empty", "PNG or JPEG"),
    _form("with a text file", FORM.replace(PNG, b"seven"), "5 bytes", "PNG or JPEG"),
    _form("with a URL in the file", FORM.replace(PNG, b"http://127.0.0.1/7.png"), "PNG or JPEG"),
    _form("without a file name", FORM.replace(b"7.png", b""), '"predictions"', status=200),
    _form("with a path for a file name", FORM.replace(b"7.", b"../"), "predictions", status=200),
    _form(
        "in an unknown charset", FORM, '"predictions"', status=200, kind=f"{FORM_KIND}; charset=q"
    ),
    _form(
        "in a charset that cannot say its name",
        FORM.replace(b'"image"', b'"\xff"'),
        f"charset|{NO_FILE}",
        kind=f"{FORM_KIND}; charset=punycode",
    ),
]
ROWS = [*CUT, *LARGE, *OTHERS, *KINDS, *FORMS]
