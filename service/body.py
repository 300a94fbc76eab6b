"""A request's body: read under a limit, and the image file in it."""

from typing import TYPE_CHECKING

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from service.errors import InvalidInputError, PayloadTooLargeError, UnsupportedMediaError, shown

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

IMAGE_FIELD = "image"
IMAGE_TYPES = ("image/png", "image/jpeg", "application/octet-stream")
MOST_PARTS = 8
SHOWN_NAMES = 200


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body, given up as soon as it is known to be too large.

    Raises:
        PayloadTooLargeError: Announced or sent more than ``max_bytes``.
        UnsupportedMediaError: It is compressed; a small bomb could fill the memory.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaError(
            f"content encoding {shown(encoding)} is not read; send the body as it is"
        )
    transfer = request.headers.get("transfer-encoding", "chunked").strip().lower()
    if transfer != "chunked":
        raise UnsupportedMediaError(
            f"transfer encoding {shown(transfer)} is not read; send the body in plain chunks"
        )
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise PayloadTooLargeError(
            f"the body has {int(announced):,} bytes, at most {max_bytes:,} are read"
        )
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise PayloadTooLargeError(f"the body has more than the {max_bytes:,} bytes allowed")
    return bytes(body)


def uploaded_file(body: bytes, content_type: str) -> bytes:
    """An image file's bytes: the field ``image`` of a form, or the whole body.

    Args:
        body: What the client sent.
        content_type: The header of that name, "" if there is none.

    Raises:
        UnsupportedMediaError: Neither a form nor an image by its content type.
        InvalidInputError: A form without that field, or a broken one.
    """
    media_type = content_type.split(";")[0].strip().lower()
    if media_type in IMAGE_TYPES:
        return body
    if media_type != "multipart/form-data":
        raise UnsupportedMediaError(
            f"content type {media_type[:40] or '(none)'}; send a form with the file field "
            f"{IMAGE_FIELD} (multipart/form-data), or the file itself as image/png or image/jpeg"
        )
    _, options = parse_options_header(content_type)
    form = _Form()
    try:
        parser = MultipartParser(options.get(b"boundary", b""), form.callbacks())
        parser.write(body)
        parser.finalize()
    except (MultipartParseError, ValueError) as error:
        raise InvalidInputError(f"the form cannot be read: {error}") from error
    if not form.ended:
        raise InvalidInputError("the form cannot be read: it ends before its last boundary")
    if IMAGE_FIELD not in form.files:
        there = ", ".join(ascii(name) for name in sorted(form.names)) or "none"
        raise InvalidInputError(
            f"the form has no file in a field named {IMAGE_FIELD} (fields: {there[:SHOWN_NAMES]}); "
            f"try: curl -F {IMAGE_FIELD}=@digit.png"
        )
    if further := [name for name in form.names if name != IMAGE_FIELD]:
        raise InvalidInputError(
            f"the form has another field, {shown(further[0])}; it may have the file {IMAGE_FIELD} "
            "alone, and the model is named in the URL: /predict/image?model=NAME"
        )
    return bytes(form.files[IMAGE_FIELD])


class _Form:
    """What a multipart parser finds: the parts that bear a file name, by their field."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.files: dict[str, bytearray] = {}
        self.ended = False
        self._header = self._value = b""
        self._disposition = ""
        self._data: bytearray | None = None

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_header,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._disposition, self._data = "", None

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value.decode("latin-1")
        self._header = self._value = b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name in self.names and name == IMAGE_FIELD:
            raise ValueError(f"it has several files in the field {IMAGE_FIELD}; send one a request")
        if len(self.names) == MOST_PARTS:
            raise ValueError(f"it has more than {MOST_PARTS} parts")
        self.names.append(name)
        if b"filename" in options:
            self._data = self.files[name] = bytearray()

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._data is not None:
            self._data += data[start:end]

    def _end(self) -> None:
        self.ended = True
