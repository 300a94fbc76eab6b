"""The multilayer perceptron: only fully connected layers, which ignore the pixels' positions.

Shape suffixes: N images, C channels (1), H and W 28 pixels, F = C*H*W features, K classes.
"""

from pydantic import BaseModel, Field, PositiveInt
from torch import Tensor, nn


class MlpConfig(BaseModel, frozen=True, extra="forbid"):
    """The MLP's hyperparameters; the defaults give 784-512-512-10."""

    hidden: tuple[PositiveInt, ...] = Field(
        default=(512, 512), min_length=1, description="units of each hidden layer"
    )
    dropout: float = Field(default=0.2, ge=0, lt=1)
    batch_norm: bool = True


class Mlp(nn.Module):
    """Linear, BatchNorm, ReLU, dropout for each hidden layer, then one Linear to the logits."""

    def __init__(self, config: MlpConfig) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        layers: list[nn.Module] = []
        features = 28 * 28
        for units in config.hidden:
            # BatchNorm's shift takes the place of the bias.
            layers.append(nn.Linear(features, units, bias=not config.batch_norm))
            if config.batch_norm:
                layers.append(nn.BatchNorm1d(units))
            layers += [nn.ReLU(), nn.Dropout(config.dropout)]
            features = units
        layers.append(nn.Linear(features, 10))
        self.layers = nn.Sequential(*layers)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Standardised images, float [N, 1, 28, 28], to logits, float [N, 10]."""
        logits_NK: Tensor = self.layers(x_NCHW.flatten(1))
        return logits_NK
