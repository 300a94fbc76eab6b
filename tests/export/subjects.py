"""Subjects for the tests of the gate: small modules, real images, and any module's factory."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.mnist.servable import INPUTS, OUTPUTS, ServableModel
from export.model.under_test import ModelUnderTest, Samples
from training.models import build_model

NUMBERS: dict[str, dict[str, Any]] = {
    "cnn": {"n1": 2, "n2": 4, "n3": 16},
    "bn-cnn": {"n1": 2, "n2": 4, "n3": 16, "batch_norm": True},
    "mlp": {"hidden": [8]},
}


class Answers(nn.Module):
    """Gives a network's answer as the one output, as subjects do."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """The network's answer in a tuple."""
        return (self.network(x),)


class Pair(nn.Module):
    """Two inputs, branches of different kernels, a skip connection, two outputs.

    Shape suffixes: N samples, C channels, H and W 8 pixels, F 4 numbers, K 3 classes.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(1, width, 3, padding=1)
        self.wide = nn.Conv2d(1, width, 3, padding=2, dilation=2)
        self.norm = nn.BatchNorm2d(2 * width)
        self.mixed = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.mixed_norm = nn.BatchNorm2d(2 * width)
        self.side = nn.Linear(4, 2 * width)
        self.head = nn.Linear(2 * width, 3)
        self.scale = nn.Parameter(torch.tensor([0.7]))

    def forward(self, picture: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        """Picture float [N, 1, 8, 8] and numbers float [N, 4] to logits [N, 3] and a score [N]."""
        branches = torch.cat([self.narrow(picture), self.wide(picture)], dim=1)
        before = torch.relu(self.norm(branches))
        after = torch.relu(before + self.mixed_norm(self.mixed(before)))
        joined = after.mean(dim=(2, 3)) + torch.tanh(self.side(numbers))
        return {"kind": self.head(joined), "score": joined.sum(dim=1) * self.scale}


def pair(width: int = 4) -> nn.Module:
    """A Pair with statistics that its BatchNorms could have learnt."""
    torch.manual_seed(0)
    module = Pair(width)
    for norm in (module.norm, module.mixed_norm):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        norm.running_mean = torch.randn(2 * width) * 0.1
        norm.running_var = torch.rand(2 * width) + 0.5
    return module


def pair_samples(
    count: int, seed: int
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Inputs for a Pair."""
    generator = np.random.default_rng(seed)
    return {
        "picture": generator.normal(size=(count, 1, 8, 8)).astype(np.float32),
        "numbers": generator.normal(size=(count, 4)).astype(np.float32),
    }


def zero_head() -> nn.Module:
    """A network that gives one answer to all samples: its head is all zeros."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    head = nn.Linear(32, 3)
    nn.init.zeros_(head.weight)
    return nn.Sequential(encoder, nn.Flatten(), head)


def no_module() -> str:
    """A factory that gives something else than a module."""
    return "not a module"


def tiny_subject(model: str, samples: int = 64) -> ModelUnderTest:
    """An untrained network of the family and made-up images; its weights' file is nowhere."""
    torch.manual_seed(0)
    numbers = NUMBERS[model]
    module = build_model(model.removeprefix("bn-"), numbers)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.running_mean = torch.randn(norm.num_features) * 0.1
            norm.running_var = torch.rand(norm.num_features) + 0.5
    images = np.random.default_rng(0).integers(0, 256, (samples, 28, 28)).astype(np.uint8)
    return ModelUnderTest(
        name=model,
        module=ServableModel(module),
        inputs=INPUTS,
        outputs=OUTPUTS,
        labels=tuple("0123456789"),
        weights=Path("nowhere"),
        samples=Samples({"images": images}, "noise", "0" * 64),
        calibration=None,
    )
