"""A grey picture of any size becomes what MNIST is made of: 28x28, a digit of 20 in its middle.

MNIST was made of NIST's scans so (LeCun et al. 1998, "Gradient-Based Learning Applied to Document
Recognition", section III.A): the digit's box is scaled to 20 pixels on its longer side, keeping
its proportions, with grey levels from anti-aliasing, and laid into 28x28 so that its centre of
mass is the centre. Scans are black and white; drawings and photos are made so first: the paper's
own brightness, wherever it is brighter or darker, is taken away, and what is left is stretched.

Two passes, for speed: the ink is looked for in a small copy, then cut out of the picture itself.
Arrays are [height, width]; "ink" is float32, 0 = paper, 1 = ink.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from export.parity.metrics import Array
from service.errors import NothingDrawnError
from service.parts import drawing

SIDE, BOX = 28, 20
CENTRE = 14  # where MNIST's images have their centre of mass, rounded to whole pixels
PIXEL_MAX = 255
COARSE, FINE = 64, 4 * BOX  # longest sides of the two copies
# Ink stands out from its paper by so many grey levels, and by so many times the paper's own noise.
LEAST_CONTRAST, LEAST_SIGNAL = 16, 6
# Strokes are narrower than this share of the picture: what is wider is ground.
WIDEST_STROKE = 1 / 3
# Shares of the ink's depth: what is deeper is a part of the drawing in the small copy; in the cut,
# where paper ends, where ink is full, and what belongs to the drawing's box.
DEEP, PAPER, FULL, HALF = 0.15, 0.2, 0.7, 0.5
SURE, NOISE = 5, 2.5  # in both, standard deviations of the paper that are paper still
MARGIN = 2  # pixels of the small copy around the ink
THIN = 1.8  # pixels of 28x28; MNIST's strokes are two to four wide
NORMAL_MAD = 1.4826  # a normal distribution's standard deviation over its median deviation


class Ground(NamedTuple):
    """What a picture is drawn on, seen in its small copy.

    Attributes:
        light: The paper is lighter than the ink.
        level: float32 [h, w], its brightness (of the negative, if it is light).
    """

    light: bool
    level: Array


def to_mnist_form(grey: Image.Image) -> Array:
    """Find the ink, cut it out, scale and centre it as MNIST's digits are.

    Args:
        grey: Mode L, any size; ink on lighter or darker paper.

    Returns:
        uint8 [28, 28], 0 = ground, 255 = ink.

    Raises:
        NothingDrawnError: There is no ink.
    """
    small = _sized(grey, COARSE) if max(grey.size) > COARSE else grey
    ground, drawn = _find_ink(small)
    return _laid_in(_scaled(_cut_out(grey, ground, drawn)))


def _find_ink(small: Image.Image) -> tuple[Ground, Array]:
    """The paper, and where in the small copy, bool [h, w], the drawing is."""
    # Smoothed, so that a camera's noise does not pass for ink.
    pixels = np.asarray(small.filter(ImageFilter.BoxBlur(1)), np.float32)
    plane = _plane(pixels)
    flat = pixels - plane
    light = _is_light(flat)
    if light:
        flat, plane = -flat, PIXEL_MAX - plane
    level = _without_strokes(flat, math.ceil(WIDEST_STROKE * max(flat.shape)))
    ink = flat - level
    usual = float(np.median(ink))  # the paper's, which noise lifts above the level
    ink -= usual
    noise = NORMAL_MAD * float(np.median(np.abs(ink)))
    depth = float(ink.max())
    if depth < LEAST_CONTRAST or depth < LEAST_SIGNAL * noise:
        raise NothingDrawnError(
            f"nothing is drawn on the image: what stands out most from its ground does so by "
            f"{depth:.0f} of {PIXEL_MAX} grey levels, and the ground wavers by {noise:.0f}; "
            "send a digit in dark ink on light paper, or in light ink on dark"
        )
    drawn = drawing(ink > max(DEEP * depth, SURE * noise), ink)
    return Ground(light, level + plane + usual), drawn


def _plane(pixels: Array) -> Array:
    """The plane that fits best: light often falls from one side."""
    height, width = pixels.shape
    rows, columns = np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    down = rows @ pixels.mean(axis=1) / max(1.0, rows @ rows)
    across = columns @ pixels.mean(axis=0) / max(1.0, columns @ columns)
    plane = pixels.mean() + down * rows[:, None] + across * columns
    return np.asarray(plane, np.float32)


def _is_light(flat: Array) -> bool:
    """Is the paper lighter than the ink? The paper is most of the rim, and most of the picture."""
    rim = np.median(np.concatenate([flat[0], flat[-1], flat[:, 0], flat[:, -1]]))
    return bool(rim + flat.mean() > flat.min() + flat.max())


def _without_strokes(pixels: Array, width: int) -> Array:
    """A morphological opening: what is lighter and narrower than ``width`` goes."""
    return _widest(_widest(pixels, width, np.minimum), width, np.maximum)


def _widest(pixels: Array, width: int, pick: "np.ufunc") -> Array:
    """The smallest or largest value within so many pixels, along both axes; by doubling."""
    for axis in (0, 1):
        before = width // 2
        padding = [(0, 0), (0, 0)]
        padding[axis] = (before, width - 1 - before)
        reach, wide = 1, np.pad(pixels, padding, mode="edge")
        while reach < width:
            step = min(reach, width - reach)
            wide = (
                pick(wide[:-step], wide[step:])
                if axis == 0
                else pick(wide[:, :-step], wide[:, step:])
            )
            reach += step
        pixels = wide
    return pixels


def _cut_out(grey: Image.Image, ground: Ground, drawn: Array) -> Array:
    """The drawing alone, from the picture itself; ink, its longer side FINE pixels at most."""
    height, width = drawn.shape
    top, bottom, left, right = _extent(drawn)
    top, left = max(0, top - MARGIN), max(0, left - MARGIN)
    bottom, right = min(height, bottom + MARGIN), min(width, right + MARGIN)
    across, down = grey.width / width, grey.height / height
    here = (left * across, top * down, right * across, bottom * down)
    longer = max(here[2] - here[0], here[3] - here[1])
    scale = min(1, FINE / longer)
    size = (
        max(1, round(scale * (here[2] - here[0]))),
        max(1, round(scale * (here[3] - here[1]))),
    )
    cut = np.asarray(grey.resize(size, Image.Resampling.BOX, here), np.float32)
    in_small = (left, top, right, bottom)
    level = _enlarged(ground.level, size, in_small)
    raised = (PIXEL_MAX - cut if ground.light else cut) - level
    paper, ink, noise = _two_kinds(raised)
    least = paper + max(PAPER * (ink - paper), NOISE * noise)
    full = max(paper + FULL * (ink - paper), least + 1)
    near = _widest(drawn.astype(np.float32), 3, np.maximum)
    mask = _enlarged(near, size, in_small)
    return np.asarray(np.clip((raised - least) / (full - least), 0, 1) * mask)


def _two_kinds(values: Array) -> tuple[float, float, float]:
    """Means of the two kinds of pixels that differ most (Otsu 1979); the lower one's spread."""
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


def _extent(mask: Array) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of what is true; bottom and right are the first beyond."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _scaled(ink: Array) -> Array:
    """The ink's box, its longer side BOX pixels; too thin strokes are made a pixel wider."""
    sure = ink > HALF
    if not sure.any():
        raise NothingDrawnError(
            "nothing is drawn on the image that stands out from its noise; send a digit in dark "
            "ink on light paper, or in light ink on dark"
        )
    top, bottom, left, right = _extent(sure)
    image = Image.fromarray((PIXEL_MAX * ink[top:bottom, left:right]).astype(np.uint8))
    twice = _sized(image, 2 * BOX)
    if _stroke(np.asarray(twice, np.float32)) < 2 * THIN:
        twice = twice.filter(ImageFilter.MaxFilter(3))
    return np.asarray(_sized(twice, BOX))


def _sized(image: Image.Image, longest: int) -> Image.Image:
    """The image, its longer side so long."""
    scale = longest / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    # A box when shrinking: every pixel counts alike, as when paper is scanned.
    filter_ = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    return image.resize((width, height), filter_)


def _stroke(ink: Array) -> float:
    """How wide strokes are, in pixels: twice their area over the length of their edges.

    An edge is counted along rows and columns, where it is 4/pi of its length on average.
    """
    padded = np.pad(ink, 1)
    edges = sum(float(np.abs(np.diff(padded, axis=axis)).sum()) for axis in (0, 1))
    return 8 / np.pi * float(ink.sum()) / edges


def _laid_in(digit: Array) -> Array:
    """A digit of at most BOX pixels, stretched to full ink, its centre of mass in the middle."""
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
