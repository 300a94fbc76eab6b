"""How far two sets of answers are apart, in numbers that do not explode near zero. Knows no torch.

Shape suffixes: N images, K classes. ULPs and relative errors of single logits are not used: they
are huge wherever a logit happens to be small, faults or none.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

Array = npt.NDArray[Any]


class Comparison(BaseModel):
    """A candidate's logits against the reference's.

    Attributes:
        images: How many were compared.
        non_finite: How many of the candidate's logits are NaN or infinite; if any, the error
            figures are infinite too (max(|NaN|) > bound is false: a NaN must fail by name).
        max_abs_error: max |candidate - eager|, logits.
        scaled_error: max |candidate - eager| / max |eager|.
        rms_ratio: RMS(candidate - float64) / RMS(eager - float64); 1 if both are zero.
        label_flips: Images whose label (largest logit) differs from eager's.
        worst_image: Position of the image with the largest error.
    """

    model_config = ConfigDict(frozen=True)

    images: int
    non_finite: int
    max_abs_error: float
    scaled_error: float
    rms_ratio: float
    label_flips: int
    worst_image: int


def compare(candidate_NK: Array, eager_NK: Array, truth_NK: Array) -> Comparison:
    """Compare logits of the same images.

    Args:
        candidate_NK: The exported model's, float [N, K].
        eager_NK: The checkpoint's in float32 eager mode, float32 [N, K]: the yardstick.
        truth_NK: The checkpoint's in float64, float64 [N, K]: the truth.

    Raises:
        ValueError: The shapes differ.
    """
    if not candidate_NK.shape == eager_NK.shape == truth_NK.shape:
        raise ValueError(
            f"shapes differ: candidate {candidate_NK.shape}, eager {eager_NK.shape}, "
            f"truth {truth_NK.shape}"
        )
    candidate = candidate_NK.astype(np.float64)
    eager, truth = eager_NK.astype(np.float64), truth_NK.astype(np.float64)
    finite = np.isfinite(candidate)
    error_N = np.where(finite, np.abs(candidate - eager), np.inf).max(axis=1)
    max_abs = float(error_N.max())
    return Comparison(
        images=len(candidate),
        non_finite=int((~finite).sum()),
        max_abs_error=max_abs,
        scaled_error=max_abs / float(np.abs(eager).max()),
        rms_ratio=_rms_ratio(candidate, eager, truth) if finite.all() else float("inf"),
        label_flips=int((candidate.argmax(axis=1) != eager.argmax(axis=1)).sum()),
        worst_image=int(error_N.argmax()),
    )


def scaled_difference(a_NK: Array, b_NK: Array) -> float:
    """Max |a - b| / max |b|; infinite if either holds a NaN or an infinity."""
    a, b = a_NK.astype(np.float64), b_NK.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a - b).max() / np.abs(b).max())


def softmax_error(probabilities_NK: Array, logits_NK: Array) -> float:
    """Max |probabilities - softmax of the same model's logits in float64|; infinite for NaN."""
    logits = logits_NK.astype(np.float64)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    error = float(np.abs(probabilities_NK.astype(np.float64) - expected).max())
    return error if np.isfinite(error) else float("inf")


def _rms_ratio(candidate: Array, eager: Array, truth: Array) -> float:
    own = float(np.sqrt(np.mean(np.square(candidate - truth))))
    yardstick = float(np.sqrt(np.mean(np.square(eager - truth))))
    if yardstick == 0:
        return 1.0 if own == 0 else float("inf")
    return own / yardstick
