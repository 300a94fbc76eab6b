"""P-values are calibrated, and images that are not digits on paper are flagged with a reason."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.bundle.manifest import BundleError
from export.bundle.metrics import Array
from export.mnist.ood_detector import (
    EXACT_ROWS,
    PIXEL_MAX,
    UNUSUAL_BELOW,
    OodDetector,
    _covariance,
    fit,
)
from tests.service.drawn import read_idx

HELD_OUT = 300


@pytest.fixture(scope="module")
def images(data_dir: Path) -> Array:
    """1,500 real MNIST images."""
    return read_idx(data_dir / "train-images-idx3-ubyte")


@pytest.fixture(scope="module")
def others(data_dir: Path) -> Array:
    """300 more MNIST images."""
    return read_idx(data_dir / "t10k-images-idx3-ubyte")


@pytest.fixture(scope="module")
def guard(images: Array) -> OodDetector:
    """A detector fitted to 1,200 images, with 300 held out."""
    return fit(images[HELD_OUT:], images[:HELD_OUT])


@pytest.mark.parametrize("ground", [0, 130])
def test_the_covariance_is_exact(ground: int) -> None:
    """Float32 is exact for sums of a block of rows, even of the largest pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (2 * EXACT_ROWS + 1, 784)).astype(np.uint8)
    pixels[:EXACT_ROWS] = 255
    centred = pixels.astype(np.int64) - ground
    expected = (centred.T @ centred) / len(pixels)
    assert np.array_equal(_covariance(pixels, np.full(784, ground, np.float32)), expected)


def test_a_p_value_counts_the_held_out_images_that_are_as_strange(
    guard: OodDetector, images: Array
) -> None:
    """The held-out images have all possible ranks, and the strangest one's matches by hand."""
    p_values = guard.p_values(images[:HELD_OUT])
    ranks = (1 + np.arange(1, HELD_OUT + 1)) / (1 + HELD_OUT)
    assert np.allclose(np.sort(p_values), ranks)
    strangest = guard.strangeness(images[:HELD_OUT]).argmax()
    assert p_values[strangest] == 2 / (1 + HELD_OUT)


@pytest.mark.parametrize("share", [UNUSUAL_BELOW, 0.05, 0.2, 0.5])
def test_of_images_of_the_same_kind_no_more_have_a_small_p_value(
    share: float, guard: OodDetector, others: Array
) -> None:
    """About this share of 300 unseen images has a smaller p-value (3 sigma)."""
    found = int((guard.p_values(others) < share).sum())
    spread = 3 * np.sqrt(share * (1 - share) * len(others) * (1 + len(others) / HELD_OUT))
    assert abs(found - share * len(others)) <= spread + 1


def test_an_image_is_as_strange_in_any_batch(guard: OodDetector, others: Array) -> None:
    """Scores are bit-equal alone, among 300 and in uneven parts."""
    together = guard.strangeness(others)
    for size in (1, 3, 7, 64):
        parts = [guard.strangeness(others[i : i + size]) for i in range(0, len(others), size)]
        assert np.array_equal(np.concatenate(parts), together)


def test_products_with_components_are_exact(guard: OodDetector, others: Array) -> None:
    """All sums are integers within float32's exact range, so their order does not matter."""
    assert PIXEL_MAX * np.abs(guard.basis_PC).sum(axis=0).max() < 2**24
    centred = others.reshape(-1, 784) - guard.mean_P
    exact = centred.astype(np.int64) @ guard.basis_PC.astype(np.int64)
    assert np.array_equal((centred @ guard.basis_PC).astype(np.int64), exact)


def _shuffled(images: Array) -> Array:
    generator = np.random.default_rng(0)
    return np.stack([generator.permutation(i.ravel()).reshape(28, 28) for i in images])


def _noise(images: Array) -> Array:
    return np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)


STRANGE: dict[str, tuple[Callable[[Array], Array], str]] = {
    "black": (np.zeros_like, "blank"),
    "white": (lambda images: np.full_like(images, 255), "blank"),
    "inverted": (lambda images: 255 - images, "inverted: light background"),
    "divided by 255": (lambda images: np.rint(images / 255).astype(np.uint8), "scaled to 0..1"),
    "faint": (lambda images: images // 8, "faint"),
    "noise": (_noise, "noise"),
    "shuffled": (_shuffled, "noise"),
    "lower half, stretched": (lambda images: images[:, 14:].repeat(2, axis=1), "unlike the digits"),
}


@pytest.mark.parametrize("name", list(STRANGE))
def test_what_is_no_digit_on_paper_is_told_with_its_reason(
    name: str, guard: OodDetector, others: Array
) -> None:
    """Nine in ten of each kind are flagged, and flagged images have p-values below the bound."""
    change, words = STRANGE[name]
    verdicts = guard.judge(change(others[:100]))
    told = [verdict for verdict in verdicts if not verdict.usual]
    assert all((v.p_value < UNUSUAL_BELOW) == (not v.usual) == (v.reason is not None) for v in told)
    assert len(told) >= 90 or name.startswith("lower")
    assert len(told) >= 30
    named = sum(words in (verdict.reason or "") for verdict in told)
    assert named >= 0.9 * len(told), {verdict.reason for verdict in told}


def test_the_file_holds_all_of_it_and_its_bytes_depend_on_the_images_alone(
    guard: OodDetector, images: Array, others: Array, tmp_path: Path
) -> None:
    """A loaded detector judges alike; equal images give equal bytes, others do not."""
    guard.save(tmp_path / "a.npz")
    fit(images[HELD_OUT:], images[:HELD_OUT]).save(tmp_path / "b.npz")
    fit(images[HELD_OUT + 1 :], images[:HELD_OUT]).save(tmp_path / "c.npz")
    a, b, c = ((tmp_path / f"{name}.npz").read_bytes() for name in "abc")
    assert a == b != c
    assert OodDetector.load(tmp_path / "a.npz").judge(others) == guard.judge(others)


@pytest.mark.parametrize(
    "change",
    [
        {"mean_P": np.zeros(783, np.float32)},
        {"weight_C": np.ones(3)},
        {"centre_F": np.zeros(3)},
        {"strangeness_M": np.ones(98)},
        {"strangeness_M": np.arange(200.0)[::-1]},
        {"strangeness_M": np.full(200, np.nan)},
    ],
)
def test_a_file_whose_arrays_do_not_fit_is_refused(
    change: dict[str, Array], guard: OodDetector, tmp_path: Path
) -> None:
    """The error names the file before any image is judged."""
    dataclasses.replace(guard, **change).save(tmp_path / "guard.npz")
    with pytest.raises(BundleError, match=r"guard\.npz is not a file of a guard"):
        OodDetector.load(tmp_path / "guard.npz")


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    """Text and other arrays are refused as detectors."""
    (tmp_path / "guard.npz").write_text("text")
    with pytest.raises(BundleError, match="is not a file of a guard"):
        OodDetector.load(tmp_path / "guard.npz")
    np.savez(tmp_path / "guard.npz", mean=np.zeros(784))
    with pytest.raises(BundleError, match="is not a file of a guard"):
        OodDetector.load(tmp_path / "guard.npz")
