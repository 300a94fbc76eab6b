"""The digit CNN of the classic figure: two convolutions with pooling, then two dense layers.

conv 5x5 valid (n1) -> max pool 2x2 -> conv 5x5 valid (n2) -> max pool 2x2 -> flatten
-> fully connected (n3), ReLU -> fully connected (10).

Each of these options changes one thing and keeps the sizes 24, 12, 8, 4:

- ``down`` halves the sizes: by max pooling, by average pooling, or, if "strided", by a learned 2x2
  convolution with stride 2 and a ReLU instead of the pooling (Springenberg et al. 2015, All-CNN).
- ``convolution``: "grouped" and "separable" (depthwise 5x5, then 1x1) change only the second
  convolution, because the first has a single input channel. "dilated" makes both 3x3 with
  dilation 2, which span the same 5x5 pixels with 9 weights instead of 25.
- ``head``: "average" replaces the flattening and the hidden dense layer with the mean of each
  channel's 4x4 (Lin et al. 2014, Network in Network).

Shape suffixes: N images, C channels, H and W pixels, K classes.
"""

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

GROUPS = 2


class CnnConfig(BaseModel, frozen=True, extra="forbid"):
    """The CNN's hyperparameters; the defaults give the classic figure."""

    n1: int = Field(default=16, ge=1, description="channels of the first convolution")
    n2: int = Field(default=32, ge=1, description="channels of the second convolution")
    n3: int = Field(
        default=128, ge=1, description="units of the hidden dense layer; head='average' has none"
    )
    dropout: float = Field(default=0.3, ge=0, lt=1, description="before the last layer")
    batch_norm: bool = Field(default=False, description="after each layer but the last")
    down: Literal["max", "average", "strided"] = Field(
        default="max", description="what halves the sizes after each convolution"
    )
    convolution: Literal["plain", "grouped", "separable", "dilated"] = "plain"
    groups: int = Field(
        default=GROUPS, ge=2, description="for convolution='grouped'; must divide n1 and n2"
    )
    head: Literal["dense", "average"] = "dense"

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.convolution != "grouped":
            if self.groups != GROUPS:
                raise ValueError(
                    f"groups={self.groups} needs convolution='grouped', got "
                    f"convolution={self.convolution!r}; leave groups out"
                )
        elif self.n1 % self.groups or self.n2 % self.groups:
            raise ValueError(
                f"groups={self.groups} must divide the channels n1={self.n1} and n2={self.n2}: "
                f"use multiples of {self.groups}, or another number of groups"
            )
        return self


class Cnn(nn.Module):
    """The CNN: ``features`` turns 28x28 into 24x24, 12x12, 8x8 and 4x4."""

    def __init__(self, config: CnnConfig) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.features = nn.Sequential(
            _convolution(1, config.n1, config),
            *_activation(config.n1, config),
            *_down(config.n1, config),
            *_second_convolution(config),
            *_activation(config.n2, config),
            *_down(config.n2, config),
        )
        self.head = nn.Sequential(*_head(config))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Standardised images, float [N, 1, 28, 28], to logits, float [N, 10]."""
        logits_NK: Tensor = self.head(self.features(x_NCHW))
        return logits_NK


def _convolution(
    channels_in: int, channels_out: int, config: CnnConfig, groups: int = 1
) -> nn.Module:
    """A convolution that spans 5x5 pixels."""
    kernel, dilation = (3, 2) if config.convolution == "dilated" else (5, 1)
    bias = not config.batch_norm  # BatchNorm's shift takes the place of the bias
    return nn.Conv2d(channels_in, channels_out, kernel, dilation=dilation, groups=groups, bias=bias)


def _second_convolution(config: CnnConfig) -> list[nn.Module]:
    n1, n2 = config.n1, config.n2
    if config.convolution == "separable":
        # The bias of the 1x1 convolution makes one in the depthwise convolution redundant.
        depthwise = nn.Conv2d(n1, n1, kernel_size=5, groups=n1, bias=False)
        return [depthwise, nn.Conv2d(n1, n2, kernel_size=1, bias=not config.batch_norm)]
    return [_convolution(n1, n2, config, config.groups if config.convolution == "grouped" else 1)]


def _activation(channels: int, config: CnnConfig) -> list[nn.Module]:
    """ReLU, after BatchNorm if the config has it."""
    return [*([nn.BatchNorm2d(channels)] if config.batch_norm else []), nn.ReLU()]


def _down(channels: int, config: CnnConfig) -> list[nn.Module]:
    """The layers that halve 24x24 to 12x12, and 8x8 to 4x4."""
    match config.down:
        case "average":
            return [nn.AvgPool2d(2)]
        case "strided":
            bias = not config.batch_norm
            learned = nn.Conv2d(channels, channels, kernel_size=2, stride=2, bias=bias)
            return [learned, *_activation(channels, config)]
    return [nn.MaxPool2d(2)]


def _head(config: CnnConfig) -> list[nn.Module]:
    dropout = nn.Dropout(config.dropout)
    if config.head == "average":
        average = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return [*average, dropout, nn.Linear(config.n2, 10)]
    norm = config.batch_norm
    return [
        nn.Flatten(),
        nn.Linear(config.n2 * 4 * 4, config.n3, bias=not norm),
        *([nn.BatchNorm1d(config.n3)] if norm else []),
        nn.ReLU(),
        dropout,
        nn.Linear(config.n3, 10),
    ]
