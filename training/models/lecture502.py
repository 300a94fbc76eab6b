"""A network for images of 3x502x502, written in two equivalent forms.

    conv 7x7 valid (128), ReLU            496      conv 3x3 same, stride 2 (16), ReLU    123
    conv 5x5 valid (64), ReLU             492      conv 3x3 valid, stride 2 (16), ReLU    61
    max pool 2x2, BatchNorm               246      BatchNorm, flatten                 59,536
    conv 3x3 same (32), ReLU              246      dense 1024, ReLU, dropout, twice
                                                   dense 1000 (softmax)

``lecture502_sequential`` is a list of layers. ``Lecture502Subclass`` names the layers and defines
the data flow in ``forward``. ``copy_weights`` copies weights from one form to the other.

Padding "same" with a stride follows Keras and TensorFlow: the output size is ceil(size / stride),
and if the padding is odd, the larger half goes below and to the right. PyTorch rejects
``padding="same"`` with a stride. Its ``padding=1`` would pad an even size above and to the left,
so that each kernel would cover other pixels than in Keras. So the padding is a separate layer.

Both forms return logits, because the loss that they are trained with takes logits.
``softmax=true`` adds the figure's softmax, which has no weights, to return probabilities.

Shape suffixes: N images, C channels, H and W pixels, F features, K classes.
"""

import math
from typing import NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

INPUT_SIZE = 502
SAME_KERNEL, SAME_STRIDE = 3, 2


class Lecture502Config(BaseModel, frozen=True, extra="forbid"):
    """The network's hyperparameters; the defaults are the figure's."""

    input_size: int = Field(
        default=INPUT_SIZE,
        ge=20,
        le=4096,
        description="pixels; below 20, no pixels would be left to flatten",
    )
    width: float = Field(
        default=1.0,
        gt=0,
        le=8,
        description="factor on all channels and units but the classes; rounded, at least 1 each",
    )
    classes: int = Field(default=1000, ge=2)
    dropout: float = Field(default=0.5, ge=0, lt=1, description="after each hidden dense layer")
    softmax: bool = Field(default=False, description="return probabilities instead of logits")

    def channels(self, of_the_figure: int) -> int:
        """Scale the figure's number of channels or units by ``width``."""
        return max(1, round(of_the_figure * self.width))

    @property
    def same_padding(self) -> tuple[int, int, int, int]:
        """Padding "same" of the strided convolution: zeros left, right, above and below."""
        before, behind = same_padding(sizes(self.input_size).pooled, SAME_KERNEL, SAME_STRIDE)
        return before, behind, before, behind


class Sizes(NamedTuple):
    """Height and width, in pixels, before and after the padded convolution, and at the end."""

    pooled: int
    halved: int
    last: int


def sizes(input_size: int) -> Sizes:
    """Compute the sizes of the feature maps; for the default input they are 246, 123 and 61.

    Args:
        input_size: Height and width of the input, pixels.
    """
    pooled = (input_size - 6 - 4) // 2
    halved = math.ceil(pooled / SAME_STRIDE)
    return Sizes(pooled, halved, (halved - 3) // 2 + 1)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Rows (or columns) of zeros before and after, for an output size of ceil(size / stride).

    TensorFlow's formula for padding "SAME" (tf.nn, "Notes on padding"): the total is
    max((ceil(size / stride) - 1) * stride + kernel - size, 0), and its larger half goes after.

    Args:
        size: Size of the input along this axis, pixels.
        kernel: Kernel size of the convolution, pixels.
        stride: Stride of the convolution, pixels.
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def lecture502_sequential(config: Lecture502Config) -> nn.Sequential:
    """The network as one list of layers, in training mode, with PyTorch's default initialisation.

    Args:
        config: The hyperparameters.

    Returns:
        A module from standardised images, float [N, 3, input_size, input_size], to logits, float
        [N, classes], or to probabilities if ``config.softmax``.
    """
    c16, c32, c64, c128, units = map(config.channels, (16, 32, 64, 128, 1024))
    last = sizes(config.input_size).last
    return nn.Sequential(
        nn.Conv2d(3, c128, 7),
        nn.ReLU(),
        nn.Conv2d(c128, c64, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(c64),
        nn.Conv2d(c64, c32, 3, padding="same"),
        nn.ReLU(),
        nn.ZeroPad2d(config.same_padding),
        nn.Conv2d(c32, c16, SAME_KERNEL, SAME_STRIDE),
        nn.ReLU(),
        nn.Conv2d(c16, c16, 3, stride=2),
        nn.ReLU(),
        nn.BatchNorm2d(c16),
        nn.Flatten(),
        nn.Linear(c16 * last**2, units),
        nn.ReLU(),
        nn.Dropout(config.dropout),
        nn.Linear(units, units),
        nn.ReLU(),
        nn.Dropout(config.dropout),
        nn.Linear(units, config.classes),
        *([nn.Softmax(dim=1)] if config.softmax else []),
    )


class Lecture502Subclass(nn.Module):
    """The network as a module with named layers."""

    def __init__(self, config: Lecture502Config) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        c16, c32, c64, c128, units = map(config.channels, (16, 32, 64, 128, 1024))
        last = sizes(config.input_size).last
        self.softmax = config.softmax
        self.wide = nn.Conv2d(3, c128, 7)
        self.middle = nn.Conv2d(c128, c64, 5)
        self.pool = nn.MaxPool2d(2)
        self.pooled_norm = nn.BatchNorm2d(c64)
        self.same = nn.Conv2d(c64, c32, 3, padding="same")
        self.pad = nn.ZeroPad2d(config.same_padding)
        self.halving = nn.Conv2d(c32, c16, SAME_KERNEL, SAME_STRIDE)
        self.quartering = nn.Conv2d(c16, c16, 3, stride=2)
        self.last_norm = nn.BatchNorm2d(c16)
        self.hidden_1 = nn.Linear(c16 * last**2, units)
        self.hidden_2 = nn.Linear(units, units)
        self.dropout = nn.Dropout(config.dropout)
        self.classes = nn.Linear(units, config.classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Standardised images, float [N, 3, input_size, input_size], to float [N, classes].

        The output is logits, or probabilities if ``config.softmax``.
        """
        x_NCHW = torch.relu(self.wide(x_NCHW))
        x_NCHW = torch.relu(self.middle(x_NCHW))
        x_NCHW = self.pooled_norm(self.pool(x_NCHW))
        x_NCHW = torch.relu(self.same(x_NCHW))
        x_NCHW = torch.relu(self.halving(self.pad(x_NCHW)))
        x_NCHW = torch.relu(self.quartering(x_NCHW))
        x_NF = self.last_norm(x_NCHW).flatten(1)
        x_NF = self.dropout(torch.relu(self.hidden_1(x_NF)))
        x_NF = self.dropout(torch.relu(self.hidden_2(x_NF)))
        logits_NK: Tensor = self.classes(x_NF)
        return torch.softmax(logits_NK, dim=1) if self.softmax else logits_NK


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy weights and statistics to another form of a network, whose layers have other names.

    Layers are paired in the order of their definition; each pair must agree in type and shapes.

    Args:
        source: The module that the tensors come from; unchanged.
        target: The module that they are copied to; changed in place.

    Raises:
        ValueError: The layers differ; the message has their numbers or the first differing pair.
    """
    ours, theirs = _layers(source), _layers(target)
    if len(ours) != len(theirs):
        raise ValueError(
            f"{len(ours)} layers with weights cannot be copied to {len(theirs)}: expected two "
            "forms of one network"
        )
    for (name, layer), (other_name, other) in zip(ours, theirs, strict=True):
        if type(layer) is not type(other) or _shapes(layer) != _shapes(other):
            raise ValueError(
                f"layer {name}, {layer}, cannot be copied to {other_name}, {other}: build both "
                "forms with the same numbers"
            )
    for (_, layer), (_, other) in zip(ours, theirs, strict=True):
        other.load_state_dict(layer.state_dict())


def _layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The innermost modules that have tensors, with their names."""
    return [
        (name, part)
        for name, part in module.named_modules()
        if not list(part.children()) and part.state_dict()
    ]


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}
