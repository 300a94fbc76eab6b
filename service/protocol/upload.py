"""Extracts the image file from an upload: a multipart form's field ``image``, or the whole body."""

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from service.protocol.errors import InvalidInputError, UnsupportedMediaError, quote_value

IMAGE_FIELD = "image"
IMAGE_TYPES = ("image/png", "image/jpeg", "application/octet-stream")
MAX_PARTS = 8
MAX_SHOWN_CHARACTERS = 200


def uploaded_file(body: bytes, content_type: str) -> bytes:
    """Return the bytes of an uploaded image file; ``content_type`` is the header's value, or "".

    Raises:
        UnsupportedMediaError: The content type is neither a form nor an image.
        InvalidInputError: The form is malformed, or does not hold exactly one file ``image``.
    """
    media_type = content_type.split(";")[0].strip().lower()
    if media_type in IMAGE_TYPES:
        return body
    if media_type != "multipart/form-data":
        raise UnsupportedMediaError(
            f"the content type is {media_type[:40] or '(none)'}; send a form with the file field "
            f"{IMAGE_FIELD} (multipart/form-data), or the file itself as image/png or image/jpeg"
        )
    _, options = parse_options_header(content_type)
    try:
        names, files = _parse_form(body, options.get("boundary", ""))
    except (MultipartError, UnicodeError) as error:
        raise InvalidInputError(f"the form cannot be read: {error}") from error
    if not files:
        there = ", ".join(ascii(name) for name in sorted(names)) or "none"
        raise InvalidInputError(
            f"the form has no file in a field named {IMAGE_FIELD} (fields: "
            f"{there[:MAX_SHOWN_CHARACTERS]}); try: curl -F {IMAGE_FIELD}=@digit.png"
        )
    if further := [name for name in names if name != IMAGE_FIELD]:
        raise InvalidInputError(
            f"the form has another field, {quote_value(further[0])}; expected only the file "
            f"{IMAGE_FIELD}; name the model in the URL: /predict/image?model=NAME"
        )
    return b"".join(files[0])


def _parse_form(body: bytes, boundary: str) -> tuple[list[str], list[list[bytes]]]:
    """Return the names of a form's fields, and the chunks of the file ``image``, if present."""
    # Latin-1 decodes any file name; field names are decoded again below.
    parser = PushMultipartParser(boundary, header_charset="latin-1", strict=True)
    names: list[str] = []
    files: list[list[bytes]] = []
    chunks: list[bytes] = []
    for event in parser.parse(body):
        if isinstance(event, MultipartSegment):
            name = (event.name or "").encode("latin-1", "replace").decode("utf-8", "replace")
            if name == IMAGE_FIELD and name in names:
                raise MultipartError(
                    f"it has several files in the field {IMAGE_FIELD}; send one per request"
                )
            if len(names) == MAX_PARTS:
                raise MultipartError(f"it has more than {MAX_PARTS} parts")
            names.append(name)
            chunks = []
            if name == IMAGE_FIELD and event.filename is not None:
                files.append(chunks)
        elif event is not None:
            chunks.append(bytes(event))
    try:
        parser.close()
    except MultipartError as error:
        raise MultipartError("it ends before its last boundary") from error
    return names, files
