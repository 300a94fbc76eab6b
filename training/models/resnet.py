"""Residual blocks: the input skips two convolutions and is added to their output.

conv 5x5 stride 2 -> blocks at 14x14 (channels) -> blocks at 7x7 (2 * channels), the first of
which halves the size -> mean of each channel -> fully connected (10).

A small version of He et al. 2016, "Deep residual learning for image recognition".

Shape suffixes: N images, C channels, H and W pixels, K classes.
"""

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn


class ResNetConfig(BaseModel, frozen=True, extra="forbid"):
    """The residual network's hyperparameters."""

    channels: int = Field(default=16, ge=1, le=1024, description="at 14x14; twice as many at 7x7")
    blocks: int = Field(default=2, ge=1, le=32, description="at each of the two sizes")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="before the last layer")


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and the input added before the last ReLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        """Build a block; if the shape changes, a 1x1 convolution adapts the input to it."""
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels_out)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels_out)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.skip = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Float [N, channels_in, H, W] to [N, channels_out, H / stride, W / stride], >= 0."""
        inner_NCHW = torch.relu(self.first_norm(self.first(x_NCHW)))
        inner_NCHW = self.second_norm(self.second(inner_NCHW))
        return torch.relu(inner_NCHW + self.skip(x_NCHW))


class ResNet(nn.Module):
    """The network: 28x28 becomes 14x14 and 7x7; the head takes the mean of each channel."""

    def __init__(self, config: ResNetConfig) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        few, many = config.channels, 2 * config.channels
        self.stem = nn.Sequential(
            nn.Conv2d(1, few, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(few), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            *(Block(few, few, stride=1) for _ in range(config.blocks)),
            Block(few, many, stride=2),
            *(Block(many, many, stride=1) for _ in range(config.blocks - 1)),
        )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(many, 10)
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Standardised images, float [N, 1, 28, 28], to logits, float [N, 10]."""
        logits_NK: Tensor = self.head(self.blocks(self.stem(x_NCHW)))
        return logits_NK
