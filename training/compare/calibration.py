"""Temperature scaling and the reliability diagram.

Source: C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger 2017, "On Calibration of Modern Neural
Networks", ICML. One number, fitted on validation images alone, divides all logits: labels stay,
probabilities change.

Shape suffixes: N images, K classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from training.compare.group_result import Bin, Calibration
from training.evaluation.calibration import brier_score, calibration_bins, calibration_error

LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 0.05, 20.0
HALVINGS = 60  # of the inverse temperature's range: far below what a float64 can tell apart


def fit_temperature(logits_NK: Tensor, labels: Tensor) -> tuple[float, bool]:
    """The temperature that gives the labels the least mean cross-entropy.

    The loss is convex in the inverse temperature b: its slope, the mean of E_p[z] - z_label with
    p = softmax(b z), rises with b, so that halving the range finds where it is 0.

    Args:
        logits_NK: float [N, K] of validation images.
        labels: int64 [N].

    Returns:
        The temperature in 0.05..20, and whether it is a bound because the slope has no zero there.
    """
    z_NK = logits_NK.double()
    of_label = z_NK.gather(1, labels.unsqueeze(1)).squeeze(1)

    def slope(inverse: float) -> float:
        expected = ((inverse * z_NK).softmax(1) * z_NK).sum(1)
        return float((expected - of_label).mean())

    low, high = 1 / GREATEST_TEMPERATURE, 1 / LEAST_TEMPERATURE
    if slope(high) < 0:
        return LEAST_TEMPERATURE, True
    if slope(low) > 0:
        return GREATEST_TEMPERATURE, True
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high), False


def calibrate(
    validation_NK: Tensor, validation_labels: Tensor, test_NK: Tensor, test_labels: Tensor
) -> Calibration:
    """Fit the temperature on validation logits, float [N, K]; measure on test logits."""
    temperature, at_bound = fit_temperature(validation_NK, validation_labels)
    before = calibration_error(*confidence_and_hits(test_NK, test_labels, 1.0))
    after = calibration_error(*confidence_and_hits(test_NK, test_labels, temperature))
    scaled_NK = test_NK.double() / temperature
    return Calibration(
        temperature=temperature,
        at_bound=at_bound,
        error_before=before,
        error_after=after,
        loss_before=float(functional.cross_entropy(test_NK.double(), test_labels)),
        loss_after=float(functional.cross_entropy(scaled_NK, test_labels)),
        brier_before=brier_score(test_NK.double().softmax(1), test_labels),
        brier_after=brier_score(scaled_NK.softmax(1), test_labels),
    )


def confidence_and_hits(
    logits_NK: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The label's probability, float [N] in 0..1, and whether it is right, bool [N]."""
    confidence, read_as = (logits_NK / temperature).softmax(dim=1).max(dim=1)
    return confidence, read_as == labels


def reliability(
    networks_NK: Sequence[Tensor], labels: Tensor, temperatures: Sequence[float]
) -> list[Bin]:
    """Bins of equal width of all networks' answers together; empty bins are left out.

    Args:
        networks_NK: Each network's logits, float [N, K], of the same images.
        labels: int64 [N].
        temperatures: One for each network.
    """
    found = [
        confidence_and_hits(logits_NK, labels, temperature)
        for logits_NK, temperature in zip(networks_NK, temperatures, strict=True)
    ]
    confidence, hits = (torch.cat(parts) for parts in zip(*found, strict=True))
    bins = calibration_bins(confidence.double(), hits)
    return [
        Bin(images=int(images), confidence=sure / images, accuracy=correct / images)
        for images, sure, correct in zip(*(sums.tolist() for sums in bins), strict=True)
        if images
    ]
