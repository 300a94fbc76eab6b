"""How far two sets of answers are apart, in numbers that do not explode near zero. Knows no torch.

Shape suffixes: N samples, K classes, C channels. ULPs and relative errors of single values are not
used: they are huge wherever a value happens to be small, faults or none. Each channel of an output
has a scale of its own, so that boxes up to 640 do not hide an error of a score up to 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
"""Tensors by their names; the first axis of each counts the samples."""

WORST_SAMPLES = 5
# Two logits can change places if each is off by half of their distance: a smallest distance above
# so many largest errors means that no label can change.
SURE = 2
# Two best logits within this share of the distance from the best to the sample's mean logit: the
# reference itself wavers (with a best logit of 20, at 55 to 45%), and any rounding may tip it. The
# sample's own distance: one sample with huge logits must not make near ties of all the others.
NEAR_TIE = 0.01
# A channel is measured by its own largest value, but not by less than this share of the output's: a
# unit that few samples activate shows less than the terms that it sums, whose roundings it has.
LEAST_SCALE = 1 / 16
# Of those terms eager's own error tells: a sum is off by some four roundings of its largest terms.
ROUNDINGS_OF_A_SUM = 4
UNIT_ROUNDOFF = 2.0**-24  # of float32
# Rounding a number correctly leaves a relative error of at least so much, as a root mean square:
# the error is uniform within half a unit in the last place, and that unit is at least 2^-24 of it.
ROUNDING_RMS = UNIT_ROUNDOFF / 12**0.5


class Figures(BaseModel):
    """A base for measured figures: infinite ones survive a JSON file, as strings."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class LabelFigures(Figures):
    """What became of the labels (the largest logit's position) of an output of logits.

    Attributes:
        samples: How many there are.
        flips: Samples whose label differs from eager's.
        decided_flips: Those of them where the reference is no near tie (see ``NEAR_TIE``).
        near_ties: Samples where the reference is one, whatever the candidate says.
        largest_flip_margin: Largest distance between the reference's two best logits among those
            samples; 0 if there are none.
        ties: Samples whose two best logits are equal.
        smallest_margin: Smallest distance between the reference's two best logits over all samples.
        largest_error: max |candidate - float64| over all logits.
        uncertain: Samples whose two best logits lie within twice that error: those whose label an
            error of this size could change.
        accuracy: Share of labels that are the target; None where no targets are known.
        eager_accuracy: The same of the fp32 baseline.
    """

    samples: int
    flips: int
    decided_flips: int
    largest_flip_margin: float
    ties: int
    smallest_margin: float
    largest_error: float
    uncertain: int
    accuracy: float | None
    eager_accuracy: float | None
    near_ties: int = 0

    @property
    def certificate(self) -> float:
        """Smallest margin over largest error: above 2, no label of these samples can change."""
        return _ratio(self.smallest_margin, self.largest_error, none=float("inf"))


class Comparison(Figures):
    """One output of a candidate against the reference's.

    Edge cases count for ``scaled_error`` and ``floor_largest`` alone. If all samples are edge
    cases, their largest answer is their scale.

    Attributes:
        samples: How many were compared.
        non_finite: How many of the candidate's values are NaN or infinite; if any, the error
            figures are infinite too (max(|NaN|) > bound is false: a NaN must fail by name).
        max_abs_error: max |candidate - fp32|.
        scaled_error: The worst channel's max |candidate - fp32| over its max |fp32|.
        largest_value: max |fp32|.
        rms_ratio: RMS(candidate - float64) / RMS(fp32 - float64), which is taken for at least what
            rounding the answer to float32 costs; 1 if both are zero.
        sqnr_db: 10 log10(sum float64^2 / sum (candidate - float64)^2) over the real samples;
            infinite without an error, NaN with one that is not finite.
        worst: Positions of the samples with the largest errors, the largest first.
        labels: For logits alone.
        unequal: Of integer and boolean outputs alone: how many values differ from eager's.
        sample_spread: The worst sample's RMS error over the median sample's, channels by their
            scales.
        floor_rms: The worst channel's RMS error against float64 over float32's own (``Floor``);
            None where no floor was measured.
        floor_largest: The same of the largest errors.
    """

    samples: int
    non_finite: int
    max_abs_error: float
    scaled_error: float
    largest_value: float
    rms_ratio: float
    sqnr_db: float
    worst: tuple[int, ...]
    labels: LabelFigures | None = None
    unequal: int | None = None
    sample_spread: float = 1.0
    floor_rms: float | None = None
    floor_largest: float | None = None


@dataclass(frozen=True)
class Floor:
    """What float32 itself leaves undecided of one output: errors against float64, by channel.

    Attributes:
        rms_C: Root mean square error of each channel, as ``by_channel`` lists them.
        largest_C: Largest error of each.
        largest_E: Largest error of each edge case.
    """

    rms_C: Array
    largest_C: Array
    largest_E: Array

    @classmethod
    def of(cls, answers: Array, fp64: Array, edges: int) -> "Floor":
        """The floor of one arrangement; the answer's own rounding to float32 is never less."""
        found, true = channelled(answers), channelled(fp64)
        error, size = np.abs(found - true), np.abs(true)
        rounded = UNIT_ROUNDOFF * size
        return cls(
            np.maximum(channel_rms(error[edges:]), ROUNDING_RMS * channel_rms(size[edges:])),
            channel_largest(np.maximum(error, rounded)[edges:]),
            _by_sample(np.maximum(error, rounded)[:edges]),
        )

    def of_edge_cases(self, samples: "Floor") -> "Floor":
        """The floor of a block of edge cases, each at least the largest of the samples.

        A floor of one edge case is a single draw, which may be small by chance.
        """
        return Floor(
            self.rms_C,
            self.largest_C,
            np.maximum(self.largest_E, samples.largest_C.max()),
        )

    def or_worse(self, other: "Floor") -> "Floor":
        """The larger error of two, channel by channel."""
        return Floor(
            np.maximum(self.rms_C, other.rms_C),
            np.maximum(self.largest_C, other.largest_C),
            np.maximum(self.largest_E, other.largest_E),
        )


def compare(
    candidate: Array,
    fp32: Array,
    fp64: Array,
    *,
    logits: bool = False,
    targets_N: Array | None = None,
    edge_cases: int = 0,
    floor: Floor | None = None,
    one_scale: bool = False,
) -> Comparison:
    """Compare one output's values for the same samples.

    Args:
        candidate: The exported model's, [N, ...].
        fp32: The checkpoint's in float32 eager mode, [N, ...]: the baseline.
        fp64: The checkpoint's in float64, [N, ...]: the reference.
        logits: The output is [N, K] logits, whose largest is the label.
        targets_N: The right labels, int [N], -1 where there is none.
        edge_cases: How many of the first samples are edge cases, which are made up. They have no
            labels, and a quantization never saw them.
        floor: Of this output, for the figures that are multiples of it.
        one_scale: All values are of one channel, and so have one scale.

    Raises:
        ValueError: The shapes differ.
    """
    if not candidate.shape == fp32.shape == fp64.shape:
        raise ValueError(
            f"shapes differ: candidate {candidate.shape}, fp32 baseline {fp32.shape}, fp64 "
            f"reference {fp64.shape}"
        )
    shaped = _pooled if one_scale else channelled
    found, baseline, true = (shaped(values) for values in (candidate, fp32, fp64))
    finite = np.isfinite(found)
    difference = np.where(finite, np.abs(found - baseline), np.inf)
    error = np.where(finite, np.abs(found - true), np.inf)
    real = slice(edge_cases, None)
    scale_C = channel_scale(baseline[real], baseline[real] - true[real])
    targets = None if targets_N is None else targets_N[real]
    rounding = ROUNDING_RMS * _rms(true[real])
    return Comparison(
        samples=len(found),
        non_finite=int((~finite).sum()),
        max_abs_error=float(difference.max()),
        scaled_error=_scaled(difference, baseline, scale_C, edge_cases),
        largest_value=float(np.abs(baseline).max()),
        unequal=int((candidate != fp32).sum()) if fp32.dtype.kind in "biu" else None,
        rms_ratio=_ratio(
            _rms(error[real]), max(_rms(baseline[real] - true[real]), rounding), none=1.0
        ),
        sqnr_db=_decibels(true[real], found[real] - true[real]),
        worst=tuple(int(i) for i in np.argsort(-_by_sample(difference), kind="stable"))[
            :WORST_SAMPLES
        ],
        labels=_labels(found[real], baseline[real], true[real], targets) if logits else None,
        sample_spread=_spread(error[real], scale_C),
        **_multiples(error, floor and floor.or_worse(Floor.of(fp32, fp64, edge_cases)), edge_cases),
    )


def channel_axes(values: Array) -> tuple[int, ...]:
    """The axes that may count channels: the second, and the last, where transformers have them."""
    return (1,) if values.ndim < 3 else (1, values.ndim - 1)  # noqa: PLR2004 - [N, C]


def by_channel(values: Array, reduce: Callable[..., Array]) -> Array:
    """A figure for each channel of each of the ``channel_axes``, in one row, from [N, C, ...]."""
    parts = []
    if not len(values):  # every sample is an edge case
        return np.zeros(sum(values.shape[axis] for axis in channel_axes(values)))
    for axis in channel_axes(values):
        others = tuple(other for other in range(values.ndim) if other != axis)
        parts.append(reduce(values, axis=others))
    return np.concatenate(parts)


def channel_largest(values: Array) -> Array:
    """The largest value of each channel."""
    return by_channel(values, np.max)


def channel_rms(values: Array) -> Array:
    """The root mean square of each channel."""
    return np.asarray(np.sqrt(by_channel(np.square(values), np.mean)))


def channel_scale(values: Array, rounding: Array) -> Array:
    """The size of each channel, at most the output's.

    Args:
        values: The reference's, float32.
        rounding: How far they are from float64's.
    """
    largest_C = channel_largest(np.abs(values))
    output = largest_C.max()
    terms_C = channel_largest(np.abs(rounding)) / (ROUNDINGS_OF_A_SUM * UNIT_ROUNDOFF)
    return np.asarray(np.clip(np.maximum(largest_C, terms_C), LEAST_SCALE * output, output))


def scaled_difference(a: Array, b: Array) -> float:
    """Max |a - b| / max |b|; infinite if either holds a NaN or an infinity."""
    first, second = a.astype(np.float64), b.astype(np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return float("inf")
    return _ratio(float(np.abs(first - second).max()), float(np.abs(second).max()), none=0.0)


def softmax(logits_NK: Array) -> Array:
    """Softmax in float64, [N, K]."""
    logits = logits_NK.astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def softmax_error(probabilities_NK: Array, logits_NK: Array) -> float:
    """Max |probabilities - softmax of the same model's logits in float64|; infinite for NaN."""
    error = float(np.abs(probabilities_NK.astype(np.float64) - softmax(logits_NK)).max())
    return error if np.isfinite(error) else float("inf")


def margins(logits_NK: Array) -> Array:
    """Distance between the two largest logits of each sample, float [N]."""
    best = np.sort(logits_NK, axis=1)[:, -2:]
    return np.asarray(best[:, 1] - best[:, 0])


def near_ties(logits_NK: Array) -> Array:
    """Which samples' two best logits are a near tie (see ``NEAR_TIE``), bool [N]."""
    distance_N = logits_NK.max(axis=1) - logits_NK.mean(axis=1)
    return np.asarray(margins(logits_NK) <= NEAR_TIE * distance_N)


def _labels(found: Array, fp32: Array, fp64: Array, targets_N: Array | None) -> LabelFigures:
    flipped_N = found.argmax(axis=1) != fp32.argmax(axis=1)
    margin_N, near_N = margins(fp64), near_ties(fp64)
    # Whatever the values, a NaN is certain of nothing.
    error = float(np.where(np.isfinite(found), np.abs(found - fp64), np.inf).max())
    known_N = slice(0, 0) if targets_N is None else np.flatnonzero(targets_N >= 0)
    targets = np.zeros(0) if targets_N is None else targets_N[known_N]
    accuracies = [
        float((values.argmax(axis=1)[known_N] == targets).mean()) if len(targets) else None
        for values in (found, fp32)
    ]
    return LabelFigures(
        samples=len(found),
        flips=int(flipped_N.sum()),
        decided_flips=int((flipped_N & ~near_N).sum()),
        near_ties=int(near_N.sum()),
        largest_flip_margin=float(margin_N[flipped_N].max(initial=0)),
        ties=int((margins(found) == 0).sum()),
        smallest_margin=float(margin_N.min()),
        largest_error=error,
        uncertain=int((margin_N <= SURE * error).sum()),
        accuracy=accuracies[0],
        eager_accuracy=accuracies[1],
    )


def _scaled(difference: Array, fp32: Array, scale_C: Array, edges: int) -> float:
    size_E = _by_sample(np.abs(fp32[:edges]))
    # A block of edge cases has a scale of its own; beside samples each edge case has its own.
    least = size_E.max() if edges == len(fp32) else scale_C.max()
    return max(
        worst_ratio(channel_largest(difference[edges:]), scale_C),
        worst_ratio(_by_sample(difference[:edges]), np.maximum(size_E, least)),
    )


def _multiples(error: Array, floor: Floor | None, edges: int) -> dict[str, float]:
    if floor is None:
        return {}
    allowed_E = floor.of_edge_cases(floor).largest_E
    return {
        "floor_rms": worst_ratio(channel_rms(error[edges:]), floor.rms_C),
        "floor_largest": max(
            worst_ratio(channel_largest(error[edges:]), floor.largest_C),
            worst_ratio(_by_sample(error[:edges]), allowed_E),
        ),
    }


def _spread(error: Array, scale_C: Array) -> float:
    if not len(error):
        return 1.0
    size = scale_C[: error.shape[1]].reshape(1, -1, *[1] * (error.ndim - 2))
    scaled = error / np.where(size > 0, size, 1)
    axes = tuple(range(1, scaled.ndim))
    error_N = np.sqrt(np.mean(np.square(scaled), axis=axes))
    # A sample that is off by a rounding is no outlier among samples that are exact.
    usual = max(float(np.median(error_N)), UNIT_ROUNDOFF)
    return float(error_N.max()) / usual if np.isfinite(usual) else float("inf")


def channelled(values: Array) -> Array:
    """float64 [N, C, ...]; an output of one number a sample has one channel."""
    # In one memory order: NumPy adds in that order, so that equal values have equal sums.
    wide = np.ascontiguousarray(values, dtype=np.float64)
    return wide.reshape(len(wide), 1) if wide.ndim == 1 else wide


def _pooled(values: Array) -> Array:
    """float64 [N, 1, M, 1]: one channel of all M values of a sample."""
    return channelled(values).reshape(len(values), 1, -1, 1)


def _by_sample(values: Array) -> Array:
    """The largest value of each sample, [N]."""
    return np.asarray(values.max(axis=tuple(range(1, values.ndim)), initial=0))


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def worst_ratio(parts: Array, wholes: Array) -> float:
    """The largest quotient; 0 where both are zero, or if there are none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(parts == 0, 0.0, parts / wholes)
    worst = float(ratios.max(initial=0))
    return float("inf") if np.isnan(worst) else worst


def _ratio(part: float, whole: float, *, none: float) -> float:
    """The quotient; ``none`` if both are zero, infinite if the whole alone is."""
    if whole == 0:
        return none if part == 0 else float("inf")
    return part / whole


def _decibels(signal: Array, noise: Array) -> float:
    ratio = _ratio(float(np.sum(np.square(signal))), float(np.sum(np.square(noise))), none=np.inf)
    return 10 * float(np.log10(ratio)) if ratio > 0 else float("-inf")
