"""An uploaded PNG or JPEG becomes what the models read: uint8 [28, 28], 0 = ground, 255 = ink.

A 28x28 grey image with light ink on dark ground, as MNIST's are, passes through bit for bit.
Anything else is turned upright (EXIF), laid on white where it is transparent, made grey,
inverted if its rim is light (ink on paper), scaled and centred on its own ground.
"""

import io

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from export.parity.metrics import Array
from service.errors import InvalidInputError, PayloadTooLargeError

# Looked at here, under the service's own limit, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
SIDE = 28
FORMATS = ("PNG", "JPEG")
MID_GREY = 127
# EXIF 2.32, tag 0x0112: what has to be done to see the picture upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(content: bytes, max_pixels: int) -> Array:
    """Decode an upload.

    Args:
        content: The bytes of a PNG or JPEG file.
        max_pixels: Width x height that is decoded at most; checked before anything is decoded.

    Returns:
        uint8 [28, 28], 0 = ground, 255 = ink.

    Raises:
        InvalidInputError: Not a PNG or JPEG, or a broken one.
        PayloadTooLargeError: More pixels than allowed.
    """
    if not content:
        raise InvalidInputError("the image is empty (0 bytes); send a PNG or JPEG file")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise PayloadTooLargeError(
                f"the image has {width} x {height} pixels, at most {max_pixels:,} are read; "
                "scale it down"
            )
        # The checksums, at which decoding does not look; it uses the opened file up.
        Image.open(io.BytesIO(content), formats=FORMATS).verify()
        image.load()  # here: what looks at EXIF first would hide what is broken
        return to_model_input(image)
    except PayloadTooLargeError:
        raise
    except UnidentifiedImageError as error:
        raise InvalidInputError(
            f"the {len(content):,} bytes are not a PNG or JPEG image (they start with "
            f"{content[:8]!r}); send one of the two"
        ) from error
    except Exception as error:
        # Decoders raise whatever their parsing stumbles on: struct.error, zlib.error, IndexError.
        what = "unfolds to too much" if "MAX_TEXT" in str(error) else f"cannot be decoded: {error}"
        raise InvalidInputError(f"the image is damaged: it {what}") from error


def to_model_input(image: Image.Image) -> Array:
    """Bring an image of any mode and size into the models' form.

    Returns:
        uint8 [28, 28], 0 = ground, 255 = ink.
    """
    grey = _to_grey(_upright(image))
    pixels = np.asarray(grey)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = int(np.median(rim))
    if ground > MID_GREY:
        grey, ground = ImageOps.invert(grey), 255 - ground
    if grey.size != (SIDE, SIDE):
        grey = _fit(grey, ground)
    return np.array(grey, dtype=np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    """Turn or mirror as EXIF's orientation says; an unreadable EXIF block says nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - its parser raises whatever it stumbles on
        return image
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _fit(grey: Image.Image, ground: int) -> Image.Image:
    """Scale the longer side to 28 and centre the image on its own ground."""
    longer = max(grey.size)
    width, height = (max(1, round(side * SIDE / longer)) for side in grey.size)
    # A box filter when shrinking: every pixel of the drawing counts, thin strokes survive.
    filter_ = Image.Resampling.BOX if longer > SIDE else Image.Resampling.BICUBIC
    square = Image.new("L", (SIDE, SIDE), ground)
    square.paste(grey.resize((width, height), filter_), ((SIDE - width) // 2, (SIDE - height) // 2))
    return square


def _to_grey(image: Image.Image) -> Image.Image:
    """Mode L; transparent parts become white paper, 16 bits become 8."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype("u1"))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(paper, rgba)
    return image.convert("L")
