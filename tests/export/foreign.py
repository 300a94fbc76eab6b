"""Networks that nobody here wrote, small enough for tests, with what the gate makes of them.

ONNX Runtime 1.31 ends its process by a segmentation fault on the float16 file of the first.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def transformer() -> nn.Module:
    """Torchvision's vision transformer, shrunk: images of 32 pixels in patches of 8, 10 classes."""
    from torchvision.models import VisionTransformer  # noqa: PLC0415 - slow to import

    torch.manual_seed(0)
    module: nn.Module = VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=64,
        num_classes=10,
    )
    nn.init.normal_(module.get_parameter("heads.head.weight"))  # zeros else
    return module


class Recurrent(nn.Module):
    """A GRU whose last state is read."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(6, 16, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, sequence_NTC: Tensor) -> Tensor:
        """Float [N, 10, 6] to logits [N, 4]."""
        states, _ = self.recurrent(sequence_NTC)
        logits: Tensor = self.head(states[:, -1])
        return logits


def recurrent() -> nn.Module:
    """A Recurrent of fixed weights."""
    torch.manual_seed(0)
    return Recurrent()


def untraceable() -> nn.Module:
    """A network that torch.export takes, and TorchScript's tracer does not."""
    torch.manual_seed(0)
    return Untraceable()


class Untraceable(nn.Module):
    """Refuses to be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, values_NC: Tensor) -> Tensor:
        """Float [N, 6] to logits [N, 4]."""
        if torch._C._get_tracing_state() is not None:
            raise RuntimeError("no tracing, please")
        logits: Tensor = self.head(torch.relu(self.layer(values_NC)))
        return logits


SHAPES: dict[str, tuple[int, ...]] = {
    "transformer": (3, 32, 32),
    "recurrent": (10, 6),
    "untraceable": (6,),
}


def samples_of(name: str, count: int, seed: int = 0) -> dict[str, Any]:
    """Inputs for one of them."""
    values = np.random.default_rng(seed).normal(size=(count, *SHAPES[name]))
    return {"x": values.astype(np.float32)}
