"""Formulas of the errors, checked on a few numbers with known results."""

import numpy as np
import pytest

from export.bundle.metrics import (
    ROUNDING_RMS,
    Array,
    Comparison,
    Floor,
    LabelFigures,
    by_channel,
    channel_rms,
    channel_scale,
    channelled,
    compare,
    margins,
    near_ties,
    scaled_difference,
    softmax,
    softmax_error,
    worst_ratio,
)

U = 2.0**-24  # the largest relative error of a rounding to float32


def _compared(candidate: Array, **settings: object) -> Comparison:
    """Compare a candidate with a reference of zeros and one 1, which float32 represents exactly."""
    truth = np.zeros_like(candidate)
    truth.flat[-1] = 1
    return compare(candidate, truth, truth, **settings)  # type: ignore[arg-type]


def _labels(candidate: Array, truth: Array, targets: list[int] | None = None) -> LabelFigures:
    targets_N = None if targets is None else np.array(targets)
    labels = compare(candidate, truth, truth, logits=True, targets_N=targets_N).labels
    assert labels is not None
    return labels


def test_the_error_of_rounding_is_that_of_the_numbers_that_it_hurts_least() -> None:
    """The relative error is least just below a power of two: 2^-24 / sqrt(12)."""
    truth = np.random.default_rng(0).uniform(1.99, 2, 100_000)
    error = truth.astype(np.float32) - truth
    measured = np.sqrt(np.mean(np.square(error)) / np.mean(np.square(truth)))
    assert measured == pytest.approx(ROUNDING_RMS, rel=0.01)


def test_a_floor_is_the_error_and_at_least_a_rounding() -> None:
    """Channels have an RMS and a largest error; each edge case has its own largest error."""
    truth = np.array([[8.0, 2.0], [1.0, 3.0], [1.0, 4.0]])
    answers = truth + np.array([[0.5, 0.25], [0.03, 0], [0.04, 0]])
    floor = Floor.of(answers, truth, edges=1)
    assert floor.rms_C == pytest.approx([np.sqrt((0.03**2 + 0.04**2) / 2), 12.5**0.5 * U / 12**0.5])
    assert floor.largest_C == pytest.approx([0.04, 4 * U])
    assert floor.largest_E == pytest.approx([0.5])
    assert Floor.of(truth, truth, edges=1).largest_E == pytest.approx([8 * U])


def test_the_worse_of_two_floors_is_taken_number_by_number() -> None:
    """The larger floor is taken for each channel and for each edge case."""
    one = Floor(np.array([1.0, 4.0]), np.array([5.0, 2.0]), np.array([7.0, 1.0]))
    other = Floor(np.array([3.0, 2.0]), np.array([1.0, 6.0]), np.array([2.0, 9.0]))
    for floor in (one.or_worse(other), other.or_worse(one)):
        assert floor.rms_C.tolist() == [3, 4]
        assert floor.largest_C.tolist() == [5, 6]
        assert floor.largest_E.tolist() == [7, 9]


def test_an_edge_case_s_floor_is_at_least_the_samples_largest() -> None:
    """An edge case's single error may be small by chance; the channels' floors do not change."""
    edges = Floor(np.array([1.0]), np.array([2.0]), np.array([0.1, 9.0]))
    found = edges.of_edge_cases(Floor(np.array([5.0]), np.array([3.0, 4.0]), np.zeros(0)))
    assert found.largest_E.tolist() == [4, 9]
    assert (found.rms_C.tolist(), found.largest_C.tolist()) == ([1], [2])


def test_errors_are_in_units_of_the_floor() -> None:
    """The worst channel's errors are divided by its own floor, edge cases' by theirs."""
    floor = Floor(np.array([0.1, 1.0]), np.array([0.2, 2.0]), np.array([0.5]))
    candidate = np.zeros((5, 2))
    candidate[1:, 0], candidate[1, 1] = 0.3, 3.0
    found = _compared(candidate, floor=floor, edge_cases=1)
    assert found.floor_rms == pytest.approx(3)
    assert found.floor_largest == pytest.approx(1.5)
    candidate[0, 0] = 4.0  # an edge case may be off by as much as samples: 2
    assert _compared(candidate, floor=floor, edge_cases=1).floor_largest == pytest.approx(2)
    assert _compared(candidate, edge_cases=1).floor_rms is None


def test_the_baseline_s_own_error_is_part_of_the_floor() -> None:
    """The floor is at least the error of the float32 baseline."""
    truth = np.ones((4, 1))
    eager = truth + 1e-3
    floor = Floor(np.array([1e-6]), np.array([1e-6]), np.zeros(0))
    found = compare(truth + 2e-3, eager, truth, floor=floor)
    assert found.floor_rms == pytest.approx(2)
    assert found.floor_largest == pytest.approx(2)


@pytest.mark.parametrize(
    ("values", "rounding", "scales"),
    [
        ([[16, 0.5]], [[0, 0]], [16, 1]),  # at least a sixteenth of the output's
        ([[16, 2]], [[0, 0]], [16, 2]),
        ([[16, 0]], [[0, 4 * 3 * U]], [16, 3]),  # a sum's error is four roundings of its terms
        ([[16, 0]], [[0, 4 * 99 * U]], [16, 16]),  # at most the output's
        ([[-16, 2]], [[0, -4 * 3 * U]], [16, 3]),
    ],
)
def test_a_channel_is_scaled_by_its_largest_terms(
    values: list[list[float]], rounding: list[list[float]], scales: list[float]
) -> None:
    """The scale is the largest value or follows from rounding, within 1/16 to 1 of the output's."""
    found = channel_scale(np.array(values), np.array(rounding))
    assert found.tolist() == scales


def test_edge_cases_have_scales_of_their_own() -> None:
    """Their scale is at least the samples' scale, or alone their largest answer."""
    truth = np.array([[100.0], [1.0], [10.0], [10.0]])
    for edge, scale in ((0, 100), (1, 10), (2, 10)):
        candidate = truth.copy()
        candidate[edge] += 1
        assert compare(candidate, truth, truth, edge_cases=2).scaled_error == pytest.approx(
            1 / scale
        )
        assert compare(candidate, truth, truth, edge_cases=4).scaled_error == pytest.approx(1 / 100)


def test_noise_is_in_decibels() -> None:
    """A tenth of the signal's amplitude is 20 dB, and edge cases do not count."""
    truth = np.array([[100.0], [3.0], [4.0]])
    noise = np.array([[50.0], [0.3], [0.4]])
    assert compare(truth + noise, truth, truth, edge_cases=1).sqnr_db == pytest.approx(20)
    assert compare(11 * truth, truth, truth).sqnr_db == pytest.approx(-20)
    assert compare(truth, truth, truth).sqnr_db == float("inf")
    assert compare(truth, 0 * truth, 0 * truth).sqnr_db == float("-inf")


def test_the_rms_error_is_in_units_of_the_baseline_s() -> None:
    """Only real samples count, and an exact baseline counts as rounded once."""
    truth = np.array([[9.0], [3.0], [4.0]])
    found = compare(truth + 0.04, truth + 0.01, truth, edge_cases=1)
    assert found.rms_ratio == pytest.approx(4)
    exact = compare(truth + 5 * U, truth, truth, edge_cases=1)
    assert exact.rms_ratio == pytest.approx(5 / (12.5**0.5 / 12**0.5))
    zeros = np.zeros((2, 1))
    assert compare(zeros, zeros, zeros).rms_ratio == 1
    assert compare(zeros + 1, zeros, zeros).rms_ratio == float("inf")


def test_the_spread_is_the_worst_sample_over_the_median_one() -> None:
    """Channels are scaled, so a large one does not hide a small one's outlier."""
    truth = np.array([[1.0, 16.0]] * 5)
    candidate = truth + 1e-3
    candidate[:, 1] = truth[:, 1]
    candidate[2, 0] = 1 + 7e-3
    assert compare(candidate, truth, truth).sample_spread == pytest.approx(7)
    candidate = truth.copy()
    candidate[2, 1] += 16 * 3 * U * 2**0.5
    assert compare(candidate, truth, truth).sample_spread == pytest.approx(3)
    candidate[2:] = np.nan
    assert compare(candidate, truth, truth).sample_spread == float("inf")
    assert compare(truth, truth, truth, edge_cases=5).sample_spread == 1
    pictures = np.broadcast_to(truth[:, :, None, None], (5, 2, 3, 3))
    wrong = pictures + 1e-3
    wrong[2] += 6e-3
    assert compare(wrong, pictures, pictures).sample_spread == pytest.approx(7)


def test_channels_are_the_second_axis_and_the_last() -> None:
    """[N, C] has one axis of channels, and [N, T, C] has two."""
    values = np.array([[[1.0, 5.0, 2.0], [3.0, 0.0, 4.0]]])
    assert by_channel(values, np.max).tolist() == [5, 4, 3, 5, 4]
    assert by_channel(values[0], np.max).tolist() == [3, 5, 4]
    assert by_channel(values[:0], np.max).tolist() == [0] * 5
    assert channel_rms(np.array([[3.0], [4.0]])).tolist() == pytest.approx([12.5**0.5])
    assert channelled(np.arange(3)).shape == (3, 1)


@pytest.mark.parametrize(("second", "near"), [(99.0, True), (98.99, False)])
def test_a_near_tie_is_1_percent_of_the_way_from_the_mean(second: float, near: bool) -> None:
    """With a best logit of 100 and a mean of 0, a second within 1.0 is a near tie."""
    rest = -(100 + second) / 2
    logits = np.array([[100, second, rest, rest]])
    assert near_ties(logits).tolist() == near_ties(logits + 64).tolist() == [near]
    assert margins(np.array([[100, rest, second, rest]])).tolist() == pytest.approx([100 - second])


def test_labels_are_counted() -> None:
    """Flips, ties, margins and both accuracies are counted; targets of -1 are ignored."""
    truth = np.array([[4.0, 0.0], [0.0, 3.0], [2.0, 0.0], [0.0, 1.0]])
    candidate = np.array([[4.0, 4.0], [3.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    labels = _labels(candidate, truth, [0, 1, -1, 0])
    assert (labels.samples, labels.flips, labels.decided_flips, labels.ties) == (4, 1, 1, 1)
    assert (labels.largest_flip_margin, labels.smallest_margin, labels.largest_error) == (3, 1, 4)
    assert labels.accuracy == pytest.approx(1 / 3)
    assert labels.eager_accuracy == pytest.approx(2 / 3)
    assert labels.certificate == 0.25
    older = labels.model_dump(exclude={"near_ties"})
    assert LabelFigures.model_validate(older).near_ties == 0
    without = _labels(candidate, truth)
    assert (without.accuracy, without.eager_accuracy) == (None, None)
    assert _labels(truth, truth, [-1] * 4).accuracy is None


@pytest.mark.parametrize(("error", "uncertain"), [(0.5, 1), (0.499, 0)])
def test_a_label_is_uncertain_within_twice_the_error(error: float, uncertain: int) -> None:
    """Two logits change order if each is off by half of their distance."""
    truth = np.array([[1.0, 0.0], [3.0, 0.0]])
    assert _labels(truth + np.array([[0, error], [0, 0]]), truth).uncertain == uncertain


def test_without_an_error_every_label_is_certified() -> None:
    """The ratio is infinite without an error, and 0 for NaN."""
    truth = np.array([[1.0, 0.0]])
    assert _labels(truth, truth).certificate == float("inf")
    assert _labels(truth * np.nan, truth).certificate == 0


def test_a_difference_is_scaled_by_the_second_s_largest_value() -> None:
    """Two zeros differ by 0, and NaN on either side gives infinity."""
    one, other = np.array([[1.0, 8.0]]), np.array([[3.0, -4.0]])
    assert scaled_difference(one, other) == 3
    assert scaled_difference(other, one) == 1.5
    assert scaled_difference(0 * one, 0 * one) == 0
    assert scaled_difference(one, 0 * one) == float("inf")
    assert scaled_difference(one, other * np.nan) == float("inf")


def test_softmax_is_that_of_each_sample() -> None:
    """Exponentials are divided by their sum, without overflow."""
    logits = np.array([[0.0, np.log(3)], [1000.0, 1000.0]])
    assert softmax(logits) == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5]]))
    assert softmax_error(np.array([[0.25, 0.7], [0.5, 0.5]]), logits) == pytest.approx(0.05)


def test_the_largest_quotient_takes_nothing_over_nothing_as_0() -> None:
    """0 / 0 counts as 0; any other value over 0 and NaN are infinite."""
    assert worst_ratio(np.array([0.0, 6.0]), np.array([0.0, 4.0])) == 1.5
    assert worst_ratio(np.array([1.0, 0.0]), np.array([0.0, 4.0])) == float("inf")
    assert worst_ratio(np.array([np.nan, 1.0]), np.array([1.0, 1.0])) == float("inf")
    assert worst_ratio(np.zeros(0), np.zeros(0)) == 0


def test_the_worst_samples_are_named_the_first_of_equals_first() -> None:
    """The five samples with the largest errors are listed, ties in order."""
    candidate = np.zeros((8, 2))
    candidate[[6, 1, 4], 0] = 3, 3, 5
    assert compare(candidate, 0 * candidate, 0 * candidate).worst == (4, 1, 6, 0, 2)
    found = compare(-candidate - 1, candidate, candidate)
    assert (found.max_abs_error, found.largest_value, found.samples) == (11, 5, 8)
