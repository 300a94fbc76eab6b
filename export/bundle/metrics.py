"""How far two sets of answers are apart, in numbers that do not explode near zero. Knows no torch.

Shape suffixes: N samples, K classes, F the values of one sample. ULPs and relative errors of single
values are not used: they are huge wherever a value happens to be small, faults or none.
"""

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
# Two best logits within this share of the largest logit: the reference itself wavers (with logits
# up to 20, at 55 to 45%), and any rounding may tip it.
NEAR_TIE = 0.01


class Figures(BaseModel):
    """A base for measured figures: infinite ones survive a JSON file, as strings."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class LabelFigures(Figures):
    """What became of the labels (the largest logit's position) of an output of logits.

    Attributes:
        samples: How many there are.
        flips: Samples whose label differs from eager's.
        decided_flips: Those of them where the truth does not waver (see ``NEAR_TIE``).
        largest_flip_margin: Largest distance between the truth's two best logits among those
            samples; 0 if there are none.
        ties: Samples whose two best logits are equal.
        smallest_margin: Smallest distance between the truth's two best logits over all samples.
        largest_error: max |candidate - float64| over all logits.
        uncertain: Samples whose two best logits lie within twice that error: those whose label an
            error of this size could change.
        accuracy: Share of labels that are the target; None where no targets are known.
        eager_accuracy: The same of eager.
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

    @property
    def certificate(self) -> float:
        """Smallest margin over largest error: above 2, no label of these samples can change."""
        return _ratio(self.smallest_margin, self.largest_error, none=float("inf"))


class Comparison(Figures):
    """One output of a candidate against the reference's.

    Attributes:
        samples: How many were compared.
        non_finite: How many of the candidate's values are NaN or infinite; if any, the error
            figures are infinite too (max(|NaN|) > bound is false: a NaN must fail by name).
        max_abs_error: max |candidate - eager|.
        scaled_error: max |candidate - eager| / max |eager|.
        largest_value: max |eager|.
        rms_ratio: RMS(candidate - float64) / RMS(eager - float64); 1 if both are zero.
        sqnr_db: 10 log10(sum float64^2 / sum (candidate - float64)^2) over the real samples;
            infinite without an error, NaN with one that is not finite.
        worst: Positions of the samples with the largest errors, the largest first.
        labels: For logits alone.
        unequal: Of integer and boolean outputs alone: how many values differ from eager's.
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


def compare(
    candidate: Array,
    eager: Array,
    truth: Array,
    *,
    logits: bool = False,
    targets_N: Array | None = None,
    corners: int = 0,
) -> Comparison:
    """Compare one output's values for the same samples.

    Args:
        candidate: The exported model's, [N, ...].
        eager: The checkpoint's in float32 eager mode, [N, ...]: the yardstick.
        truth: The checkpoint's in float64, [N, ...]: the truth.
        logits: The output is [N, K] logits, whose largest is the label.
        targets_N: The right labels, int [N], -1 where there is none.
        corners: How many of the first samples are made-up extremes. They count for the errors, not
            for labels (they have none) nor for the noise of a quantization that never saw them.

    Raises:
        ValueError: The shapes differ.
    """
    if not candidate.shape == eager.shape == truth.shape:
        raise ValueError(
            f"shapes differ: candidate {candidate.shape}, eager {eager.shape}, truth {truth.shape}"
        )
    found, yardstick, true = (_flat(values) for values in (candidate, eager, truth))
    finite = np.isfinite(found)
    error_N = np.where(finite, np.abs(found - yardstick), np.inf).max(axis=1)
    max_abs, largest = float(error_N.max()), float(np.abs(yardstick).max())
    own = float(np.mean(np.square(found - true))) if finite.all() else float("inf")
    real = slice(corners, None)
    return Comparison(
        samples=len(found),
        non_finite=int((~finite).sum()),
        max_abs_error=max_abs,
        scaled_error=_ratio(max_abs, largest, none=0.0),
        largest_value=largest,
        rms_ratio=_ratio(own, float(np.mean(np.square(yardstick - true))), none=1.0) ** 0.5,
        sqnr_db=_decibels(true[real], found[real] - true[real]),
        worst=tuple(int(i) for i in np.argsort(-error_N, kind="stable")[:WORST_SAMPLES]),
        labels=_labels(
            found[real], yardstick[real], true[real], None if targets_N is None else targets_N[real]
        )
        if logits
        else None,
        unequal=int((candidate != eager).sum()) if eager.dtype.kind in "biu" else None,
    )


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


def _labels(found: Array, eager: Array, truth: Array, targets_N: Array | None) -> LabelFigures:
    flipped_N = found.argmax(axis=1) != eager.argmax(axis=1)
    margin_N = margins(truth)
    # Whatever the values, a NaN is certain of nothing.
    error = float(np.where(np.isfinite(found), np.abs(found - truth), np.inf).max())
    known_N = slice(0, 0) if targets_N is None else np.flatnonzero(targets_N >= 0)
    targets = np.zeros(0) if targets_N is None else targets_N[known_N]
    accuracies = [
        float((values.argmax(axis=1)[known_N] == targets).mean()) if len(targets) else None
        for values in (found, eager)
    ]
    return LabelFigures(
        samples=len(found),
        flips=int(flipped_N.sum()),
        decided_flips=int((flipped_N & (margin_N > NEAR_TIE * np.abs(truth).max())).sum()),
        largest_flip_margin=float(margin_N[flipped_N].max(initial=0)),
        ties=int((margins(found) == 0).sum()),
        smallest_margin=float(margin_N.min()),
        largest_error=error,
        uncertain=int((margin_N <= SURE * error).sum()),
        accuracy=accuracies[0],
        eager_accuracy=accuracies[1],
    )


def _flat(values: Array) -> Array:
    """float64 [N, F]."""
    return values.astype(np.float64).reshape(len(values), -1)


def _ratio(part: float, whole: float, *, none: float) -> float:
    """The quotient; ``none`` if both are zero, infinite if the whole alone is."""
    if whole == 0:
        return none if part == 0 else float("inf")
    return part / whole


def _decibels(signal: Array, noise: Array) -> float:
    ratio = _ratio(float(np.sum(np.square(signal))), float(np.sum(np.square(noise))), none=np.inf)
    return 10 * float(np.log10(ratio)) if ratio > 0 else float("-inf")
