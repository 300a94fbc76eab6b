"""Two images in, three answers out: the digit of each image, and the sum of both digits.

Both images pass through one trunk and one digit head, with shared weights. The sum's head takes
the trunk's two outputs added together, so the sum cannot depend on the order of the images.

Shape suffixes: N pairs, C channels, H and W 28 pixels, F features, K 10 digits, S 19 sums (0..18).
"""

from pydantic import BaseModel, Field
from torch import Tensor, nn

SUMS = 19


class TwoInputConfig(BaseModel, frozen=True, extra="forbid"):
    """The pair network's hyperparameters."""

    n1: int = Field(default=16, ge=1, description="channels of the trunk's first convolution")
    n2: int = Field(default=32, ge=1, description="channels of its second convolution")
    n3: int = Field(default=128, ge=1, description="features that the trunk makes of an image")
    n4: int = Field(default=128, ge=1, description="units of the sum's hidden dense layer")
    dropout: float = Field(default=0.3, ge=0, lt=1, description="after the trunk")


class TwoInput(nn.Module):
    """A shared trunk and digit head, used twice, and a head for the sum."""

    def __init__(self, config: TwoInputConfig) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, config.n1, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(config.n1, config.n2, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(config.n2 * 4 * 4, config.n3),
            nn.ReLU(),
            nn.Dropout(config.dropout),
        )
        self.digit = nn.Linear(config.n3, 10)
        self.sum = nn.Sequential(
            nn.Linear(config.n3, config.n4), nn.ReLU(), nn.Linear(config.n4, SUMS)
        )

    def forward(self, first_NCHW: Tensor, second_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the logits of two images' digits and of their sum.

        Args:
            first_NCHW: Standardised first images, float [N, 1, 28, 28].
            second_NCHW: Standardised second images, the same shape.

        Returns:
            Logits of the first digit, float [N, 10], of the second, float [N, 10], and of their
            sum 0..18, float [N, 19].
        """
        first_NF, second_NF = self.trunk(first_NCHW), self.trunk(second_NCHW)
        first_NK, second_NK = self.digit(first_NF), self.digit(second_NF)
        sum_NS: Tensor = self.sum(first_NF + second_NF)
        return first_NK, second_NK, sum_NS
