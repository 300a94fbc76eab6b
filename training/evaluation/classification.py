"""Metrics of a digit classifier: accuracy, calibration and misclassified images.

Shape suffixes: N images, K classes.
"""

import torch
from pydantic import AliasChoices, BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional

from training.data import CLASSES, LabelledImages
from training.evaluation.calibration import brier_score, calibration_error
from training.evaluation.prediction import predict_logits


class Misclassified(BaseModel, frozen=True):
    """One misclassified image; ``index`` counts within the evaluated set."""

    index: int
    digit: int
    read_as: int
    probability: float


class Evaluation(BaseModel, frozen=True):
    """Metrics on one set of images.

    Attributes:
        images_name: Name of the set of images, as in "10,000 test images".
        images: Number of images.
        accuracy: Share of images classified correctly, 0..1.
        accuracy_per_digit: Recall of each digit, 0..1; None for a digit without images.
        loss: Negative log-likelihood: mean cross-entropy in nats, without label smoothing.
        brier_score: Brier score, 0..2; None in records of version 1.
        expected_calibration_error: Calibration error over 15 bins, 0..1.
        confusion: Number of images by digit (row) and predicted digit (column).
        misclassified: All misclassified images, the most confident mistake first (named "misread"
            in records of version 1).
    """

    images_name: str
    images: int
    accuracy: float
    accuracy_per_digit: list[float | None]
    loss: float
    brier_score: float | None = None
    expected_calibration_error: float
    confusion: list[list[int]]
    misclassified: list[Misclassified] = Field(
        validation_alias=AliasChoices("misclassified", "misread")
    )

    def summary(self) -> str:
        """The metrics as three lines for a terminal."""
        per_digit = "  ".join(
            f"{digit}: {'none' if share is None else format(100 * share, '.2f')}"
            for digit, share in enumerate(self.accuracy_per_digit)
        )
        brier = "" if self.brier_score is None else f", Brier score {self.brier_score:.4f}"
        return (
            f"on {self.images_name}: accuracy {100 * self.accuracy:.2f}%, "
            f"expected calibration error {100 * self.expected_calibration_error:.2f}%\n"
            f"  per digit, %: {per_digit}\n"
            f"  negative log-likelihood {self.loss:.4f} nats{brier}"
        )


def confusion_matrix(labels_N: Tensor, predicted_N: Tensor) -> Tensor:
    """Count images by digit (row) and predicted digit (column), int64 [K, K]."""
    pairs = torch.bincount(labels_N * CLASSES + predicted_N, minlength=CLASSES**2)
    return pairs.reshape(CLASSES, CLASSES)


def accuracy_per_digit(confusion: Tensor) -> list[float | None]:
    """The share of each digit's images on the diagonal, 0..1; None for a digit without images."""
    totals = confusion.sum(1).tolist()
    return [
        correct / total if total else None
        for correct, total in zip(confusion.diagonal().tolist(), totals, strict=True)
    ]


def most_confident_first(wrong_N: Tensor, confidence_N: Tensor) -> Tensor:
    """The positions of wrong answers, int64, by descending confidence."""
    wrong = wrong_N.nonzero().flatten()
    return wrong[confidence_N[wrong].argsort(descending=True, stable=True)]


def evaluate(model: nn.Module, data: LabelledImages, images_name: str) -> Evaluation:
    """Compute all metrics of ``Evaluation`` for a module on labelled images.

    Args:
        model: A module that maps standardised images to logits.
        data: uint8 images and their digits.
        images_name: Name of the images in tables.
    """
    logits_NK, labels_N = predict_logits(model, data.images), data.labels.cpu()
    probabilities_NK = logits_NK.softmax(dim=1)
    confidence_N, predicted_N = probabilities_NK.max(dim=1)
    correct_N = predicted_N == labels_N
    confusion = confusion_matrix(labels_N, predicted_N)
    return Evaluation(
        images_name=images_name,
        images=len(data),
        accuracy=float(correct_N.double().mean()),
        accuracy_per_digit=accuracy_per_digit(confusion),
        loss=float(functional.cross_entropy(logits_NK, labels_N)),
        brier_score=brier_score(probabilities_NK, labels_N),
        expected_calibration_error=calibration_error(confidence_N, correct_N),
        confusion=confusion.tolist(),
        misclassified=[
            Misclassified(
                index=i,
                digit=int(labels_N[i]),
                read_as=int(predicted_N[i]),
                probability=float(confidence_N[i]),
            )
            for i in most_confident_first(~correct_N, confidence_N).tolist()
        ],
    )
