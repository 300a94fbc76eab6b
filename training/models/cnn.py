"""The digit CNN of the classic figure: two convolutions with pooling, then two dense layers.

conv 5x5 valid (n1) -> max pool 2x2 -> conv 5x5 valid (n2) -> max pool 2x2 -> flatten
-> fully connected (n3), ReLU -> fully connected (10).

Shape suffixes: N images, C channels, H and W pixels, K classes.
"""

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class CnnConfig(BaseModel):
    """The CNN's numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n1: int = Field(default=16, ge=1, description="channels of the first convolution")
    n2: int = Field(default=32, ge=1, description="channels of the second convolution")
    n3: int = Field(default=128, ge=1, description="units of the hidden dense layer")
    dropout: float = Field(default=0.3, ge=0, lt=1, description="before the last layer")
    batch_norm: bool = Field(default=False, description="after each layer but the last")


class Cnn(nn.Module):
    """28x28 becomes 24x24, 12x12, 8x8, 4x4 on its way through ``features``."""

    def __init__(self, config: CnnConfig) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        norm = config.batch_norm
        self.features = nn.Sequential(
            *_convolution(1, config.n1, norm),
            *_convolution(config.n1, config.n2, norm),
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(config.n2 * 4 * 4, config.n3, bias=not norm),
            *([nn.BatchNorm1d(config.n3)] if norm else []),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.n3, 10),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Standardised images, float [N, 1, 28, 28], to logits, float [N, 10]."""
        logits_NK: Tensor = self.head(self.features(x_NCHW))
        return logits_NK


def _convolution(channels_in: int, channels_out: int, norm: bool) -> list[nn.Module]:
    """5x5 valid convolution, ReLU, 2x2 max pooling; BatchNorm before the ReLU if asked for."""
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size=5, bias=not norm)
    between: list[nn.Module] = [nn.BatchNorm2d(channels_out)] if norm else []
    return [convolution, *between, nn.ReLU(), nn.MaxPool2d(2)]
