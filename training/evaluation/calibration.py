"""How far probabilities may be believed: calibration bins, their error, and the Brier score.

The negative log-likelihood is the cross-entropy that ``torch.nn.functional`` has.

Shape suffixes: N images, K classes, B bins.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

CALIBRATION_BINS = 15


class CalibrationBins(NamedTuple):
    """Sums over the images of each bin, float64 [B]: how many, their confidence, and correct."""

    images: Tensor
    confidence: Tensor
    correct: Tensor


def calibration_bins(confidence_N: Tensor, correct_N: Tensor) -> CalibrationBins:
    """Sort images into 15 bins of equal width by the probability of their answer.

    Args:
        confidence_N: Probability of each answer, float, 0..1.
        correct_N: Whether it is right, bool.
    """
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=confidence_N.dtype)
    bin_N = torch.bucketize(confidence_N, edges[1:-1])
    values = (torch.ones_like(confidence_N), confidence_N, correct_N)
    empty = torch.zeros(CALIBRATION_BINS, dtype=torch.float64)
    return CalibrationBins(*(empty.index_add(0, bin_N, value.double()) for value in values))


def calibration_error(confidence_N: Tensor, correct_N: Tensor) -> float:
    """Expected calibration error, 0..1: mean gap between confidence and accuracy over the bins.

    Each bin counts by its images (Guo et al. 2017, "On Calibration of Modern Neural Networks",
    equation 3). At an accuracy of 99.5% nearly all images are in the last bin: read it beside the
    negative log-likelihood and the Brier score.
    """
    bins = calibration_bins(confidence_N, correct_N)
    return float((bins.correct - bins.confidence).abs().sum() / len(confidence_N))


def brier_score(probabilities_NK: Tensor, labels_N: Tensor) -> float:
    """Mean squared distance, 0..2, of probabilities [N, K] to the right answers, int64 [N].

    Unlike the calibration error it needs no bins, and is least for the true probabilities alone
    (G. W. Brier 1950, "Verification of forecasts expressed in terms of probability").
    """
    answers_NK = functional.one_hot(labels_N, probabilities_NK.shape[1])
    return float((probabilities_NK.double() - answers_NK).square().sum(1).mean())
