"""1D convolution over an image as a sequence: rows are steps, the pixels of a row are features.

A kernel spans 5 rows and all pixels of each: it slides down the image, but not sideways.

[conv 5 same -> BatchNorm -> ReLU -> max pool 2], twice: 28 rows, 14, 7
-> flatten -> fully connected (n3), ReLU -> fully connected (10).

Shape suffixes: N images, C channels (1), H and W 28 pixels, L steps, F features, K classes.
"""

from pydantic import BaseModel, Field
from torch import Tensor, nn

PIXELS, KERNEL = 28, 5


class Conv1dConfig(BaseModel, frozen=True, extra="forbid"):
    """The 1D network's hyperparameters."""

    n1: int = Field(default=64, ge=1, description="channels of the first convolution")
    n2: int = Field(default=128, ge=1, description="channels of the second convolution")
    n3: int = Field(default=128, ge=1, description="units of the hidden dense layer")
    dropout: float = Field(default=0.3, ge=0, lt=1, description="before the last layer")


class Conv1dNetwork(nn.Module):
    """The 1D network; poolings turn 28 steps into 14 and 7."""

    def __init__(self, config: Conv1dConfig) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(PIXELS, config.n1), *_convolution(config.n1, config.n2)
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(config.n2 * 7, config.n3),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.n3, 10),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Standardised images, float [N, 1, 28, 28], to logits, float [N, 10]."""
        # Conv1d expects the features before the steps, so columns before rows.
        x_NFL = x_NCHW.squeeze(1).transpose(1, 2)
        logits_NK: Tensor = self.head(self.features(x_NFL))
        return logits_NK


def _convolution(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [
        nn.Conv1d(channels_in, channels_out, KERNEL, padding=KERNEL // 2, bias=False),
        nn.BatchNorm1d(channels_out),
        nn.ReLU(),
        nn.MaxPool1d(2),
    ]
