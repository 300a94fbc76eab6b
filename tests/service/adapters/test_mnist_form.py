"""Drawings of any size, position and paper are converted to the form of MNIST's images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.bundle.golden import Golden
from service.adapters.digits import convert_picture
from tests.service.drawn import KINDS, fitted, made, pictures
from tests.tiny import SERVED_BUNDLES

DIGIT = Path(__file__).parent.parent / "digit.png"
GOLDEN = Golden.load(SERVED_BUNDLES / "cnn" / "golden.npz")


@pytest.fixture
def digit() -> np.ndarray:
    return np.asarray(Image.open(DIGIT))


@pytest.mark.parametrize("name", [name for name, how in KINDS.items() if how is not None])
def test_a_drawing_looks_like_the_digit_that_was_drawn(name: str) -> None:
    """At least nine in ten drawings, wherever and however drawn, resemble their digits."""
    digits = GOLDEN.inputs["images"][::2]
    drawn = pictures(digits, KINDS[name], seed=0)
    formed, refused = made(drawn, convert_picture)
    alike = [_alike(a, b) for a, b in zip(formed, digits, strict=True)]
    plain, _ = made(drawn, fitted)
    least, before = np.quantile(alike, 0.1), [_alike(*ab) for ab in zip(plain, digits, strict=True)]
    bad = "bad" in name
    assert refused <= (3 if bad else 0)
    assert least > (0.45 if bad else 0.6), sorted(alike)
    assert "middle" in name or np.median(before) < 0.5 < np.median(alike) - 0.15


def _alike(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two images' pixels; 0 if one is constant."""
    if one.min() == one.max():
        return 0.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


@pytest.mark.parametrize(
    "size", [(40, 90), (90, 40), (28, 560), (560, 28), (900, 1000), (16, 16), (5_000, 200)]
)
def test_any_size_keeps_its_proportions(size: tuple[int, int]) -> None:
    """A cross in a picture of any size becomes 20 pixels long, in proportion and centred."""
    width, height = size
    sheet = np.zeros((height, width), np.uint8)
    arm = min(size) // 2 - 2
    y, x = height // 3, width // 2
    y = max(y, arm + 1)
    thick = max(1, arm // 6)
    sheet[y - arm : y + arm, x - thick : x + thick] = 255
    sheet[y - thick : y + thick, x - arm // 2 : x + arm // 2] = 255
    pixels = convert_picture(Image.fromarray(sheet))
    rows, columns = np.flatnonzero(pixels.max(axis=1)), np.flatnonzero(pixels.max(axis=0))
    assert rows[-1] - rows[0] == 19
    assert abs(rows.mean() - 13.5) <= 1
    assert abs(len(columns) - 11) <= 2
    assert abs(columns.mean() - 13.5) <= 1
    assert pixels.max() == 255


@pytest.mark.parametrize("place", [(0, 0), (0, 60), (60, 30)])
@pytest.mark.parametrize("paper", [False, True])
def test_where_a_digit_is_drawn_makes_no_difference(
    place: tuple[int, int], paper: bool, digit: np.ndarray
) -> None:
    """The same strokes at another position, or in dark ink, give nearly the same image."""
    ink = np.kron(digit[4:24, 4:24], np.ones((4, 4), np.uint8))
    middle, moved = np.zeros((2, 160, 160), np.uint8)
    middle[40:120, 40:120] = ink
    moved[place[0] : place[0] + 80, place[1] : place[1] + 80] = ink
    found = convert_picture(Image.fromarray(255 - moved if paper else moved)).astype(int)
    expected = convert_picture(Image.fromarray(middle)).astype(int)
    assert np.abs(found - expected).mean() < 4


def test_specks_and_the_papers_edge_are_no_ink(digit: np.ndarray) -> None:
    """Dust, a dark table around the sheet and a frame are removed; only the digit is left."""
    sheet = np.full((200, 200), 230, np.uint8)
    sheet[60:140, 60:140] -= np.kron(digit[4:24, 4:24] // 2, np.ones((4, 4), np.uint8))
    alone = convert_picture(Image.fromarray(sheet))
    dusty, table, framed = sheet.copy(), sheet.copy(), sheet.copy()
    dusty[20:23, 20:23] = dusty[180, 175:178] = 20
    table[:, 185:] = 30
    framed[:3], framed[-3:], framed[:, :3], framed[:, -3:] = 0, 0, 0, 0
    for spoilt in (dusty, table, framed):
        assert _alike(convert_picture(Image.fromarray(spoilt)), alone) > 0.85


def test_a_small_picture_that_is_not_in_mnists_form_is_put_into_it(digit: np.ndarray) -> None:
    """A 28x28 picture is converted if its background is grey, and kept if it is dark."""
    shifted = np.roll(digit, 3, axis=1)
    assert np.array_equal(convert_picture(Image.fromarray(shifted)), shifted)
    grey = (100 + shifted * 0.5).astype(np.uint8)
    assert _alike(convert_picture(Image.fromarray(grey)), digit) > 0.8
    assert _alike(convert_picture(Image.fromarray(grey)), digit) > _alike(shifted, digit)
