"""Decodes uploaded PNG and JPEG files under limits, and converts pictures to grey or RGB.

A picture is turned upright according to its EXIF data, unless they are unreadable. Of an animated
PNG, the first frame is used.
"""

import io
import struct
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from export.bundle.metrics import Array
from service.protocol.errors import InvalidInputError, PayloadTooLargeError, ServiceError

# Pillow's own limit is off: the service's limit is checked before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
FORMATS = ("PNG", "JPEG")
PIXEL_MAX, MID_GREY = 255, 127
# A PNG with at most this many pixels is decoded in less than a millisecond.
MAX_SMALL_PIXELS = 128 * 128
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SIZE = struct.Struct(">II")
_PNG_SIZE_OFFSET = 16
# Chunks of compressed metadata, which may be much larger than the picture.
_COMPRESSED_CHUNKS = (b"zTXt", b"iTXt", b"iCCP")


def decode_picture(
    content: bytes, max_pixels: int, *, draft_side: int | None = None
) -> Image.Image:
    """Decode an uploaded PNG or JPEG file to an upright picture in any of Pillow's modes.

    Args:
        content: The file's bytes.
        max_pixels: The largest width x height; checked before anything is decoded.
        draft_side: Decode a JPEG at an eighth, a quarter or half of its size, if both sides stay
            at least this long; None: at its full size.

    Raises:
        InvalidInputError: The file is not a PNG or JPEG, or is damaged.
        PayloadTooLargeError: The picture has more pixels than allowed.
    """
    if not content:
        raise InvalidInputError("the image is empty (0 bytes); send a PNG or JPEG file")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise PayloadTooLargeError(
                f"the image has {width} x {height} pixels, at most {max_pixels:,} are allowed; "
                "scale it down"
            )
        # Decoding ignores the checksums; checking them uses up the opened file.
        Image.open(io.BytesIO(content), formats=FORMATS).verify()
        if draft_side is not None:
            image.draft(None, (draft_side, draft_side))
        image.load()  # before EXIF is parsed, which would hide damage
        with suppress(Exception):  # from unreadable EXIF data Pillow raises whatever it runs into
            ImageOps.exif_transpose(image, in_place=True)
        return image
    except ServiceError:
        raise
    except UnidentifiedImageError as error:
        raise InvalidInputError(
            f"the {len(content):,} bytes are not a PNG or JPEG image (they start with "
            f"{content[:8]!r}); send a file in one of these formats"
        ) from error
    except Exception as error:
        # Decoders raise whatever their parsing runs into: struct.error, zlib.error, IndexError.
        what = (
            "has text that decompresses to too much data"
            if "MAX_TEXT" in str(error)
            else f"cannot be decoded: {error}"
        )
        raise InvalidInputError(f"the image is damaged: it {what}") from error


def is_small_png(content: bytes) -> bool:
    """Whether this is a PNG without compressed metadata, of at most 16,384 pixels by its header."""
    if not content.startswith(_PNG_SIGNATURE) or len(content) < _PNG_SIZE_OFFSET + _PNG_SIZE.size:
        return False
    width, height = _PNG_SIZE.unpack_from(content, _PNG_SIZE_OFFSET)
    if width * height > MAX_SMALL_PIXELS:
        return False
    return not any(chunk in content for chunk in _COMPRESSED_CHUNKS)


def convert_to_grey(image: Image.Image) -> Image.Image:
    """Convert a picture to mode L: transparent parts become paper, 16 bits become 8."""
    if image.mode.startswith("I"):
        return Image.fromarray(_upper_bits(image))
    if _is_transparent(image):
        return _lay_on_paper(image if image.mode == "RGBA" else image.convert("RGBA"))
    return image.convert("L")


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture to mode RGB: transparent parts become white, 16 bits become 8."""
    if image.mode.startswith("I"):
        return Image.fromarray(_upper_bits(image)).convert("RGB")
    if _is_transparent(image):
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _upper_bits(image: Image.Image) -> Array:
    """Return the upper eight of 16 bits: uint8 [H, W]."""
    return (np.asarray(image, dtype=np.int64) >> 8).clip(0, PIXEL_MAX).astype(np.uint8)


def _lay_on_paper(image: Image.Image) -> Image.Image:
    """Put an RGBA drawing on paper whose brightness makes the ink visible.

    Ink alone is put on white paper, or on black paper if the ink is light. A mostly opaque picture
    already shows its paper, so its transparent parts get the brightness of that paper.
    """
    grey, alpha = image.convert("L"), image.getchannel("A")
    if alpha.getextrema()[0] == PIXEL_MAX:
        return grey
    visible = np.asarray(grey)[np.asarray(alpha) > MID_GREY]
    usual = int(np.median(visible)) if visible.size else 0
    contrast = PIXEL_MAX if usual <= MID_GREY else 0
    paper = usual if visible.size > image.width * image.height / 2 else contrast
    return Image.composite(grey, Image.new("L", image.size, paper), alpha)
