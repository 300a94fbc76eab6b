"""Distillation: the mean answer of trained networks becomes a target beside the labels.

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
    """Trained networks that predict each batch as the student sees it, distorted."""

    def __init__(self, modules: Sequence[nn.Module], config: DistilConfig) -> None:
        """Take networks from standardised images to logits, in evaluation mode."""
        self._modules, self._config = modules, config

    @classmethod
    def of(
        cls, config: TrainConfig, modules: Sequence[nn.Module], device: torch.device
    ) -> Self | None:
        """Those that a run names, on its device; None if it names none.

        Raises:
            ValueError: Another number was given, or the network does not read digits.
        """
        named = config.distil.teachers if config.distil else ()
        if len(named) != len(modules):
            raise ValueError(f"the run names {len(named)} teachers, {len(modules)} were given")
        if config.distil is None:
            return None
        if ARCHITECTURES[config.model].task != "digit":
            raise ValueError(
                f"{config.model} does not read a single digit: it cannot learn from teachers that "
                "do; train it without --teachers"
            )
        return cls([module.to(device).eval() for module in modules], config.distil)

    @torch.no_grad()
    def soft_targets(self, x_NCHW: Tensor) -> Tensor:
        """The mean of their probabilities at the temperature, float [N, K]; standardised images."""
        logits = [teacher(x_NCHW).float() for teacher in self._modules]
        softened = [(logits_NK / self._config.temperature).softmax(1) for logits_NK in logits]
        return torch.stack(softened).mean(0)

    def mixed_loss(self, loss: Tensor, logits_NK: Tensor, soft_targets_NK: Tensor) -> Tensor:
        """The labels' loss and the teachers', each by its share; float [].

        Args:
            loss: From the labels.
            logits_NK: The student's, float [N, K].
            soft_targets_NK: ``soft_targets`` of the images that it saw.
        """
        temperature, share = self._config.temperature, self._config.share
        soft_loss = functional.cross_entropy(logits_NK / temperature, soft_targets_NK)
        # T squared keeps gradients as large at any temperature (Hinton et al., section 2).
        return (1 - share) * loss + share * soft_loss * temperature**2
