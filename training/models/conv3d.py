"""3D convolution over a volume of copies of an image, each shifted one pixel further right.

The copies are stacked in depth, like the frames of a film in which the digit moves right by one
pixel per frame. The module makes the copies. Pixels that a shift leaves empty are paper.

conv 3x5x5 valid (n1) -> max pool 1x2x2 -> conv 3x5x5 valid (n2) -> max pool 1x2x2 -> flatten
-> fully connected (n3), ReLU -> fully connected (10).

Shape suffixes: N images, C channels, D copies, H and W pixels, K classes.
"""

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional

from training.data import PIXEL_MEAN, PIXEL_STD

PAPER = (0 - PIXEL_MEAN) / PIXEL_STD  # a standardised pixel of value 0


class Conv3dConfig(BaseModel, frozen=True, extra="forbid"):
    """The 3D network's hyperparameters."""

    copies: int = Field(
        default=5, ge=5, le=28, description="depth; each of the two convolutions reduces it by two"
    )
    n1: int = Field(default=8, ge=1, description="channels of the first convolution")
    n2: int = Field(default=16, ge=1, description="channels of the second convolution")
    n3: int = Field(default=64, ge=1, description="units of the hidden dense layer")
    dropout: float = Field(default=0.3, ge=0, lt=1, description="before the last layer")


class Conv3dNetwork(nn.Module):
    """The 3D network: copies x 28x28 becomes (copies - 2) x 12x12 and (copies - 4) x 4x4."""

    def __init__(self, config: Conv3dConfig) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.copies = config.copies
        self.features = nn.Sequential(
            nn.Conv3d(1, config.n1, kernel_size=(3, 5, 5)),
            nn.ReLU(),
            nn.MaxPool3d((1, 2, 2)),
            nn.Conv3d(config.n1, config.n2, kernel_size=(3, 5, 5)),
            nn.ReLU(),
            nn.MaxPool3d((1, 2, 2)),
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(config.n2 * (config.copies - 4) * 4 * 4, config.n3),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.n3, 10),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Standardised images, float [N, 1, 28, 28], to logits, float [N, 10]."""
        logits_NK: Tensor = self.head(self.features(shifted_copies(x_NCHW, self.copies)))
        return logits_NK


def shifted_copies(x_NCHW: Tensor, copies: int) -> Tensor:
    """Stack copies of images, each moved right by one pixel more than the one before.

    The middle copy (for an even number, the second of the middle two) is not moved.

    Args:
        x_NCHW: Standardised images, float [N, C, H, W].
        copies: Number of copies, at least 1.

    Returns:
        Float [N, C, copies, H, W].
    """
    width = x_NCHW.shape[-1]
    to_left = copies // 2
    to_right = copies - 1 - to_left
    wide_NCHW = functional.pad(x_NCHW, (to_right, to_left), value=PAPER)
    # The window moves left over the padded image, so the digit moves right within the window.
    starts = range(copies - 1, -1, -1)
    return torch.stack([wide_NCHW[..., start : start + width] for start in starts], dim=2)
