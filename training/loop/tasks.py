"""What a network learns: its loss, its correct answers, its figures. ``fit`` is one for all tasks.

A task sees a batch as sequences with one entry for each input of the network: standardised images
and their digits. So seeds, resumption and determinism are the loop's alone.

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
    """Figures of an epoch before anything is validated.

    Attributes:
        epoch: Its number, from 0.
        loss: Mean over the batches.
        accuracy: Share of samples that were answered correctly, 0..1.
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
        self, outputs: Tensors, inputs_NCHW: Tensors, labels_N: Tensors, label_smoothing: float
    ) -> Tensor:
        """What training minimises, float [].

        Args:
            outputs: The network's, in their order.
            inputs_NCHW: What they are outputs for: standardised images, one tensor an input.
            labels_N: Their digits, int64.
            label_smoothing: Of each cross-entropy, 0..1.
        """

    @abstractmethod
    def correct(self, outputs: Tensors, labels_N: Tensors) -> Tensor:
        """How many samples were answered correctly, int64 []; 0 where no answer can be."""

    @abstractmethod
    def evaluate(
        self, module: nn.Module, images: LabelledImages, images_name: str
    ) -> Evaluation | PairEvaluation | ImageEvaluation:
        """All figures of a network on images that may be called so."""

    def validate(self, module: nn.Module, images: LabelledImages, trained: Trained) -> AnyEpoch:
        """An epoch's record, with its figures on the validation images."""
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
        """Images whose largest logit is their digit's."""
        return (outputs[0].argmax(1) == labels_N[0]).sum()

    def evaluate(self, module: nn.Module, images: LabelledImages, images_name: str) -> Evaluation:
        """Accuracy, calibration, and which images are misclassified."""
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
        """Pairs whose three answers are all correct."""
        return all_correct(outputs, targets(*labels_N)).sum()

    def evaluate(
        self, module: nn.Module, images: LabelledImages, images_name: str
    ) -> PairEvaluation:
        """Accuracy of each answer and of all three on the images' fixed pairs."""
        return evaluate_pairs(module, images, images_name)


class ImageTask(Task):
    """An image in, the same image out; mean squared error of the standardised pixels."""

    def loss(
        self, outputs: Tensors, inputs_NCHW: Tensors, labels_N: Tensors, label_smoothing: float
    ) -> Tensor:
        """Mean squared error between the output and the input, distorted as it was."""
        return functional.mse_loss(outputs[0], inputs_NCHW[0])

    def correct(self, outputs: Tensors, labels_N: Tensors) -> Tensor:
        """None: an image is near or far, not correct or wrong."""
        return torch.zeros((), dtype=torch.int64, device=outputs[0].device)

    def evaluate(
        self, module: nn.Module, images: LabelledImages, images_name: str
    ) -> ImageEvaluation:
        """Error and PSNR of ink, and which images are reconstructed worst."""
        return evaluate_images(module, images, images_name)


TASKS: dict[str, Task] = {"digit": DigitTask(), "pair": PairTask(), "image": ImageTask()}


def task_of(config: TrainConfig) -> Task:
    """The task of a run's architecture."""
    return TASKS[ARCHITECTURES[config.model].task]
