"""An uploaded PNG or JPEG becomes what the models read: uint8 [28, 28], 0 = ground, 255 = ink.

A picture, of an animated PNG the first, is turned upright (EXIF), laid on paper where it is
transparent, and made grey. What has MNIST's form by then passes through bit for bit: 28x28 pixels,
of whose rim nine in ten are dark, as in every MNIST image; and, as its exact negative, the same in
dark ink on light paper. Everything else, a 28x28 picture with a grey or busy rim too, is drawn anew
as MNIST was made (see ``mnist_form``). What shows nothing is refused.
"""

import io

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from export.parity.metrics import Array
from service.errors import InvalidInputError, NothingDrawnError, PayloadTooLargeError, ServiceError
from service.mnist_form import LEAST_CONTRAST, PIXEL_MAX, SIDE, to_mnist_form

# Looked at here, under the service's own limit, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
FORMATS = ("PNG", "JPEG")
# Of MNIST's 70,000 images none has more than 5 lighter pixels on its rim of 108.
DARK, LIGHT_ON_RIM = 31, 10
MID_GREY = 127
# A JPEG is decoded in an eighth, a quarter or half of its size, as long as that is this much.
JPEG_SIDE = 1024
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
_RIM = np.ones((SIDE, SIDE), np.bool_)
_RIM[1:-1, 1:-1] = False


def read_image(content: bytes, max_pixels: int) -> Array:
    """Decode an upload.

    Args:
        content: The bytes of a PNG or JPEG file.
        max_pixels: Width x height that is decoded at most; checked before anything is decoded.

    Returns:
        uint8 [28, 28], 0 = ground, 255 = ink.

    Raises:
        InvalidInputError: Not a PNG or JPEG, or a broken one.
        NothingDrawnError: There is nothing on it.
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
        image.draft(None, (JPEG_SIDE, JPEG_SIDE))
        image.load()  # here: what looks at EXIF first would hide what is broken
        grey = _to_grey(_upright(image))
    except ServiceError:
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
    return _in_form(grey)


def to_model_input(image: Image.Image) -> Array:
    """Bring an image of any mode and size into the models' form.

    Returns:
        uint8 [28, 28], 0 = ground, 255 = ink.

    Raises:
        NothingDrawnError: There is nothing on it.
    """
    return _in_form(_to_grey(_upright(image)))


def _in_form(grey: Image.Image) -> Array:
    if grey.size == (SIDE, SIDE):
        pixels = np.array(grey)
        for form in (pixels, PIXEL_MAX - pixels):
            if _has_dark_rim(form):
                return _drawn_on(form)
    return to_mnist_form(grey)


def _has_dark_rim(pixels: Array) -> bool:
    rim = pixels[_RIM]
    return int(np.count_nonzero(rim > DARK)) <= LIGHT_ON_RIM


def _drawn_on(pixels: Array) -> Array:
    """The image as it is, if there is anything on it."""
    contrast = int(pixels.max()) - int(pixels.min())
    if contrast < LEAST_CONTRAST:
        raise NothingDrawnError(
            f"nothing is drawn on the image: its pixels differ by {contrast} of {PIXEL_MAX} grey "
            f"levels at most; send a digit that stands out by {LEAST_CONTRAST} and more"
        )
    return pixels


def _upright(image: Image.Image) -> Image.Image:
    """Turn or mirror as EXIF's orientation says; an unreadable EXIF block says nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - its parser raises whatever it stumbles on
        return image
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_grey(image: Image.Image) -> Image.Image:
    """Mode L; transparent parts become paper, 16 bits become 8."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image, dtype=np.int64) >> 8).clip(0, 255).astype("u1"))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _on_paper(image if image.mode == "RGBA" else image.convert("RGBA"))
    return image.convert("L")


def _on_paper(image: Image.Image) -> Image.Image:
    """Lay ink that has no ground on paper that it shows on: white, or black if the ink is light.

    Where most of the picture is there, that is paper itself, and goes on where it is transparent.
    """
    grey, alpha = image.convert("L"), image.getchannel("A")
    if alpha.getextrema()[0] == PIXEL_MAX:
        return grey
    visible = np.asarray(grey)[np.asarray(alpha) > MID_GREY]
    usual = int(np.median(visible)) if visible.size else 0
    contrary = PIXEL_MAX if usual <= MID_GREY else 0
    paper = usual if visible.size > image.width * image.height / 2 else contrary
    return Image.composite(grey, Image.new("L", image.size, paper), alpha)
