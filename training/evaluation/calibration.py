"""Calibration of predicted probabilities: calibration bins, calibration error, Brier score.

The negative log-likelihood is computed by ``torch.nn.functional.cross_entropy``.

Shape suffixes: N images, K classes, B bins.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

CALIBRATION_BINS = 15


class CalibrationBins(NamedTuple):
    """Per bin, float64 [B]: number of images, sum of confidences, number of correct answers."""

    images: Tensor
    confidence: Tensor
    correct: Tensor


def calibration_bins(confidence_N: Tensor, correct_N: Tensor) -> CalibrationBins:
    """Sort images into 15 bins of equal width by the probability of the predicted class.

    Args:
        confidence_N: Probability of each prediction, float, 0..1.
        correct_N: Whether each prediction is correct, bool.
    """
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=confidence_N.dtype)
    bin_N = torch.bucketize(confidence_N, edges[1:-1])
    values = (torch.ones_like(confidence_N), confidence_N, correct_N)
    empty = torch.zeros(CALIBRATION_BINS, dtype=torch.float64)
    return CalibrationBins(*(empty.index_add(0, bin_N, value.double()) for value in values))


def calibration_error(confidence_N: Tensor, correct_N: Tensor) -> float:
    """Expected calibration error, 0..1: mean gap between confidence and accuracy over the bins.

    Each bin is weighted by its number of images (Guo et al. 2017, "On Calibration of Modern Neural
    Networks", equation 3). At an accuracy of 99.5%, nearly all images fall into the last bin, so
    the negative log-likelihood and the Brier score should be read together with this error.
    """
    bins = calibration_bins(confidence_N, correct_N)
    return float((bins.correct - bins.confidence).abs().sum() / len(confidence_N))


def brier_score(probabilities_NK: Tensor, labels_N: Tensor) -> float:
    """Mean squared distance, 0..2, from probabilities [N, K] to one-hot labels, int64 [N].

    Unlike the calibration error, it needs no bins, and only the true probabilities minimise it
    (G. W. Brier 1950, "Verification of forecasts expressed in terms of probability").
    """
    answers_NK = functional.one_hot(labels_N, probabilities_NK.shape[1])
    return float((probabilities_NK.double() - answers_NK).square().sum(1).mean())
