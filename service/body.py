"""Reading a request's body under a limit: as it is, or the image file in it."""

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message

from service.errors import InvalidInputError, PayloadTooLargeError, UnsupportedMediaError

IMAGE_FIELD = "image"


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body, given up as soon as it is known to be too large.

    Raises:
        PayloadTooLargeError: Announced or sent more than ``max_bytes``.
    """
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


async def read_upload(request: Request, max_bytes: int) -> bytes:
    """An image file's bytes: the field ``image`` of a form, or the whole body.

    Raises:
        UnsupportedMediaError: Neither a form nor an image by its content type.
        InvalidInputError: A form without that field, or a broken one.
    """
    body = await read_body(request, max_bytes)
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type in ("image/png", "image/jpeg", "application/octet-stream"):
        return body
    if media_type != "multipart/form-data":
        raise UnsupportedMediaError(
            f"content type {media_type or '(none)'}; send a form with the file field "
            f"{IMAGE_FIELD} (multipart/form-data), or the file itself as image/png or image/jpeg"
        )

    async def replay() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        async with Request(request.scope, replay).form(
            max_files=1, max_fields=8, max_part_size=max_bytes
        ) as form:
            upload = form.get(IMAGE_FIELD)
            if not isinstance(upload, UploadFile):
                there = ", ".join(ascii(name) for name in sorted(form)) or "none"
                raise InvalidInputError(
                    f"the form has no file in a field named {IMAGE_FIELD} (fields: {there}); "
                    f"try: curl -F {IMAGE_FIELD}=@digit.png"
                )
            return await upload.read()
    except (HTTPException, MultiPartException) as error:
        detail = error.detail if isinstance(error, HTTPException) else error.message
        raise InvalidInputError(f"the form cannot be read: {detail}") from error
    except (UnicodeError, LookupError) as error:
        raise InvalidInputError(f"the form's charset cannot be read: {error}") from error
