"""An autoencoder: encodes an image as a short code and decodes it with transposed convolutions.

28x28 -> 14x14 -> 7x7 by convolutions of stride 2 -> the code -> 7x7 -> 14x14 -> 28x28 by
transposed convolutions. Kernels are 4x4: their size is a multiple of the stride, so equally many
weights contribute to each output pixel, and no checkerboard pattern appears (Odena et al. 2016,
"Deconvolution and checkerboard artifacts").

Shape suffixes: N images, C channels, H and W 28 pixels, F values of the code.
"""

from pydantic import BaseModel, Field
from torch import Tensor, nn


class AutoencoderConfig(BaseModel, frozen=True, extra="forbid"):
    """The autoencoder's hyperparameters."""

    n1: int = Field(default=16, ge=1, description="channels at 14x14")
    n2: int = Field(default=32, ge=1, description="channels at 7x7")
    code: int = Field(default=32, ge=1, le=784, description="values that encode an image")


class Autoencoder(nn.Module):
    """The autoencoder: ``encoder`` computes the code, ``decoder`` rebuilds an image from it."""

    def __init__(self, config: AutoencoderConfig) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        n1, n2 = config.n1, config.n2
        self.encoder = nn.Sequential(
            nn.Conv2d(1, n1, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(n1, n2, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(n2 * 7 * 7, config.code),
        )
        self.decoder = nn.Sequential(
            nn.Linear(config.code, n2 * 7 * 7),
            nn.ReLU(),
            nn.Unflatten(1, (n2, 7, 7)),
            nn.ConvTranspose2d(n2, n1, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(n1, 1, kernel_size=4, stride=2, padding=1),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Standardised images, float [N, 1, 28, 28], to their reconstructions, the same shape.

        The output is standardised, too, and not clipped.
        """
        code_NF = self.encoder(x_NCHW)
        decoded_NCHW: Tensor = self.decoder(code_NF)
        return decoded_NCHW
