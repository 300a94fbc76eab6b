"""Fixed pairs of images, and metrics of a network that predicts two digits and their sum.

Shape suffixes: N pairs, H and W pixels, K classes of an answer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import AliasChoices, BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional

from training.data import CLASSES, LabelledImages
from training.evaluation.calibration import calibration_error
from training.evaluation.classification import most_confident_first
from training.evaluation.prediction import predict

ANSWERS = ("first", "second", "sum")
SUMS = 2 * CLASSES - 1  # 0 + 0 to 9 + 9
# The same pairs for every run, whatever its seed, so that runs can be compared.
PAIR_SEED = 20_131


class Pairs(NamedTuple):
    """Both images of each pair, uint8 [N, 28, 28] each, and their digits, int64 [N] each.

    ``first_index`` and ``second_index``, int64 [N], are the images' positions in the set that
    they were drawn from.
    """

    first: LabelledImages
    second: LabelledImages
    first_index: Tensor
    second_index: Tensor


def fixed_pairs(images: LabelledImages) -> Pairs:
    """Make as many pairs as there are images, always the same ones, on the images' device.

    Pair i has image i first. The second images are a permutation of all images, so that each image
    is once first and once second.
    """
    device = images.images.device
    first = torch.arange(len(images), device=device)
    generator = torch.Generator().manual_seed(PAIR_SEED)
    second = torch.randperm(len(images), generator=generator).to(device)
    return Pairs(images.select(first), images.select(second), first, second)


class AnswerFigures(BaseModel, frozen=True):
    """Metrics of one of the three answers.

    Attributes:
        accuracy: Share of pairs for which this answer is correct, 0..1.
        loss: Mean cross-entropy in nats, without label smoothing.
        expected_calibration_error: Calibration error over 15 bins, 0..1.
    """

    accuracy: float
    loss: float
    expected_calibration_error: float


class MisclassifiedPair(BaseModel, frozen=True):
    """A pair with a wrong answer; the indices count within the set that it was drawn from.

    ``right`` (the ground truth) and ``read_as`` (the prediction) hold first digit, second digit
    and sum; ``probability`` is the product of the three answers' probabilities, 0..1.
    """

    first_index: int
    second_index: int
    right: tuple[int, int, int]
    read_as: tuple[int, int, int]
    probability: float


class PairEvaluation(BaseModel, frozen=True):
    """Metrics on one set of pairs.

    Attributes:
        images_name: Name of the set of pairs.
        pairs: Number of pairs.
        accuracy: Share of pairs whose three answers are all correct, 0..1.
        first: Metrics of the first digit.
        second: Metrics of the second digit.
        sum: Metrics of their sum, 0 to 18.
        consistent: Share of pairs whose predicted sum is the sum of the two predicted digits,
            correct or not, 0..1; below 1 because the network predicts the three separately.
        loss: The three losses added, nats.
        misclassified: All pairs with a wrong answer, the most confident mistake first (named
            "misread" in records of version 1).
    """

    images_name: str
    pairs: int
    accuracy: float
    first: AnswerFigures
    second: AnswerFigures
    sum: AnswerFigures
    consistent: float
    loss: float
    misclassified: list[MisclassifiedPair] = Field(
        validation_alias=AliasChoices("misclassified", "misread")
    )

    def summary(self) -> str:
        """The metrics as two lines for a terminal."""
        answers = "  ".join(f"{name}: {100 * getattr(self, name).accuracy:.2f}" for name in ANSWERS)
        return (
            f"on {self.images_name}: all three answers correct {100 * self.accuracy:.2f}%\n"
            f"  per answer, %: {answers}  predicted sum equals that of the predicted digits: "
            f"{100 * self.consistent:.2f}"
        )


def targets(first_N: Tensor, second_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three correct answers, int64 [N] each, for the digits of two images."""
    return first_N, second_N, first_N + second_N


def all_correct(logits: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Whether all answers (the largest of each [N, K]) are correct, bool [N]."""
    correct = [
        scores_NK.argmax(1) == target_N for scores_NK, target_N in zip(logits, right, strict=True)
    ]
    return torch.stack(correct).all(dim=0)


def evaluate_pairs(model: nn.Module, images: LabelledImages, images_name: str) -> PairEvaluation:
    """Compute all metrics of ``PairEvaluation`` on the fixed pairs of labelled images.

    Args:
        model: A module from two standardised images to the logits of the three answers.
        images: The images that the pairs are drawn from.
        images_name: Name of these images in tables.
    """
    pairs = fixed_pairs(images)
    logits = predict(model, pairs.first.images, pairs.second.images)
    right = targets(pairs.first.labels.cpu(), pairs.second.labels.cpu())
    chosen = [scores_NK.softmax(dim=1).max(dim=1) for scores_NK in logits]
    first, second, total = (
        AnswerFigures(
            accuracy=float((best.indices == target_N).double().mean()),
            loss=float(functional.cross_entropy(scores_NK, target_N)),
            expected_calibration_error=calibration_error(best.values, best.indices == target_N),
        )
        for scores_NK, best, target_N in zip(logits, chosen, right, strict=True)
    )
    predicted = [best.indices for best in chosen]
    confidence_N = torch.stack([best.values for best in chosen]).prod(dim=0)
    correct_N = all_correct(logits, right)
    return PairEvaluation(
        images_name=f"{len(correct_N):,} pairs of {images_name}",
        pairs=len(correct_N),
        accuracy=float(correct_N.double().mean()),
        first=first,
        second=second,
        sum=total,
        consistent=float((predicted[0] + predicted[1] == predicted[2]).double().mean()),
        loss=first.loss + second.loss + total.loss,
        misclassified=[
            MisclassifiedPair(
                first_index=int(pairs.first_index[i]),
                second_index=int(pairs.second_index[i]),
                right=tuple(int(target_N[i]) for target_N in right),
                read_as=tuple(int(predicted_N[i]) for predicted_N in predicted),
                probability=float(confidence_N[i]),
            )
            for i in most_confident_first(~correct_N, confidence_N).tolist()
        ],
    )
