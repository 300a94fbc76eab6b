"""Distillation: train on the mean prediction of trained networks in addition to the labels.

Shape suffixes: N images, C channels, H and W pixels, K classes.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import DistilConfig, TrainConfig
from training.models import ARCHITECTURES


class Teachers:
    """Trained networks that predict each batch as the student gets it, augmented."""

    def __init__(self, modules: Sequence[nn.Module], config: DistilConfig) -> None:
        """Take networks that map standardised images to logits, in evaluation mode."""
        self._modules, self._config = modules, config

    @classmethod
    def of(
        cls, config: TrainConfig, modules: Sequence[nn.Module], device: torch.device
    ) -> Self | None:
        """The teachers that a run's config names, on its device; None if it names none.

        Raises:
            ValueError: The number of modules differs from that of the named teachers, or the
                network to train is not a digit classifier.
        """
        named = config.distil.teachers if config.distil else ()
        if len(named) != len(modules):
            raise ValueError(f"the config names {len(named)} teachers, {len(modules)} were given")
        if config.distil is None:
            return None
        if ARCHITECTURES[config.model].task != "digit":
            raise ValueError(
                f"{config.model} is not a digit classifier, so it cannot learn from teachers that "
                "are; train it without --teachers"
            )
        return cls([module.to(device).eval() for module in modules], config.distil)

    @torch.no_grad()
    def soft_targets(self, x_NCHW: Tensor) -> Tensor:
        """Teachers' mean probabilities at the temperature, float [N, K], of standardised images."""
        logits = [teacher(x_NCHW).float() for teacher in self._modules]
        softened = [(logits_NK / self._config.temperature).softmax(1) for logits_NK in logits]
        return torch.stack(softened).mean(0)

    def mixed_loss(self, loss: Tensor, logits_NK: Tensor, soft_targets_NK: Tensor) -> Tensor:
        """The weighted sum of the loss on the labels and the loss on the soft targets; float [].

        Args:
            loss: The loss on the labels.
            logits_NK: The student's logits, float [N, K].
            soft_targets_NK: ``soft_targets`` of the images that the student got.
        """
        temperature, share = self._config.temperature, self._config.share
        soft_loss = functional.cross_entropy(logits_NK / temperature, soft_targets_NK)
        # T squared keeps the gradients' size independent of T (Hinton et al., section 2).
        return (1 - share) * loss + share * soft_loss * temperature**2
