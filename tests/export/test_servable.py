"""The exported graph holds everything between raw pixels and probabilities."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.parity.reference import corner_images, eager_predict
from export.servable import ServableModel, example_images
from export.to_pt2 import export_program
from training.models import build_model


class _FirstPixels(nn.Module):
    """Hands its standardised input through as ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.flatten(1)[:, :10] * self.weight


def test_pixels_are_standardised_as_in_training() -> None:
    """The network inside sees (pixel / 255 - mean) / std, in float32 and in float64."""
    images = example_images(2)
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
    """Dropout and batch statistics never reach a file: the culprit modules are named."""
    model = ServableModel(build_model("mlp", {"hidden": [4]}))
    model.classifier.train()
    with pytest.raises(ValueError, match=r"training mode.*classifier"):
        export_program(model)


def test_the_corner_images_are_what_they_say() -> None:
    """Empty, full, checkerboards, single pixels, a ramp: seven images, all different."""
    corners = corner_images()
    assert corners.shape == (7, 28, 28)
    assert corners.dtype == np.uint8
    assert len(np.unique(corners.reshape(7, -1), axis=0)) == 7
    assert [int(image.sum()) for image in corners[[0, 1, 4, 5]]] == [0, 255 * 784, 255, 255]


def test_predictions_of_a_module_are_arrays() -> None:
    """The reference speaks arrays, as an ONNX session does."""
    logits, probabilities = eager_predict(ServableModel(build_model("cnn", {})))(corner_images())
    assert logits.shape == probabilities.shape == (7, 10)
    assert logits.dtype == np.float32
