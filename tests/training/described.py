"""Small modules for the tests of ``describe``."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Calls(nn.Module):
    """Calls a function in its forward pass."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The function's result for x."""
        return self.function(x)


class Joined(nn.Module):
    """Adds two branches, then concatenates the sum with a padded branch."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(1, 2, 3, padding=1)
        self.wide = nn.Conv2d(1, 2, 5, padding=2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Float [N, 1, H, W] to [N, 3, H, W]."""
        added_NCHW = self.narrow(x_NCHW) + self.wide(x_NCHW)
        shifted_NCHW = functional.pad(x_NCHW, (4, -4))
        return torch.cat([added_NCHW, shifted_NCHW], dim=1)


class Recurrent(nn.Module):
    """A frozen embedding, an LSTM, a dense layer, and a weight that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 8).requires_grad_(False)
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 5)
        self.spare = nn.Parameter(torch.zeros(3))

    def forward(self, words: Tensor) -> Tensor:
        """Integers [N, T] to [N, 5]."""
        states, _ = self.lstm(self.embedding(words))
        scores: Tensor = self.head(states.mean(1))
        return scores


class Layer(NamedTuple):
    """A layer, the shape of one sample, and its expected description."""

    layer: nn.Module
    sample: tuple[int, ...]
    what: str
    parameters: int
    multiply_adds: int


LAYERS = [
    Layer(nn.Conv1d(2, 4, 3), (2, 9), "Conv1d 3, 2 -> 4, valid", 28, 4 * 7 * 6),
    Layer(
        nn.Conv2d(4, 8, (3, 1), stride=(2, 1), groups=2, bias=False),
        (4, 9, 9),
        "Conv2d 3x1, 4 -> 8, valid, stride 2x1, 2 groups, no bias",
        48,
        8 * 4 * 9 * 6,
    ),
    Layer(
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
        (4, 9, 9),
        "Conv2d 3x3, 4 -> 4, padding 2, dilation 2, depthwise",
        40,
        4 * 81 * 9,
    ),
    Layer(
        nn.Conv3d(1, 2, 3, padding="same"),
        (1, 4, 4, 4),
        "Conv3d 3x3x3, 1 -> 2, same",
        56,
        2 * 64 * 27,
    ),
    Layer(
        nn.ConvTranspose2d(4, 6, 4, 2, 1, groups=2),
        (4, 7, 7),
        "ConvTranspose2d 4x4, 4 -> 6, padding 1, stride 2, 2 groups",
        4 * 3 * 16 + 6,
        4 * 49 * 3 * 16,
    ),
    Layer(nn.Linear(5, 3), (7, 5), "Linear 5 -> 3", 18, 7 * 15),
    Layer(nn.BatchNorm2d(4), (4, 5, 5), "BatchNorm2d 4 channels", 8, 100),
    Layer(nn.BatchNorm1d(4, affine=False), (4,), "BatchNorm1d 4 channels", 0, 4),
    Layer(nn.LayerNorm(6), (2, 6), "LayerNorm", 12, 36),
    Layer(nn.GroupNorm(2, 4), (4, 3, 3), "GroupNorm", 8, 108),
    Layer(nn.MaxPool2d(3, 2, 1), (1, 9, 9), "MaxPool2d 3x3, stride 2, padding 1", 0, 0),
    Layer(nn.AvgPool1d(2), (1, 8), "AvgPool1d 2", 0, 0),
    Layer(nn.AdaptiveAvgPool2d(2), (1, 9, 9), "AdaptiveAvgPool2d to 2x2", 0, 0),
    Layer(nn.Dropout(0.25), (3,), "Dropout 0.25: inactive in evaluation", 0, 0),
    Layer(nn.Identity(), (3,), "Identity", 0, 0),
    Layer(nn.PReLU(4), (4, 2, 2), "PReLU", 4, 0),
]
