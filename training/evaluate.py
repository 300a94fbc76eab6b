"""What a model reaches on a set of images: accuracy, calibration, and which images it misreads.

Shape suffixes: N images, C channels, H and W pixels, K classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from training.data import CLASSES, LabelledImages, standardise, to_pixels

CALIBRATION_BINS = 15
BATCH_IMAGES = 1_000


class Misread(BaseModel):
    """One image that the model reads wrongly; ``index`` counts within the evaluated set."""

    model_config = ConfigDict(frozen=True)

    index: int
    digit: int
    read_as: int
    probability: float


class Evaluation(BaseModel):
    """Figures on one set of images.

    Attributes:
        images_name: Which images, in words.
        images: How many.
        accuracy: Share of images read rightly, 0..1.
        accuracy_per_digit: The same for each digit alone (recall); None if it does not occur.
        loss: Negative log-likelihood: mean cross-entropy in nats, without label smoothing.
        brier_score: Mean squared distance between the probabilities of all digits and the right
            answer (1 for the digit, 0 for the others), 0..2 (G. W. Brier 1950, "Verification of
            forecasts expressed in terms of probability"); None in records of version 1.
        expected_calibration_error: Mean gap between probability and accuracy over 15 bins of
            equal width, weighted by their images (Guo et al. 2017, "On Calibration of Modern
            Neural Networks", equation 3).
        confusion: Row: digit; column: what it was read as; images.
        misread: All wrongly read images, the most confident mistake first.
    """

    model_config = ConfigDict(frozen=True)

    images_name: str
    images: int
    accuracy: float
    accuracy_per_digit: list[float | None]
    loss: float
    brier_score: float | None = None
    expected_calibration_error: float
    confusion: list[list[int]]
    misread: list[Misread]

    def summary(self) -> str:
        """Three lines for a terminal."""
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


def ask(model: Callable[..., Any], inputs_NCHW: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A module's answers to standardised images, one tensor an input; a single answer too."""
    answer = model(*inputs_NCHW)
    return (answer,) if isinstance(answer, Tensor) else tuple(answer)


@torch.no_grad()
def predict(model: nn.Module, *inputs_NHW: Tensor) -> tuple[Tensor, ...]:
    """All answers of a module in evaluation mode, float32 on the CPU.

    The module's mode is put back afterwards.

    Args:
        model: A module from standardised images to a tensor or a tuple of tensors.
        inputs_NHW: uint8 [N, 28, 28] for each of its inputs.
    """
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    answers = []
    for batch in zip(*(images.split(BATCH_IMAGES) for images in inputs_NHW), strict=True):
        asked = [standardise(to_pixels(images_NHW.to(device))) for images_NHW in batch]
        answers.append([answer.cpu() for answer in ask(model, asked)])
    model.train(was_training)
    return tuple(torch.cat(parts) for parts in zip(*answers, strict=True))


def predict_logits(model: nn.Module, images_NHW: Tensor) -> Tensor:
    """Logits, float32 [N, 10] on the CPU, of uint8 images [N, 28, 28], in evaluation mode."""
    (logits_NK,) = predict(model, images_NHW)
    return logits_NK


def evaluate(model: nn.Module, data: LabelledImages, images_name: str) -> Evaluation:
    """All figures of ``Evaluation`` for a module and labelled images.

    Args:
        model: A module from standardised images to logits.
        data: uint8 images and their digits.
        images_name: What the images may be called in a table.
    """
    logits_NK = predict_logits(model, data.images)
    labels = data.labels.cpu()
    confidence, read_as = logits_NK.softmax(dim=1).max(dim=1)
    right = read_as == labels
    confusion = torch.bincount(labels * CLASSES + read_as, minlength=CLASSES**2)
    confusion = confusion.reshape(CLASSES, CLASSES)
    per_digit = [
        float(confusion[digit, digit] / total) if (total := confusion[digit].sum()) else None
        for digit in range(CLASSES)
    ]
    wrong = (~right).nonzero().flatten()
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)]
    return Evaluation(
        images_name=images_name,
        images=len(data),
        accuracy=float(right.double().mean()),
        accuracy_per_digit=per_digit,
        loss=float(functional.cross_entropy(logits_NK, labels)),
        brier_score=brier_score(logits_NK.softmax(dim=1), labels),
        expected_calibration_error=calibration_error(confidence, right),
        confusion=confusion.tolist(),
        misread=[
            Misread(
                index=int(i),
                digit=int(labels[i]),
                read_as=int(read_as[i]),
                probability=float(confidence[i]),
            )
            for i in wrong
        ],
    )


def brier_score(probabilities_NK: Tensor, labels_N: Tensor) -> float:
    """Mean squared distance, 0..2, of probabilities [N, K] to the right answers, int64 [N].

    Unlike the calibration error it needs no bins, and is least for the true probabilities alone.
    """
    answers_NK = functional.one_hot(labels_N, probabilities_NK.shape[1])
    return float((probabilities_NK.double() - answers_NK).square().sum(1).mean())


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Expected calibration error of probabilities, float [N], against hits, bool [N]; 0..1."""
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=confidence.dtype)
    bins = torch.bucketize(confidence, edges[1:-1])
    gap = torch.zeros(CALIBRATION_BINS, dtype=torch.float64)
    gap.index_add_(0, bins, right.double() - confidence.double())
    return float(gap.abs().sum() / len(confidence))
