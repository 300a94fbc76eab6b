"""Seven 3x3 convolutions in a row: the most accurate single network for its training time.

conv 3x3 valid, twice (a channels) -> max pool 2x2 -> conv 3x3 same, valid, valid (b) -> max pool
2x2 -> conv 3x3 same, twice (c) -> mean of each channel -> fully connected (10); BatchNorm and ReLU
after each convolution. 28x28 becomes 24x24, 12x12, 8x8 and 4x4.

After Simonyan and Zisserman 2015, "Very deep convolutional networks": two 3x3 convolutions have
the receptive field of one 5x5 convolution with fewer weights. An et al. 2020 (arXiv 2008.10400)
continue this without pooling, at ten times the multiply-adds.

Shape suffixes: N images, C channels, H and W pixels, K classes.
"""

from pydantic import BaseModel, Field
from torch import Tensor, nn


class VggConfig(BaseModel, frozen=True, extra="forbid"):
    """The network's hyperparameters."""

    a: int = Field(default=32, ge=1, le=1024, description="channels before the first pooling")
    b: int = Field(default=64, ge=1, le=1024, description="channels between the two")
    c: int = Field(default=128, ge=1, le=1024, description="channels after the second")
    dropout: float = Field(default=0.3, ge=0, lt=1, description="before the last layer")


class Vgg(nn.Module):
    """A chain of convolutions; the head takes the mean of each channel."""

    def __init__(self, config: VggConfig) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        a, b, c = config.a, config.b, config.c
        self.features = nn.Sequential(
            *_convolution(1, a, padding=0),
            *_convolution(a, a, padding=0),
            nn.MaxPool2d(2),
            *_convolution(a, b, padding=1),
            *_convolution(b, b, padding=0),
            *_convolution(b, b, padding=0),
            nn.MaxPool2d(2),
            *_convolution(b, c, padding=1),
            *_convolution(c, c, padding=1),
        )
        self.head = nn.Sequential(
            nn.AvgPool2d(4), nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(c, 10)
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Standardised images, float [N, 1, 28, 28], to logits, float [N, 10]."""
        logits_NK: Tensor = self.head(self.features(x_NCHW))
        return logits_NK


def _convolution(channels_in: int, channels_out: int, padding: int) -> list[nn.Module]:
    """A 3x3 convolution, BatchNorm and ReLU; BatchNorm's shift takes the place of the bias."""
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=padding, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]
