"""The gate passes honest exports and sees small faults."""

import numpy as np
import pytest

from export.parity.metrics import compare, scaled_difference, softmax_error
from export.parity.tolerances import TOLERANCES, tolerance_for

RNG = np.random.default_rng(0)
TRUTH = RNG.normal(0, 5, (50, 10))
EAGER = TRUTH.astype(np.float32)


def test_equal_answers_differ_by_nothing() -> None:
    """The yardstick compared with itself: no error, and an RMS of exactly its own."""
    found = compare(EAGER, EAGER, TRUTH)
    assert (found.scaled_error, found.rms_ratio, found.label_flips) == (0, 1, 0)


def test_the_largest_error_is_scaled_by_the_largest_logit_and_its_image_named() -> None:
    """One logit off by 0.5 gives 0.5 over the largest logit, at that image."""
    candidate = EAGER.copy()
    candidate[17, 3] += 0.5
    found = compare(candidate, EAGER, TRUTH)
    assert found.scaled_error == pytest.approx(0.5 / np.abs(EAGER).max(), rel=1e-5)
    assert found.worst_image == 17
    assert found.rms_ratio > 1_000


def test_a_flipped_label_is_counted() -> None:
    """Adding enough to a losing logit flips one label."""
    candidate = EAGER.copy()
    candidate[4, EAGER[4].argmin()] = EAGER.max() + 1
    assert compare(candidate, EAGER, TRUTH).label_flips == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_answers_fail_by_name(value: float) -> None:
    """A NaN is counted and makes every figure infinite: no comparison can pass by accident."""
    candidate = EAGER.copy()
    candidate[2, 2] = value
    found = compare(candidate, EAGER, TRUTH)
    assert found.non_finite == 1
    assert found.scaled_error == found.rms_ratio == float("inf")
    assert found.worst_image == 2
    assert scaled_difference(candidate, EAGER) == float("inf")


def test_shapes_must_agree() -> None:
    """A missing row is an error, never broadcast."""
    with pytest.raises(ValueError, match="shapes differ"):
        compare(EAGER[:1], EAGER, TRUTH)


def test_probabilities_must_be_the_softmax_of_the_logits() -> None:
    """Softmax over the wrong axis, or of other logits, is seen."""
    shifted = np.exp(EAGER - EAGER.max(axis=1, keepdims=True))
    right = shifted / shifted.sum(axis=1, keepdims=True)
    assert softmax_error(right, EAGER) < 1e-6
    wrong_axis = np.exp(EAGER) / np.exp(EAGER).sum(axis=0, keepdims=True)
    assert softmax_error(wrong_axis, EAGER) > 0.1
    assert softmax_error(np.full_like(right, np.nan), EAGER) == float("inf")


def test_every_tolerance_has_a_reason_and_stands_once() -> None:
    """The table has one row for each format and device, each with its reason."""
    keys = [(row.format, row.precision, row.device) for row in TOLERANCES]
    assert len(set(keys)) == len(keys)
    assert all(len(row.reason) > 20 for row in TOLERANCES)
    assert tolerance_for("torchscript", "cpu").scaled_error == 0
    with pytest.raises(KeyError, match="pt2 fp32 on cuda"):
        tolerance_for("pt2", "cuda")
