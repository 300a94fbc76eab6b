"""Temperature scaling and the reliability diagram.

Source: C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger 2017, "On Calibration of Modern Neural
Networks", ICML. All logits are divided by one number, which is fitted on validation images only.
This changes the probabilities, but not the predicted digits.

Shape suffixes: N images, K classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from training.compare.schema import Bin, Calibration
from training.evaluation.calibration import brier_score, calibration_bins, calibration_error

LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 0.05, 20.0


def fit_temperature(logits_NK: Tensor, labels: Tensor) -> tuple[float, bool]:
    """Fit the temperature that minimises the mean cross-entropy of the labels.

    The loss is convex in the inverse temperature b. Its slope, the mean of E_p[z] - z_label with
    p = softmax(b z), rises with b, so it has at most one zero.

    Args:
        logits_NK: Logits for the validation images, float [N, K].
        labels: The digits, int64 [N].

    Returns:
        The temperature, 0.05..20, and whether it is only a bound because the slope has no zero.
    """
    from scipy import optimize  # noqa: PLC0415 - the import takes a second

    z_NK = logits_NK.double()
    of_label = z_NK.gather(1, labels.unsqueeze(1)).squeeze(1)

    def slope(inverse: float) -> float:
        expected = ((inverse * z_NK).softmax(1) * z_NK).sum(1)
        return float((expected - of_label).mean())

    if slope(1 / LEAST_TEMPERATURE) < 0:
        return LEAST_TEMPERATURE, True
    if slope(1 / GREATEST_TEMPERATURE) > 0:
        return GREATEST_TEMPERATURE, True
    found = optimize.brentq(slope, 1 / GREATEST_TEMPERATURE, 1 / LEAST_TEMPERATURE)
    return 1 / float(found), False


def calibrate(
    validation_NK: Tensor, validation_labels: Tensor, test_NK: Tensor, test_labels: Tensor
) -> Calibration:
    """Fit the temperature on validation logits, float [N, K]; measure on test logits."""
    temperature, at_bound = fit_temperature(validation_NK, validation_labels)
    figures: dict[str, float] = {}
    for when, divisor in (("before", 1.0), ("after", temperature)):
        logits_NK = test_NK.double() / divisor
        probabilities_NK = logits_NK.softmax(1)
        error = calibration_error(*confidence_and_correct(test_NK, test_labels, divisor))
        figures[f"error_{when}"] = error
        figures[f"loss_{when}"] = float(functional.cross_entropy(logits_NK, test_labels))
        figures[f"brier_{when}"] = brier_score(probabilities_NK, test_labels)
    return Calibration(temperature=temperature, at_bound=at_bound, **figures)


def confidence_and_correct(
    logits_NK: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The predicted digit's probability, float [N] in 0..1, and whether it is correct, bool [N]."""
    confidence, predicted = (logits_NK / temperature).softmax(dim=1).max(dim=1)
    return confidence, predicted == labels


def reliability(
    networks_NK: Sequence[Tensor], labels: Tensor, temperatures: Sequence[float]
) -> list[Bin]:
    """Calibration bins of all networks' predictions together; empty bins are left out.

    Args:
        networks_NK: Each network's logits, float [N, K], for the same images.
        labels: The digits, int64 [N].
        temperatures: One temperature for each network.
    """
    found = [
        confidence_and_correct(logits_NK, labels, temperature)
        for logits_NK, temperature in zip(networks_NK, temperatures, strict=True)
    ]
    bins = calibration_bins(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    return [
        Bin(images=int(images), confidence=confidence / images, accuracy=correct / images)
        for images, confidence, correct in zip(*(one.tolist() for one in bins), strict=True)
        if images
    ]
