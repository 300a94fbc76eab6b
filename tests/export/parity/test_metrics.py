"""The gate passes honest exports and sees small faults."""

import numpy as np
import pytest

from export.bundle.metrics import compare, scaled_difference, softmax_error
from export.bundle.tolerances import TOLERANCES, ToleranceError, changed, tolerance_for, violations

RNG = np.random.default_rng(0)
TRUTH = RNG.normal(0, 5, (50, 10))
EAGER = TRUTH.astype(np.float32)


def test_equal_answers_differ_by_nothing() -> None:
    """The yardstick compared with itself: no error, and an RMS of exactly its own."""
    found = compare(EAGER, EAGER, TRUTH)
    assert (found.scaled_error, found.rms_ratio, found.sqnr_db > 120) == (0, 1, True)


def test_the_largest_error_is_scaled_by_the_largest_logit_and_its_image_named() -> None:
    """One logit off by 0.5 gives 0.5 over the largest logit, at that image."""
    candidate = EAGER.copy()
    candidate[17, 3] += 0.5
    found = compare(candidate, EAGER, TRUTH)
    assert found.scaled_error == pytest.approx(0.5 / np.abs(EAGER).max(), rel=1e-5)
    assert found.worst[0] == 17
    assert found.rms_ratio > 1_000


def test_a_flipped_label_is_counted() -> None:
    """Adding enough to a losing logit flips one label."""
    candidate = EAGER.copy()
    candidate[4, EAGER[4].argmin()] = EAGER.max() + 1
    labels = compare(candidate, EAGER, TRUTH, logits=True).labels
    assert labels is not None
    assert (labels.flips, labels.decided_flips, labels.samples) == (1, 1, 50)
    two_best = np.sort(TRUTH[4])[-2:]
    assert labels.largest_flip_margin == pytest.approx(two_best[1] - two_best[0])


def test_a_flip_where_the_reference_wavers_is_counted_apart() -> None:
    """Two best logits within 1% of the largest: the label may tip without a fault."""
    truth = TRUTH.copy()
    truth[4, :2] = 20, 19.9
    candidate = truth.astype(np.float32)
    candidate[4, 1] = 20.1
    labels = compare(candidate, truth.astype(np.float32), truth, logits=True).labels
    assert labels is not None
    assert (labels.flips, labels.decided_flips) == (1, 0)


def test_corner_cases_count_for_errors_alone() -> None:
    """What has no label flips none, and noise is not measured where no scale was fitted."""
    candidate = EAGER.copy()
    candidate[0] = -candidate[0]
    found = compare(candidate, EAGER, TRUTH, logits=True, corners=1)
    assert found.labels is not None
    assert (found.labels.flips, found.labels.samples, found.worst[0]) == (0, 49, 0)
    assert found.sqnr_db > 120
    assert found.scaled_error > 0.5


def test_the_certificate_is_the_smallest_margin_over_the_largest_error() -> None:
    """An error of a hundredth of the smallest margin certifies a hundred times."""
    best = np.sort(TRUTH, axis=1)
    margin = (best[:, -1] - best[:, -2]).min()
    labels = compare(TRUTH + margin / 100, EAGER, TRUTH, logits=True).labels
    assert labels is not None
    assert labels.certificate == pytest.approx(100, rel=1e-3)
    assert labels.uncertain == 0


def test_accuracy_is_over_the_samples_with_a_target() -> None:
    """Targets of -1 are left out, for the candidate and for eager."""
    targets = EAGER.argmax(axis=1)
    targets[10:] = -1
    candidate = EAGER.copy()
    candidate[:5] = -candidate[:5]
    labels = compare(candidate, EAGER, TRUTH, logits=True, targets_N=targets).labels
    assert labels is not None
    assert (labels.accuracy, labels.eager_accuracy) == (0.5, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_answers_fail_by_name(value: float) -> None:
    """A NaN is counted and makes every figure infinite: no comparison can pass by accident."""
    candidate = EAGER.copy()
    candidate[2, 2] = value
    found = compare(candidate, EAGER, TRUTH)
    assert found.non_finite == 1
    assert found.scaled_error == found.rms_ratio == float("inf")
    assert found.worst[0] == 2
    assert scaled_difference(candidate, EAGER) == float("inf")


@pytest.mark.parametrize("variant", ["onnx", "onnx-fp16", "onnx-int8"])
def test_integers_and_booleans_are_equal_or_wrong(variant: str) -> None:
    """One off in a million is within every scaled error, and yet another thing; no SQNR helps."""
    ids = np.arange(2_000_000, 2_000_050)
    right = compare(ids, ids, ids)
    assert (right.unequal, list(violations(right, tolerance_for(variant, "cpu")))) == (0, [])
    wrong = compare(ids + (ids == ids[3]), ids, ids)
    (complaint,) = violations(wrong, tolerance_for(variant, "cpu"))
    assert complaint == "1 integer or boolean values differ"
    flags = ids % 2 == 0
    assert compare(~flags, flags, flags).unequal == len(flags)
    assert compare(EAGER, EAGER, TRUTH).unequal is None


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
    with pytest.raises(ToleranceError, match="pt2 on cuda"):
        tolerance_for("pt2", "cuda")


def test_a_loosening_is_recorded_with_its_reason_and_refused_without() -> None:
    """A wider bound needs a reason, which stays in the row; a narrower one needs none."""
    with pytest.raises(ToleranceError, match="--because"):
        changed(["onnx.cpu.scaled_error=1e-4"], None)
    with pytest.raises(ToleranceError, match="--because"):
        changed(["onnx-int8.cpu.sqnr_db=20"], None)
    loosened = tolerance_for(
        "onnx", "cpu", changed(["onnx.cpu.scaled_error=1e-4"], "logits reach 1,000")
    )
    assert loosened.loosened == "scaled_error: 0.0001 instead of 2e-06 because logits reach 1,000"
    tightened = tolerance_for("onnx", "cpu", changed(["onnx.cpu.scaled_error=1e-7"], None))
    assert (tightened.scaled_error, tightened.loosened) == (1e-7, None)


@pytest.mark.parametrize(
    "change", ["onnx.cpu.reason=1", "onnx.tpu.scaled_error=1", "onnx.cpu.scaled_error=much", "x"]
)
def test_a_change_of_what_the_table_does_not_have_is_refused(change: str) -> None:
    """Unknown rows and fields, and what is no number, are answered with what there is."""
    with pytest.raises(ToleranceError, match=r"expected VARIANT|cannot be"):
        changed([change], "because")
