"""What a network learns: its loss, its hits, its figures. The loop is ``fit``'s, one for all tasks.

A task sees a batch as sequences with one entry for each input of the network: standardised images
and their digits. So seeds, resume and determinism are the loop's alone.

Shape suffixes: N samples, C channels, H and W pixels, K answers to choose from.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.checkpoint import AnyEpoch, EpochRecord, ImageEpochRecord
from training.config import TrainConfig
from training.data import LabelledImages
from training.evaluate import Evaluation, evaluate, predict_logits
from training.images import ImageEvaluation, evaluate_images
from training.models import ARCHITECTURES
from training.pairs import (
    PairEvaluation,
    all_right,
    evaluate_pairs,
    fixed_pairs,
    predict_pairs,
    targets,
)

AnyEvaluation = Evaluation | PairEvaluation | ImageEvaluation


@dataclass(frozen=True)
class Trained:
    """What the loop knows of an epoch before anything is validated.

    Attributes:
        epoch: Its number, from 0.
        loss: Mean over the batches.
        accuracy: Share of samples that were hits, 0..1.
        learning_rate: At its end.
    """

    epoch: int
    loss: float
    accuracy: float
    learning_rate: float


class Task(ABC):
    """What differs between networks that learn different things from the same images.

    Attributes:
        inputs: How many images the network takes at once.
    """

    inputs = 1

    @abstractmethod
    def loss(
        self,
        answers: Sequence[Tensor],
        inputs_NCHW: Sequence[Tensor],
        labels_N: Sequence[Tensor],
        label_smoothing: float,
    ) -> Tensor:
        """What training makes small, float [].

        Args:
            answers: The network's, in their order.
            inputs_NCHW: What it was asked: standardised images, one tensor an input.
            labels_N: Their digits, int64.
            label_smoothing: Of each cross-entropy, 0..1.
        """

    @abstractmethod
    def hits(self, answers: Sequence[Tensor], labels_N: Sequence[Tensor]) -> Tensor:
        """How many samples were answered rightly, int64 []; 0 where nothing is right or wrong."""

    @abstractmethod
    def validate(self, module: nn.Module, images: LabelledImages, trained: Trained) -> AnyEpoch:
        """An epoch's record, its validation figures measured; its ``score`` chooses the epoch."""

    @abstractmethod
    def evaluate(
        self, module: nn.Module, images: LabelledImages, images_name: str
    ) -> AnyEvaluation:
        """All figures of a finished network on images that may be called so."""


class DigitTask(Task):
    """One image in, the logits of its digit out; cross-entropy."""

    def loss(
        self,
        answers: Sequence[Tensor],
        inputs_NCHW: Sequence[Tensor],
        labels_N: Sequence[Tensor],
        label_smoothing: float,
    ) -> Tensor:
        """Cross-entropy in nats."""
        return functional.cross_entropy(answers[0], labels_N[0], label_smoothing=label_smoothing)

    def hits(self, answers: Sequence[Tensor], labels_N: Sequence[Tensor]) -> Tensor:
        """Images whose largest logit is their digit's."""
        return (answers[0].argmax(1) == labels_N[0]).sum()

    def validate(self, module: nn.Module, images: LabelledImages, trained: Trained) -> EpochRecord:
        """Loss and accuracy on the validation images."""
        logits_NK, labels = predict_logits(module, images.images), images.labels.cpu()
        return EpochRecord(
            epoch=trained.epoch,
            train_loss=trained.loss,
            train_accuracy=trained.accuracy,
            validation_loss=float(functional.cross_entropy(logits_NK, labels)),
            validation_accuracy=float((logits_NK.argmax(1) == labels).double().mean()),
            learning_rate=trained.learning_rate,
        )

    def evaluate(self, module: nn.Module, images: LabelledImages, images_name: str) -> Evaluation:
        """Accuracy, calibration, and which images are misread."""
        return evaluate(module, images, images_name)


class PairTask(Task):
    """Two images in, the logits of both digits and of their sum out; three cross-entropies added.

    Training pairs are drawn anew in each epoch; validation and test pairs are fixed.
    """

    inputs = 2

    def loss(
        self,
        answers: Sequence[Tensor],
        inputs_NCHW: Sequence[Tensor],
        labels_N: Sequence[Tensor],
        label_smoothing: float,
    ) -> Tensor:
        """The sum of the three cross-entropies, nats."""
        right = targets(*labels_N)
        losses = [
            functional.cross_entropy(logits_NK, target_N, label_smoothing=label_smoothing)
            for logits_NK, target_N in zip(answers, right, strict=True)
        ]
        return torch.stack(losses).sum()

    def hits(self, answers: Sequence[Tensor], labels_N: Sequence[Tensor]) -> Tensor:
        """Pairs whose three answers are all right."""
        return all_right(answers, targets(*labels_N)).sum()

    def validate(self, module: nn.Module, images: LabelledImages, trained: Trained) -> EpochRecord:
        """Loss, and share of pairs with three right answers, on the fixed validation pairs."""
        pairs = fixed_pairs(images)
        logits, labels = predict_pairs(module, pairs), [pairs.first.labels, pairs.second.labels]
        on_cpu = [digits_N.cpu() for digits_N in labels]
        return EpochRecord(
            epoch=trained.epoch,
            train_loss=trained.loss,
            train_accuracy=trained.accuracy,
            validation_loss=float(self.loss(logits, [], on_cpu, label_smoothing=0.0)),
            validation_accuracy=int(self.hits(logits, on_cpu)) / len(images),
            learning_rate=trained.learning_rate,
        )

    def evaluate(
        self, module: nn.Module, images: LabelledImages, images_name: str
    ) -> PairEvaluation:
        """Accuracy of each answer and of all three on the images' fixed pairs."""
        return evaluate_pairs(module, images, images_name)


class ImageTask(Task):
    """An image in, the same image out; mean squared error of the standardised pixels."""

    def loss(
        self,
        answers: Sequence[Tensor],
        inputs_NCHW: Sequence[Tensor],
        labels_N: Sequence[Tensor],
        label_smoothing: float,
    ) -> Tensor:
        """Mean squared error between the answer and what was asked, distorted as it was."""
        return functional.mse_loss(answers[0], inputs_NCHW[0])

    def hits(self, answers: Sequence[Tensor], labels_N: Sequence[Tensor]) -> Tensor:
        """None: an image is near or far, not right or wrong."""
        return torch.zeros((), dtype=torch.int64, device=answers[0].device)

    def validate(
        self, module: nn.Module, images: LabelledImages, trained: Trained
    ) -> ImageEpochRecord:
        """Errors on the validation images."""
        figures = evaluate_images(module, images, "validation images")
        return ImageEpochRecord(
            epoch=trained.epoch,
            train_loss=trained.loss,
            validation_loss=figures.loss,
            validation_mse=figures.mse,
            validation_psnr_db=figures.psnr_db,
            learning_rate=trained.learning_rate,
        )

    def evaluate(
        self, module: nn.Module, images: LabelledImages, images_name: str
    ) -> ImageEvaluation:
        """Error and PSNR of ink, and which images come back worst."""
        return evaluate_images(module, images, images_name)


TASKS: dict[str, Task] = {"digit": DigitTask(), "pair": PairTask(), "image": ImageTask()}


def task_of(config: TrainConfig) -> Task:
    """The task of a run's architecture."""
    return TASKS[ARCHITECTURES[config.model].task]
