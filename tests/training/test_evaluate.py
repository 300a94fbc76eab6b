"""Metrics, checked on predictions with known results."""

import math

import pytest
import torch
from torch import Tensor, nn

from training.data import LabelledImages
from training.evaluation.calibration import calibration_error
from training.evaluation.classification import evaluate


class _ReadsFirstPixel(nn.Module):
    """Predicts the digit stored in the first pixel, always with the same confidence."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        first = (x_NCHW[:, 0, 0, 0] * 0.3081 + 0.1307) * 255
        return nn.functional.one_hot(first.round().long(), 10) * self.scale


def _images(read_as: list[int]) -> Tensor:
    images = torch.zeros(len(read_as), 28, 28, dtype=torch.uint8)
    images[:, 0, 0] = torch.tensor(read_as, dtype=torch.uint8)
    return images


def test_accuracy_confusion_and_misclassified_images() -> None:
    """With two of six wrong, accuracy, per-digit accuracy, confusion and positions are right."""
    digits, read_as = [0, 1, 1, 2, 2, 2], [0, 1, 7, 2, 2, 3]
    data = LabelledImages(_images(read_as), torch.tensor(digits))
    figures = evaluate(_ReadsFirstPixel(), data, "six images")
    assert figures.accuracy == pytest.approx(4 / 6)
    assert figures.accuracy_per_digit[:3] == pytest.approx([1, 0.5, 2 / 3])
    assert figures.accuracy_per_digit[3] is None
    assert figures.confusion[1][7] == figures.confusion[2][3] == 1
    assert {(miss.index, miss.digit, miss.read_as) for miss in figures.misclassified} == {
        (2, 1, 7),
        (5, 2, 3),
    }


def test_loss_and_brier_score_are_those_counted_by_hand() -> None:
    """A margin of 4 logits gives the answer e^4 / (e^4 + 9) and other digits 1 / (e^4 + 9)."""
    data = LabelledImages(_images([0, 1, 2, 3]), torch.tensor([0, 1, 2, 4]))
    figures = evaluate(_ReadsFirstPixel(), data, "four images")
    total = math.exp(4) + 9
    sure, other = math.exp(4) / total, 1 / total
    assert figures.loss == pytest.approx(-(3 * math.log(sure) + math.log(other)) / 4)
    right = (1 - sure) ** 2 + 9 * other**2
    wrong = sure**2 + (1 - other) ** 2 + 8 * other**2
    assert figures.brier_score == pytest.approx((3 * right + wrong) / 4)
    for words in ("negative log-likelihood", "Brier score"):
        assert words in figures.summary()


def test_evaluation_leaves_the_module_in_its_mode() -> None:
    """A module in training mode stays in training mode."""
    module = _ReadsFirstPixel().train()
    evaluate(module, LabelledImages(_images([1]), torch.tensor([1])), "one image")
    assert module.training


def test_calibration_error_is_the_weighted_gap() -> None:
    """A confidence of 80% at 50% accuracy is off by 0.3; 100% at 100% is off by 0."""
    confidence = torch.tensor([0.8, 0.8, 1.0, 1.0])
    right = torch.tensor([True, False, True, True])
    assert calibration_error(confidence, right) == pytest.approx(0.5 * 0.3)
    # Overconfidence in one bin and underconfidence in another do not cancel out.
    both_ways = torch.tensor([0.8, 0.8, 0.3, 0.3]), torch.tensor([True, False, True, True])
    assert calibration_error(*both_ways) == pytest.approx(0.5 * 0.3 + 0.5 * 0.7)
    assert calibration_error(torch.tensor([0.95, 0.95]), torch.tensor([True, True])) == (
        pytest.approx(0.05)
    )
