"""The gate passes honest exports and detects small faults."""

import numpy as np
import pytest

from export.bundle.metrics import Floor, LabelFigures, compare, scaled_difference, softmax_error
from export.bundle.tolerances import (
    TOLERANCES,
    ToleranceError,
    changed,
    tolerance_for,
    violations,
)

RNG = np.random.default_rng(0)
TRUTH = RNG.normal(0, 5, (50, 10))
EAGER = TRUTH.astype(np.float32)


def test_equal_answers_differ_by_nothing() -> None:
    """The baseline compared with itself has no error and an RMS ratio of 1."""
    found = compare(EAGER, EAGER, TRUTH)
    assert (found.scaled_error, found.rms_ratio, found.sqnr_db > 120) == (0, 1, True)


def test_equal_answers_have_one_error_whatever_their_memory_order() -> None:
    """Bit-equal states of a recurrent layer with exchanged axes have a ratio of exactly 1."""
    for seed in range(20):
        fp64 = np.random.default_rng(seed).normal(size=(33, 7, 16))
        fp32 = fp64.astype(np.float32)
        other, true = (
            np.ascontiguousarray(values.transpose(1, 0, 2)).transpose(1, 0, 2)
            for values in (fp32, fp64)
        )
        found = compare(fp32, other, true)
        assert (found.scaled_error, found.rms_ratio) == (0, 1)


def test_the_largest_error_is_scaled_by_its_channel_and_its_image_named() -> None:
    """A logit off by 0.5 gives 0.5 over the largest of that class, at that image."""
    candidate = EAGER.copy()
    candidate[17, 3] += 0.5
    found = compare(candidate, EAGER, TRUTH)
    assert found.scaled_error == pytest.approx(0.5 / np.abs(EAGER[:, 3]).max(), rel=1e-5)
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
    """If the two best logits are within 1%, a flipped label is no fault."""
    fp64 = TRUTH.copy()
    fp64[4, :2] = 20, 19.9
    candidate = fp64.astype(np.float32)
    candidate[4, 1] = 20.1
    labels = compare(candidate, fp64.astype(np.float32), fp64, logits=True).labels
    assert labels is not None
    assert (labels.flips, labels.decided_flips) == (1, 0)


def test_corner_cases_count_for_errors_alone() -> None:
    """They have no labels to flip, and no noise is measured for them."""
    candidate = EAGER.copy()
    candidate[0] = -candidate[0]
    found = compare(candidate, EAGER, TRUTH, logits=True, edge_cases=1)
    assert found.labels is not None
    assert (found.labels.flips, found.labels.samples, found.worst[0]) == (0, 49, 0)
    assert found.sqnr_db > 120
    assert found.scaled_error > 0.5


def test_the_certificate_is_the_smallest_margin_over_the_largest_error() -> None:
    """An error of a hundredth of the smallest margin gives a certificate of 100."""
    best = np.sort(TRUTH, axis=1)
    margin = (best[:, -1] - best[:, -2]).min()
    labels = compare(TRUTH + margin / 100, EAGER, TRUTH, logits=True).labels
    assert labels is not None
    assert labels.certificate == pytest.approx(100, rel=1e-3)
    assert labels.uncertain == 0


def test_accuracy_is_over_the_samples_with_a_target() -> None:
    """Targets of -1 are ignored, for the candidate and for the baseline."""
    targets = EAGER.argmax(axis=1)
    targets[10:] = -1
    candidate = EAGER.copy()
    candidate[:5] = -candidate[:5]
    labels = compare(candidate, EAGER, TRUTH, logits=True, targets_N=targets).labels
    assert labels is not None
    assert (labels.accuracy, labels.eager_accuracy) == (0.5, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_answers_fail_by_name(value: float) -> None:
    """A NaN is counted and makes every figure infinite, so that no comparison can pass."""
    candidate = EAGER.copy()
    candidate[2, 2] = value
    found = compare(candidate, EAGER, TRUTH)
    assert found.non_finite == 1
    assert found.scaled_error == found.rms_ratio == float("inf")
    assert found.worst[0] == 2
    assert scaled_difference(candidate, EAGER) == float("inf")


@pytest.mark.parametrize("variant", ["onnx", "onnx-fp16", "onnx-int8"])
def test_integers_and_booleans_are_equal_or_wrong(variant: str) -> None:
    """One wrong integer in a million fails, although every scaled error and SQNR would pass."""
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
    """A missing row is an error and is never broadcast."""
    with pytest.raises(ValueError, match="shapes differ"):
        compare(EAGER[:1], EAGER, TRUTH)


def test_probabilities_must_be_the_softmax_of_the_logits() -> None:
    """Softmax over a wrong axis or of other logits is detected."""
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
    """The message for unknown rows, fields and non-numbers lists the valid ones."""
    with pytest.raises(ToleranceError, match=r"expected VARIANT|is not a valid"):
        changed([change], "because")


def _boxes_and_scores() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """200 samples of four box coordinates up to 640 and a score up to 1."""
    generator = np.random.default_rng(1)
    boxes = generator.uniform(0, 640, (200, 4))
    return np.concatenate([boxes, generator.uniform(0, 1, (200, 1))], axis=1)


def test_boxes_do_not_hide_a_wrong_score() -> None:
    """A score off by 1.2e-3 exceeds 2e-6 of its own scale, beside boxes up to 640."""
    fp64 = _boxes_and_scores()
    fp32 = fp64.astype(np.float32)
    candidate = fp32.copy()
    candidate[7, 4] += 1.2e-3
    found = compare(candidate, fp32, fp64)
    assert 1.2e-3 / 640 < 2e-6 < found.scaled_error
    assert found.scaled_error == pytest.approx(1.2e-3 / (640 / 16), rel=0.01)


def test_a_channel_that_sums_large_terms_is_scaled_by_them() -> None:
    """A nearly dead channel has the roundings of its terms, which eager's error reveals."""
    fp64 = RNG.normal(0, 5, (50, 10))
    fp64[:, 0] *= 1e-3
    fp32 = fp64.astype(np.float32)
    fp32[:, 0] += np.float32(1e-6)
    found = compare(fp32 + np.float32(2e-6) * (np.arange(10) == 0), fp32, fp64)
    assert found.scaled_error == pytest.approx(2e-6 / (1e-6 * 2**24 / 4), rel=0.05)


def test_an_edge_case_does_not_hide_errors_of_real_samples() -> None:
    """Beside an edge case's answer of 1e6, an error of 1e-2 in an answer of 5 is detected."""
    fp64 = TRUTH.copy()
    fp64[0] = 1e6
    fp32 = fp64.astype(np.float32)
    candidate = fp32.copy()
    candidate[9, 1] += 1e-2
    assert compare(candidate, fp32, fp64).scaled_error < 1e-7
    assert compare(candidate, fp32, fp64, edge_cases=1).scaled_error > 5e-4
    candidate = fp32.copy()
    candidate[0] += 1
    assert compare(candidate, fp32, fp64, edge_cases=1).scaled_error == pytest.approx(1e-6)


def test_one_sample_with_huge_logits_makes_no_near_ties_of_others() -> None:
    """Near ties are within 1% of the way from a sample's own mean logit to its best."""
    fp64 = np.zeros((4, 100))
    fp64[:, 0] = [1e4, 10, 10, 10]
    fp64[:, 1] = [0, 9, 9.92, 9.88]
    candidate = fp64[:, [1, 0, *range(2, 100)]]
    labels = compare(candidate, fp64, fp64, logits=True).labels
    assert labels is not None
    assert (labels.flips, labels.near_ties, labels.decided_flips) == (4, 1, 3)


@pytest.mark.parametrize(("factor", "passes"), [(2.95, True), (3.05, False)])
def test_a_channel_may_be_off_by_three_times_the_floor(factor: float, passes: bool) -> None:
    """Each channel's RMS error is compared with its own floor, independent of the others."""
    row = tolerance_for("onnx", "cpu")
    floor = Floor(np.full(10, 1e-6), np.full(10, 1e-3), np.zeros(0))
    floor.rms_C[:5] = 1e-3
    candidate = TRUTH.copy()
    candidate[:, 7] += factor * 1e-6
    found = compare(candidate, TRUTH, TRUTH, floor=floor)
    assert found.floor_rms == pytest.approx(factor, rel=0.01)
    assert (
        any("float32's own rounding error" in words for words in violations(found, row)) != passes
    )


@pytest.mark.parametrize(("factor", "passes"), [(3.95, True), (4.05, False)])
def test_a_value_may_be_off_by_four_times_the_floor(factor: float, passes: bool) -> None:
    """The largest error of each channel is compared with its own floor."""
    row = tolerance_for("onnx", "cpu")
    floor = Floor(np.full(10, 1e-3), np.full(10, 1e-5), np.zeros(0))
    candidate = TRUTH.copy()
    candidate[3, 7] += factor * 1e-5
    found = compare(candidate, TRUTH, TRUTH, floor=floor)
    assert (
        any("float32's own rounding error" in words for words in violations(found, row)) != passes
    )


def test_a_floor_is_at_least_the_rounding_of_the_answer() -> None:
    """An answer that every arrangement computes exactly may still be off by one rounding."""
    exact = np.full((20, 2), 3.0)
    floor = Floor.of(exact, exact, 0)
    found = compare(np.nextafter(exact.astype(np.float32), 4), exact, exact, floor=floor)
    assert found.floor_largest is not None
    assert found.floor_largest < 4


@pytest.mark.parametrize("garbage", [3, 1])
def test_a_few_garbage_samples_fail_a_reduced_precision(garbage: int) -> None:
    """They fail, although 10,000 samples are above 35 dB, because it is not quantization noise."""
    generator = np.random.default_rng(2)
    fp64 = generator.normal(0, 5, (10_000, 10))
    candidate = fp64 + generator.normal(0, 0.05, fp64.shape)
    row = tolerance_for("onnx-int8", "cpu").model_copy(update={"flip_share": 1})
    assert list(violations(compare(candidate, fp64, fp64, logits=True), row)) == []
    candidate[:garbage] *= 0.3
    found = compare(candidate, fp64, fp64, logits=True)
    assert found.sqnr_db > 35
    (complaint,) = violations(found, row)
    assert "the worst sample's error is" in complaint


@pytest.mark.parametrize(("spread", "passes"), [(39.9, True), (40.1, False)])
def test_the_worst_sample_may_be_forty_times_the_median(spread: float, passes: bool) -> None:
    """The bound of the spread is exact, and float32 has other bounds."""
    found = compare(TRUTH, TRUTH, TRUTH).model_copy(update={"sample_spread": spread})
    assert (list(violations(found, tolerance_for("onnx-int8", "cpu"))) == []) == passes
    assert list(violations(found, tolerance_for("onnx", "cpu"))) == []


def _labels(**changes: float) -> LabelFigures:
    figures = {
        **dict.fromkeys(("flips", "decided_flips", "ties", "uncertain", "near_ties"), 0),
        **dict.fromkeys(("largest_flip_margin", "smallest_margin", "largest_error"), 0.0),
        "samples": 1_000,
        "accuracy": 0.9,
        "eager_accuracy": 0.9,
    }
    return LabelFigures.model_validate(figures | changes)


@pytest.mark.parametrize(("flips", "passes"), [(3, True), (4, False)])
def test_a_share_of_flips_is_judged_beyond_chance(flips: int, passes: bool) -> None:
    """0.1% of 1,000 samples is one flip, plus three for three standard deviations."""
    found = compare(TRUTH, TRUTH, TRUTH)
    row = tolerance_for("onnx-int8", "cpu").model_copy(update={"flip_share": 0.0009})
    labels = _labels(flips=flips, decided_flips=flips)
    complaints = list(violations(found.model_copy(update={"labels": labels}), row))
    assert (complaints == []) == passes


def test_more_flips_do_not_excuse_a_fall_of_accuracy() -> None:
    """Accuracy may fall by three standard deviations of the flips allowed to an honest file."""
    found = compare(TRUTH, TRUTH, TRUTH)
    row = tolerance_for("onnx-int8", "cpu").model_copy(update={"flip_share": 0.016})
    # 0.2 pp, plus 3 * sqrt(9 near ties + 16 allowed flips) in 1,000: 1.5 pp.
    for drop, flips, passes in ((0.0169, 0, True), (0.0171, 0, False), (0.0171, 900, False)):
        labels = _labels(accuracy=0.9 - drop, flips=flips, near_ties=9)
        complaints = list(violations(found.model_copy(update={"labels": labels}), row))
        assert (complaints == []) == passes


def test_a_certificate_needs_twice_the_error() -> None:
    """The bound is 2: two logits change order if each is off by half of their distance."""
    fp64 = np.array([[1.0, 0.0], [3.0, 0.0]])
    for error, uncertain in ((0.49, 0), (0.51, 1)):
        candidate = fp64 + np.array([[error, 0], [0, 0]])
        labels = compare(candidate, fp64, fp64, logits=True).labels
        assert labels is not None
        assert labels.uncertain == uncertain
