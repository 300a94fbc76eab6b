"""Every architecture maps images to logits, whatever its numbers."""

import pytest
import torch
from torch import nn

from training.models import ARCHITECTURES, build_model


@pytest.mark.parametrize(
    ("name", "numbers", "parameters"),
    [
        # Counted by hand: weights + biases (+ 2 a BatchNorm channel, which takes the bias's place).
        ("cnn", {}, (25 * 16 + 16) + (16 * 25 * 32 + 32) + (512 * 128 + 128) + (128 * 10 + 10)),
        ("cnn", {"n1": 2, "n2": 3, "n3": 5}, 52 + 153 + (48 * 5 + 5) + 60),
        ("cnn", {"n1": 2, "n2": 3, "n3": 5, "batch_norm": True}, 54 + 156 + (240 + 10) + 60),
        ("mlp", {}, (784 * 512 + 1024) + (512 * 512 + 1024) + (512 * 10 + 10)),
        ("mlp", {"hidden": [7], "batch_norm": False}, (784 * 7 + 7) + 80),
    ],
)
def test_parameters_and_shapes(name: str, numbers: dict[str, object], parameters: int) -> None:
    """The number of parameters is what the formula gives, and logits are [N, 10]."""
    module = build_model(name, numbers)
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert module(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_every_registered_architecture_is_tested() -> None:
    """A new architecture gets its row above."""
    assert set(ARCHITECTURES) == {"cnn", "mlp"}


def test_the_mlp_is_made_of_linear_layers_alone() -> None:
    """The MLP holds no convolution: all its weights are matrices or per-unit vectors."""
    kinds = {type(module) for module in build_model("mlp", {}).modules()}
    assert not kinds & {nn.Conv1d, nn.Conv2d, nn.Conv3d}
    assert nn.Linear in kinds
