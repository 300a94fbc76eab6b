"""Converts a grey picture of any size to the form of MNIST's images: 28x28, ink on dark ground.

A picture that already has this form is kept bit for bit: 28x28 pixels with at least nine tenths of
the rim dark, as in every MNIST image. The exact negative of this form, dark ink on light paper, is
inverted. Every other picture is converted in the way in which MNIST was made from NIST's scans
(LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", section III.A): the
digit's bounding box is scaled to 20 pixels on its longer side, keeping its proportions, with
anti-aliasing, and placed so that its centre of mass is the centre of 28x28 pixels. Scans are black
and white, so drawings and photos are first made similar to scans: the paper's own brightness is
subtracted, and the remainder is stretched to full contrast.

For speed there are two passes: the ink is located in a small copy, then cut out of the picture
itself. Arrays are [height, width]; "ink" is float32, 0 = paper, 1 = ink.
"""

import math

import numpy as np
from PIL import Image, ImageFilter

from export.bundle.metrics import Array
from service.adapters.ink import select_drawing
from service.adapters.pictures import PIXEL_MAX
from service.protocol.errors import NothingDrawnError

SIDE, BOX = 28, 20
CENTRE = 14  # of mass of MNIST's images, rounded to whole pixels
COARSE, FINE = 64, 4 * BOX  # the longer sides of the small copy and of the cut-out
# The least contrast between ink and paper, in grey levels and in multiples of the paper's noise.
LEAST_CONTRAST, LEAST_SIGNAL = 16, 6
# Strokes are narrower than this share of the picture; anything wider belongs to the ground.
WIDEST_STROKE = 1 / 3
# Shares of the ink's depth: in the small copy, the least that counts as part of the drawing; in the
# cut-out, the upper limit of paper, the lower limit of full ink, and the least in the bounding box.
DEEP, PAPER, FULL, HALF = 0.15, 0.2, 0.7, 0.5
SURE, NOISE = 5, 2.5  # DEEP and PAPER in standard deviations of the paper's noise
MARGIN = 2  # pixels of the small copy around the ink
THIN = 1.8  # pixels of 28x28; MNIST's strokes are two to four pixels wide
NORMAL_MAD = 1.4826  # standard deviation / median absolute deviation, normal distribution
# None of MNIST's 70,000 images has more than 5 lighter pixels on its rim of 108.
DARK, MAX_LIGHT_ON_RIM = 31, 10
_RIM = np.ones((SIDE, SIDE), np.bool_)
_RIM[1:-1, 1:-1] = False


def convert_to_mnist_form(grey: Image.Image) -> Array:
    """Convert a picture to the form of MNIST's images: uint8 [28, 28], 0 = ground, 255 = ink.

    Args:
        grey: Mode L, any size; ink on lighter or darker paper.

    Raises:
        NothingDrawnError: There is no ink.
    """
    if grey.size == (SIDE, SIDE):
        pixels = np.array(grey)
        for form in (pixels, PIXEL_MAX - pixels):
            if np.count_nonzero(form[_RIM] > DARK) <= MAX_LIGHT_ON_RIM:
                return _require_contrast(form)
    small = _sized(grey, COARSE) if max(grey.size) > COARSE else grey
    light, paper, drawn = _find_ink(small)
    return _placed(_scaled(_cut_out(grey, light, paper, drawn)))


def _require_contrast(pixels: Array) -> Array:
    """Return the image unchanged, or raise NothingDrawnError if its contrast is too low."""
    contrast = int(pixels.max()) - int(pixels.min())
    if contrast < LEAST_CONTRAST:
        raise NothingDrawnError(
            f"nothing is drawn on the image: its pixels differ by {contrast} of {PIXEL_MAX} grey "
            "levels at most; send a digit that differs from its background by at least "
            f"{LEAST_CONTRAST}"
        )
    return pixels


def _find_ink(small: Image.Image) -> tuple[bool, Array, Array]:
    """Find paper and ink in the small copy.

    Returns:
        Whether the paper is lighter than the ink; its brightness, float32 [h, w], in the negative
        if it is light; and the mask of the drawing, bool [h, w].
    """
    # Smooth the image, so that camera noise is not mistaken for ink.
    pixels = np.asarray(small.filter(ImageFilter.BoxBlur(1)), np.float32)
    plane = _plane(pixels)
    flat = pixels - plane
    light = _is_light(flat)
    if light:
        flat, plane = -flat, PIXEL_MAX - plane
    level = _without_strokes(flat, math.ceil(WIDEST_STROKE * max(flat.shape)))
    ink = flat - level
    usual = float(np.median(ink))  # the paper's; noise lifts it above the opening
    ink -= usual
    noise = NORMAL_MAD * float(np.median(np.abs(ink)))
    depth = float(ink.max())
    if depth < LEAST_CONTRAST or depth < LEAST_SIGNAL * noise:
        raise NothingDrawnError(
            "nothing is drawn on the image: its strongest mark differs from the background by "
            f"{depth:.0f} of {PIXEL_MAX} grey levels, and the background's noise is {noise:.0f}; "
            "send a digit in dark ink on light paper, or in light ink on dark"
        )
    drawn = select_drawing(ink > max(DEEP * depth, SURE * noise), ink)
    return light, level + plane + usual, drawn


def _plane(pixels: Array) -> Array:
    """Return the least-squares plane through the brightness; light often comes from one side."""
    height, width = pixels.shape
    rows, columns = np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    down = rows @ pixels.mean(axis=1) / max(1.0, rows @ rows)
    across = columns @ pixels.mean(axis=0) / max(1.0, columns @ columns)
    plane = pixels.mean() + down * rows[:, None] + across * columns
    return np.asarray(plane, np.float32)


def _is_light(flat: Array) -> bool:
    """Whether the paper is lighter than the ink; most of the rim and of the picture is paper."""
    rim = np.median(np.concatenate([flat[0], flat[-1], flat[:, 0], flat[:, -1]]))
    return bool(rim + flat.mean() > flat.min() + flat.max())


def _without_strokes(pixels: Array, width: int) -> Array:
    """Remove light structures narrower than ``width`` pixels, by a morphological opening."""
    return _widest(_widest(pixels, width, np.minimum), width, np.maximum)


def _widest(pixels: Array, width: int, pick: "np.ufunc") -> Array:
    """Filter by minimum or maximum over squares of ``width`` pixels; log2(width) steps an axis."""
    wide = np.pad(pixels, (width // 2, width - 1 - width // 2), mode="edge")
    for _ in range(2):
        reach = 1
        while reach < width:
            step = min(reach, width - reach)
            wide = pick(wide[:-step], wide[step:])
            reach += step
        wide = wide.T
    return wide


def _cut_out(grey: Image.Image, light: bool, level: Array, drawn: Array) -> Array:
    """Cut the drawing out of the picture: ink, at most FINE pixels on its longer side."""
    height, width = drawn.shape
    rows, columns = _bounding_box(drawn)
    top, left = max(0, rows.start - MARGIN), max(0, columns.start - MARGIN)
    bottom, right = min(height, rows.stop + MARGIN), min(width, columns.stop + MARGIN)
    in_small = (left, top, right, bottom)
    across, down = grey.width / width, grey.height / height
    here = (left * across, top * down, right * across, bottom * down)
    sides = (here[2] - here[0], here[3] - here[1])
    scale = min(1, FINE / max(sides))
    size = (max(1, round(scale * sides[0])), max(1, round(scale * sides[1])))
    cut = np.asarray(grey.resize(size, Image.Resampling.BOX, here), np.float32)
    raised = (PIXEL_MAX - cut if light else cut) - _enlarged(level, size, in_small)
    paper, ink, noise = _two_kinds(raised)
    least = paper + max(PAPER * (ink - paper), NOISE * noise)
    full = max(paper + FULL * (ink - paper), least + 1)
    mask = _enlarged(_widest(drawn, 3, np.maximum), size, in_small)
    return np.asarray(np.clip((raised - least) / (full - least), 0, 1) * mask)


def _two_kinds(values: Array) -> tuple[float, float, float]:
    """Split by Otsu's threshold (1979): both classes' means, the lower class's std. deviation."""
    rising = np.sort(values, axis=None)
    counts = np.arange(1, rising.size)
    sums = np.cumsum(rising, dtype=np.float64)
    low = sums[:-1] / counts
    high = (sums[-1] - sums[:-1]) / (rising.size - counts)
    best = int((counts * (rising.size - counts) * (high - low) ** 2).argmax())
    return float(low[best]), float(high[best]), float(rising[: best + 1].std())


def _enlarged(small: Array, size: tuple[int, int], box: tuple[int, int, int, int]) -> Array:
    image = Image.fromarray(small.astype(np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, box))


def _bounding_box(mask: Array) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _scaled(ink: Array) -> Array:
    """Scale the ink's bounding box to BOX pixels on its longer side; widen thin strokes."""
    sure = ink > HALF
    if not sure.any():
        raise NothingDrawnError(
            "nothing is drawn on the image that stands out from its noise; send a digit in dark "
            "ink on light paper, or in light ink on dark"
        )
    image = Image.fromarray((PIXEL_MAX * ink[_bounding_box(sure)]).astype(np.uint8))
    twice = _sized(image, 2 * BOX)
    if _stroke(np.asarray(twice, np.float32)) < 2 * THIN:
        twice = twice.filter(ImageFilter.MaxFilter(3))
    return np.asarray(_sized(twice, BOX))


def _sized(image: Image.Image, longest: int) -> Image.Image:
    """Resize an image so that its longer side has ``longest`` pixels."""
    scale = longest / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    # The box filter for shrinking weights all pixels equally, as a scanner does.
    filter_ = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    return image.resize((width, height), filter_)


def _stroke(ink: Array) -> float:
    """Return the strokes' width in pixels: twice their area divided by the length of their edges.

    The edges are measured along rows and columns, which on average gives 4/pi of their length.
    """
    padded = np.pad(ink, 1)
    edges = sum(float(np.abs(np.diff(padded, axis=axis)).sum()) for axis in (0, 1))
    return 8 / np.pi * float(ink.sum()) / edges


def _placed(digit: Array) -> Array:
    """Stretch a digit of at most BOX pixels to full ink; move its centre of mass to the centre."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    stretched = np.minimum(digit * (PIXEL_MAX / digit.max()), PIXEL_MAX)
    places = []
    for axis, size in enumerate(digit.shape):
        mass = stretched.sum(axis=1 - axis)
        offset = round(CENTRE - float(mass @ np.arange(size)) / float(mass.sum()))
        places.append(min(max(offset, 0), SIDE - size))
    top, left = places
    image[top : top + digit.shape[0], left : left + digit.shape[1]] = np.rint(stretched)
    return image
