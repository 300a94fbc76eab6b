"""Pairs of images: how they are drawn, and what a network reaches that reads two digits at once.

The network answers three questions of two images: the first digit, the second, and their sum.

Shape suffixes: N pairs, H and W pixels, K answers to choose from.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from training.data import CLASSES, LabelledImages
from training.evaluate import calibration_error, predict

ANSWERS = ("first", "second", "sum")
SUMS = 2 * CLASSES - 1  # 0 + 0 to 9 + 9
# One draw for every run, whatever its seed, so that runs are compared on the same pairs.
PAIR_SEED = 20_131


class Pairs(NamedTuple):
    """Two images a pair, uint8 [N, 28, 28] each, and their digits, int64 [N] each.

    ``first_index`` and ``second_index``, int64 [N], are the images' places in the set that they
    were drawn from.
    """

    first: LabelledImages
    second: LabelledImages
    first_index: Tensor
    second_index: Tensor


def fixed_pairs(images: LabelledImages) -> Pairs:
    """As many pairs as images, always the same ones, on the images' device.

    Pair i has image i first; the second images are a permutation of all, so that each image is
    once first and once second.
    """
    first = torch.arange(len(images))
    second = torch.randperm(len(images), generator=torch.Generator().manual_seed(PAIR_SEED))
    device = images.images.device
    index = (first.to(device), second.to(device))
    return Pairs(images.select(index[0]), images.select(index[1]), *index)


class AnswerFigures(BaseModel):
    """One of the three answers.

    Attributes:
        accuracy: Share of pairs answered rightly, 0..1.
        loss: Mean cross-entropy in nats, without label smoothing.
        expected_calibration_error: As in ``training.evaluate.Evaluation``, 0..1.
    """

    model_config = ConfigDict(frozen=True)

    accuracy: float
    loss: float
    expected_calibration_error: float


class MisreadPair(BaseModel):
    """A pair with a wrong answer; the indices count within the set that it was drawn from.

    ``right`` and ``read_as`` are first digit, second digit and sum; ``probability`` is the product
    of the three answers' probabilities, 0..1.
    """

    model_config = ConfigDict(frozen=True)

    first_index: int
    second_index: int
    right: tuple[int, int, int]
    read_as: tuple[int, int, int]
    probability: float


class PairEvaluation(BaseModel):
    """Figures on one set of pairs.

    Attributes:
        images_name: Which pairs, in words.
        pairs: How many.
        accuracy: Share of pairs whose three answers are all right, 0..1.
        first: The first digit.
        second: The second digit.
        sum: Their sum, 0 to 18.
        consistent: Share of pairs whose sum is the sum of the two digits that were read, right or
            wrong, 0..1: the network answers the three questions by themselves.
        loss: The three losses added, nats.
        misread: All pairs with a wrong answer, the most confident mistake first.
    """

    model_config = ConfigDict(frozen=True)

    images_name: str
    pairs: int
    accuracy: float
    first: AnswerFigures
    second: AnswerFigures
    sum: AnswerFigures
    consistent: float
    loss: float
    misread: list[MisreadPair]

    def summary(self) -> str:
        """Two lines for a terminal."""
        answers = "  ".join(
            f"{name}: {100 * figures.accuracy:.2f}"
            for name, figures in zip(ANSWERS, (self.first, self.second, self.sum), strict=True)
        )
        return (
            f"on {self.images_name}: all three answers right {100 * self.accuracy:.2f}%\n"
            f"  per answer, %: {answers}  the sum is that of the digits read: "
            f"{100 * self.consistent:.2f}"
        )


def predict_pairs(model: nn.Module, pairs: Pairs) -> tuple[Tensor, ...]:
    """The logits of the three answers, float32 [N, 10], [N, 10] and [N, 19], on the CPU."""
    return predict(model, pairs.first.images, pairs.second.images)


def targets(first_N: Tensor, second_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The right answers, int64 [N] each, to two images' digits."""
    return first_N, second_N, first_N + second_N


def all_right(logits: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Whether all answers (the largest of each [N, K]) are right, bool [N]."""
    hits = [
        scores_NK.argmax(1) == target_N for scores_NK, target_N in zip(logits, right, strict=True)
    ]
    return torch.stack(hits).all(dim=0)


def evaluate_pairs(model: nn.Module, images: LabelledImages, images_name: str) -> PairEvaluation:
    """All figures of ``PairEvaluation`` on the fixed pairs of labelled images.

    Args:
        model: A module from two standardised images to the logits of the three answers.
        images: What the pairs are drawn from.
        images_name: What these may be called in a table.
    """
    pairs = fixed_pairs(images)
    logits = predict_pairs(model, pairs)
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
    read_as = [best.indices for best in chosen]
    hits = all_right(logits, right)
    return PairEvaluation(
        images_name=f"{len(hits):,} pairs of {images_name}",
        pairs=len(hits),
        accuracy=float(hits.double().mean()),
        first=first,
        second=second,
        sum=total,
        consistent=float((read_as[0] + read_as[1] == read_as[2]).double().mean()),
        loss=first.loss + second.loss + total.loss,
        misread=_misread(
            pairs, hits, right, read_as, torch.stack([best.values for best in chosen]).prod(dim=0)
        ),
    )


def _misread(
    pairs: Pairs,
    hits: Tensor,
    right: Sequence[Tensor],
    read_as: Sequence[Tensor],
    confidence: Tensor,
) -> list[MisreadPair]:
    wrong = (~hits).nonzero().flatten()
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)]
    answers_NA, read_NA = (torch.stack(list(part), dim=1).tolist() for part in (right, read_as))
    return [
        MisreadPair(
            first_index=int(pairs.first_index[i]),
            second_index=int(pairs.second_index[i]),
            right=answers_NA[i],
            read_as=read_NA[i],
            probability=float(confidence[i]),
        )
        for i in wrong.tolist()
    ]
