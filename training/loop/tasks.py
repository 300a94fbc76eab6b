"""Tasks define a network's loss, its correct answers and its metrics; all of them share ``fit``.

A task gets a batch as sequences with one entry per input of the network: standardised images and
their digits. Seeds, resumption and determinism are handled by the loop, not by tasks.

Shape suffixes: N samples, C channels, H and W pixels, K classes of an answer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.checkpoint import AnyEpoch, EpochRecord, ImageEpochRecord
from training.config import TrainConfig
from training.data import LabelledImages
from training.evaluation.classification import Evaluation, evaluate
from training.evaluation.reconstruction import ImageEvaluation, evaluate_images
from training.evaluation.two_input import PairEvaluation, all_correct, evaluate_pairs, targets
from training.models import ARCHITECTURES

Tensors: TypeAlias = Sequence[Tensor]


@dataclass(frozen=True)
class Trained:
    """Training metrics of an epoch, before validation.

    Attributes:
        epoch: The epoch's number, from 0.
        loss: Mean training loss over the batches.
        accuracy: Share of samples that were answered correctly, 0..1.
        learning_rate: Learning rate at the end of the epoch.
    """

    epoch: int
    loss: float
    accuracy: float
    learning_rate: float


class Task(ABC):
    """A learning task on the labelled images, e.g. to classify or to reconstruct them.

    Attributes:
        inputs: Number of images in one sample.
    """

    inputs = 1

    @abstractmethod
    def loss(
        self, outputs: Tensors, inputs_NCHW: Tensors, labels_N: Tensors, label_smoothing: float
    ) -> Tensor:
        """The loss that training minimises, float [].

        Args:
            outputs: The network's outputs, in their order.
            inputs_NCHW: The network's inputs: standardised images, one tensor per input.
            labels_N: The digits of each input, int64.
            label_smoothing: Label smoothing of each cross-entropy, 0..1.
        """

    @abstractmethod
    def correct(self, outputs: Tensors, labels_N: Tensors) -> Tensor:
        """Number of correctly answered samples, int64 []; 0 for tasks without correct answers."""

    @abstractmethod
    def evaluate(
        self, module: nn.Module, images: LabelledImages, images_name: str
    ) -> Evaluation | PairEvaluation | ImageEvaluation:
        """All metrics of a network on images, which are called ``images_name`` in tables."""

    def validate(self, module: nn.Module, images: LabelledImages, trained: Trained) -> AnyEpoch:
        """Evaluate a network on validation images and return the epoch's record."""
        figures = self.evaluate(module, images, "validation images")
        if isinstance(figures, ImageEvaluation):
            return ImageEpochRecord(
                epoch=trained.epoch,
                train_loss=trained.loss,
                validation_loss=figures.loss,
                validation_mse=figures.mse,
                validation_psnr_db=figures.psnr_db,
                learning_rate=trained.learning_rate,
            )
        return EpochRecord(
            epoch=trained.epoch,
            train_loss=trained.loss,
            train_accuracy=trained.accuracy,
            validation_loss=figures.loss,
            validation_accuracy=figures.accuracy,
            learning_rate=trained.learning_rate,
        )


class DigitTask(Task):
    """One image in, the logits of its digit out; cross-entropy."""

    def loss(
        self, outputs: Tensors, inputs_NCHW: Tensors, labels_N: Tensors, label_smoothing: float
    ) -> Tensor:
        """Cross-entropy in nats."""
        return functional.cross_entropy(outputs[0], labels_N[0], label_smoothing=label_smoothing)

    def correct(self, outputs: Tensors, labels_N: Tensors) -> Tensor:
        """Number of images whose largest logit is that of their digit."""
        return (outputs[0].argmax(1) == labels_N[0]).sum()

    def evaluate(self, module: nn.Module, images: LabelledImages, images_name: str) -> Evaluation:
        """Accuracy, calibration and the misclassified images."""
        return evaluate(module, images, images_name)


class PairTask(Task):
    """Two images in, the logits of both digits and of their sum out; three cross-entropies added.

    Training pairs are drawn anew in each epoch; validation and test pairs are fixed.
    """

    inputs = 2

    def loss(
        self, outputs: Tensors, inputs_NCHW: Tensors, labels_N: Tensors, label_smoothing: float
    ) -> Tensor:
        """The sum of the three cross-entropies, nats."""
        losses = [
            functional.cross_entropy(logits_NK, target_N, label_smoothing=label_smoothing)
            for logits_NK, target_N in zip(outputs, targets(*labels_N), strict=True)
        ]
        return torch.stack(losses).sum()

    def correct(self, outputs: Tensors, labels_N: Tensors) -> Tensor:
        """Number of pairs whose three answers are all correct."""
        return all_correct(outputs, targets(*labels_N)).sum()

    def evaluate(
        self, module: nn.Module, images: LabelledImages, images_name: str
    ) -> PairEvaluation:
        """Accuracy of each answer, and of all three together, on the images' fixed pairs."""
        return evaluate_pairs(module, images, images_name)


class ImageTask(Task):
    """An image in, the same image out; mean squared error of the standardised pixels."""

    def loss(
        self, outputs: Tensors, inputs_NCHW: Tensors, labels_N: Tensors, label_smoothing: float
    ) -> Tensor:
        """Mean squared error between the output and the augmented input."""
        return functional.mse_loss(outputs[0], inputs_NCHW[0])

    def correct(self, outputs: Tensors, labels_N: Tensors) -> Tensor:
        """Always 0: a reconstruction is more or less accurate, not correct or wrong."""
        return torch.zeros((), dtype=torch.int64, device=outputs[0].device)

    def evaluate(
        self, module: nn.Module, images: LabelledImages, images_name: str
    ) -> ImageEvaluation:
        """Error and PSNR of ink, and the images with the worst reconstructions."""
        return evaluate_images(module, images, images_name)


TASKS: dict[str, Task] = {"digit": DigitTask(), "pair": PairTask(), "image": ImageTask()}


def task_of(config: TrainConfig) -> Task:
    """The task of a run's architecture."""
    return TASKS[ARCHITECTURES[config.model].task]
