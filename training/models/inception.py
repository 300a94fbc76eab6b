"""Parallel branches: kernels of several sizes on one input, whose outputs are concatenated.

[1x1 | 3x3 | 5x5 | 3x3 with dilation 2, concatenated] -> max pool 2x2, twice
-> flatten -> fully connected (10).

After Szegedy et al. 2015, "Going deeper with convolutions"; the dilated branch is after Yu and
Koltun 2016, "Multi-scale context aggregation by dilated convolutions".

Shape suffixes: N images, C channels, H and W pixels, K classes.
"""

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

# Kernel size and dilation of each branch.
KERNELS = ((1, 1), (3, 1), (5, 1), (3, 2))


class InceptionConfig(BaseModel, frozen=True, extra="forbid"):
    """The network's hyperparameters."""

    width: int = Field(default=8, ge=1, le=1024, description="channels of each of four branches")
    dropout: float = Field(default=0.3, ge=0, lt=1, description="before the last layer")


class InceptionBlock(nn.Module):
    """Four convolutions of the same input, each with BatchNorm and ReLU, side by side."""

    def __init__(self, channels_in: int, width: int) -> None:
        """Build the branches; each has ``width`` output channels and keeps height and width."""
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                # The padding is the kernel's reach beyond its centre, which keeps the size.
                nn.Conv2d(
                    channels_in,
                    width,
                    kernel,
                    padding=dilation * (kernel // 2),
                    dilation=dilation,
                    bias=False,
                ),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            for kernel, dilation in KERNELS
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Float [N, channels_in, H, W] to [N, 4 * width, H, W], the branches in their order."""
        return torch.cat([branch(x_NCHW) for branch in self.branches], dim=1)


class Inception(nn.Module):
    """The network; poolings turn 28x28 into 14x14 and 7x7."""

    def __init__(self, config: InceptionConfig) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        channels = len(KERNELS) * config.width
        self.features = nn.Sequential(
            InceptionBlock(1, config.width),
            nn.MaxPool2d(2),
            InceptionBlock(channels, config.width),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(channels * 7 * 7, 10)
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Standardised images, float [N, 1, 28, 28], to logits, float [N, 10]."""
        logits_NK: Tensor = self.head(self.features(x_NCHW))
        return logits_NK
