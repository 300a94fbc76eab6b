"""Compare two sets of outputs by error figures that stay small near zero. Imports no torch.

Shape suffixes: N samples, K classes, C channels. ULPs and relative errors of single values are not
used: they are huge wherever a value is small, with or without a fault. Each channel of an output
has its own scale, so that boxes up to 640 do not hide an error in a score up to 1.
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
# Two logits can swap order if each is off by half of their distance: if the smallest distance is
# more than this many times the largest error, no label can change.
SURE = 2
# A sample is a near tie if its two best logits are within this share of the distance from the best
# to its mean logit. The reference itself is undecided there (with a best logit of 20, 55 to 45%),
# and any rounding may change the label. The distance is the sample's own, so that one sample with
# huge logits does not make all others near ties.
NEAR_TIE = 0.01
# A channel's scale is its own largest value, but at least this share of the output's: a unit that
# few samples activate has small values, but rounding errors as large as those of its terms.
LEAST_SCALE = 1 / 16
# Eager's own error shows how large those terms are: a sum is off by about four roundings of them.
ROUNDINGS_OF_A_SUM = 4
UNIT_ROUNDOFF = 2.0**-24  # of float32
# Correct rounding leaves at least this relative error, as a root mean square: the error is uniform
# within half a unit in the last place, and that unit is at least 2^-24 of the number.
ROUNDING_RMS = UNIT_ROUNDOFF / 12**0.5


class Figures(BaseModel):
    """Base class of measured figures; infinite ones are stored in JSON as strings."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class LabelFigures(Figures):
    """Figures of the labels (the position of the largest logit) of an output of logits.

    Attributes:
        samples: The number of samples.
        flips: Samples whose label differs from eager's.
        decided_flips: Flips of samples for which the reference is not a near tie (``NEAR_TIE``).
        near_ties: Samples for which the reference is a near tie, with or without a flip.
        largest_flip_margin: Largest distance between the reference's two best logits among flips;
            0 if there are none.
        ties: Samples whose two best logits are equal.
        smallest_margin: Smallest distance between the reference's two best logits over all samples.
        largest_error: max |candidate - float64| over all logits.
        uncertain: Samples whose two best logits lie within twice that error, so that an error of
            this size could change their label.
        accuracy: Share of labels that match the target; None if no targets are known.
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
    """One output of a candidate, compared with the reference's.

    Edge cases do not count for ``rms_ratio``, ``sqnr_db``, ``labels``, ``sample_spread`` and
    ``floor_rms``. If all samples are edge cases, their largest value is their scale.

    Attributes:
        samples: The number of samples compared.
        non_finite: How many of the candidate's values are NaN or infinite; if any, the error
            figures are infinite too, since max(|NaN|) > bound is false and NaN must fail.
        max_abs_error: max |candidate - fp32|.
        scaled_error: The worst channel's max |candidate - fp32| over its max |fp32|.
        largest_value: max |fp32|.
        rms_ratio: RMS(candidate - float64) / RMS(fp32 - float64); the divisor is at least the error
            of rounding the output to float32; 1 if both are zero.
        sqnr_db: 10 log10(sum float64^2 / sum (candidate - float64)^2) over the real samples;
            infinite without an error, NaN if the error is not finite.
        worst: Positions of the samples with the largest errors, the largest first.
        labels: Only for logits.
        unequal: Only for integers and booleans: how many values differ from eager's.
        sample_spread: The worst sample's RMS error over the median sample's, each channel divided
            by its scale.
        floor_rms: The worst channel's RMS error against float64 over float32's own (``Floor``);
            None if no floor was measured.
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
    """The rounding error of float32 itself in one output: errors against float64, by channel.

    Attributes:
        rms_C: Root mean square error of each channel, in the order of ``by_channel``.
        largest_C: Largest error of each channel.
        largest_E: Largest error of each edge case.
    """

    rms_C: Array
    largest_C: Array
    largest_E: Array

    @classmethod
    def of(cls, answers: Array, fp64: Array, edges: int) -> "Floor":
        """The floor of one arrangement, at least the error of rounding the output to float32."""
        found, true = channelled(answers), channelled(fp64)
        error, size = np.abs(found - true), np.abs(true)
        rounded = UNIT_ROUNDOFF * size
        return cls(
            np.maximum(channel_rms(error[edges:]), ROUNDING_RMS * channel_rms(size[edges:])),
            channel_largest(np.maximum(error, rounded)[edges:]),
            _by_sample(np.maximum(error, rounded)[:edges]),
        )

    def of_edge_cases(self, samples: "Floor") -> "Floor":
        """The floor of a block of edge cases, each at least the largest error of the samples.

        The error of a single edge case may be small by chance.
        """
        return Floor(
            self.rms_C,
            self.largest_C,
            np.maximum(self.largest_E, samples.largest_C.max()),
        )

    def or_worse(self, other: "Floor") -> "Floor":
        """The larger errors of two floors, channel by channel."""
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
        candidate: The exported model's values, [N, ...].
        fp32: The checkpoint's values in float32 eager mode, [N, ...]: the baseline.
        fp64: The checkpoint's values in float64, [N, ...]: the reference.
        logits: The output is [N, K] logits; the position of the largest is the label.
        targets_N: The ground-truth labels, int [N], -1 where there is none.
        edge_cases: How many of the first samples are edge cases, which are made up. They have no
            labels, and quantization was not calibrated on them.
        floor: The floor of this output, for the figures that are multiples of it.
        one_scale: Treat all values as one channel, with one scale.

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
    """The axes that may be channels: the second, and the last, as in transformers."""
    return (1,) if values.ndim < 3 else (1, values.ndim - 1)  # noqa: PLR2004 - [N, C]


def by_channel(values: Array, reduce: Callable[..., Array]) -> Array:
    """One figure per channel of [N, C, ...], for all ``channel_axes``, concatenated to 1-D."""
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
        values: The float32 baseline's values.
        rounding: Their difference to the float64 reference's.
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
    """Whether each sample's two best logits are a near tie (see ``NEAR_TIE``), bool [N]."""
    distance_N = logits_NK.max(axis=1) - logits_NK.mean(axis=1)
    return np.asarray(margins(logits_NK) <= NEAR_TIE * distance_N)


def _labels(found: Array, fp32: Array, fp64: Array, targets_N: Array | None) -> LabelFigures:
    flipped_N = found.argmax(axis=1) != fp32.argmax(axis=1)
    margin_N, near_N = margins(fp64), near_ties(fp64)
    # A NaN makes every label uncertain.
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
    # If all are edge cases, they share one scale; else the samples' scale is the minimum.
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
    # A sample with one rounding error is not an outlier among samples that are exact.
    usual = max(float(np.median(error_N)), UNIT_ROUNDOFF)
    return float(error_N.max()) / usual if np.isfinite(usual) else float("inf")


def channelled(values: Array) -> Array:
    """float64 [N, C, ...]; an output of one number a sample has one channel."""
    # In one memory order: NumPy adds in memory order, so this gives equal values equal sums.
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
    """The largest quotient; 0 where both numbers are zero, or if there are none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(parts == 0, 0.0, parts / wholes)
    worst = float(ratios.max(initial=0))
    return float("inf") if np.isnan(worst) else worst


def _ratio(part: float, whole: float, *, none: float) -> float:
    """The quotient; ``none`` if both numbers are zero, infinite if only the whole is."""
    if whole == 0:
        return none if part == 0 else float("inf")
    return part / whole


def _decibels(signal: Array, noise: Array) -> float:
    ratio = _ratio(float(np.sum(np.square(signal))), float(np.sum(np.square(noise))), none=np.inf)
    return 10 * float(np.log10(ratio)) if ratio > 0 else float("-inf")
