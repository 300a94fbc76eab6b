"""The exported graph contains all steps from raw pixels to probabilities."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.convert.pt2 import export_program
from export.mnist.servable import ServableModel
from export.parity.reference import edge_case_images
from tests.export.subjects import tiny_subject


class _FirstPixels(nn.Module):
    """Returns its first ten standardised inputs as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.flatten(1)[:, :10] * self.weight


def test_pixels_are_standardised_as_in_training() -> None:
    """The network inside sees (pixel / 255 - mean) / std, in float32 and in float64."""
    images = torch.arange(2 * 784).remainder(256).to(torch.uint8).reshape(2, 28, 28)
    for model, dtype in (
        (ServableModel(_FirstPixels()), torch.float32),
        (ServableModel(_FirstPixels()).double(), torch.float64),
    ):
        logits, probabilities = model(images)
        expected = (images.flatten(1)[:, :10].to(dtype) / 255 - 0.1307) / 0.3081
        assert logits.dtype == probabilities.dtype == dtype
        assert torch.equal(logits, expected)
        assert torch.allclose(probabilities.sum(1), torch.ones(2, dtype=dtype))


def test_a_model_in_training_mode_is_not_exported() -> None:
    """Modules in training mode, such as dropout, are refused by name."""
    subject = tiny_subject("mlp")
    module = subject.module
    assert isinstance(module, ServableModel)
    module.classifier.train()
    with pytest.raises(ValueError, match=r"training mode.*classifier"):
        export_program(dataclasses.replace(subject, module=module))


def test_the_corner_images_are_what_they_say() -> None:
    """Empty, full, checkerboards, single pixels and a ramp are seven distinct images."""
    edge_cases = edge_case_images(28, 28)
    assert {image.shape for image in edge_cases.values()} == {(28, 28)}
    assert {image.dtype for image in edge_cases.values()} == {np.dtype(np.uint8)}
    assert len({image.tobytes() for image in edge_cases.values()}) == 7
    sums = {name: int(image.sum()) for name, image in edge_cases.items()}
    assert sums["empty"] == 0
    assert sums["full"] == 255 * 784
    assert sums["first pixel"] == sums["last pixel"] == 255
