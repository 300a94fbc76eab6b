"""The reference: the checkpoint itself, in float64 (the truth) and float32 eager (the yardstick).

Shape suffixes: N images, H and W 28 pixels, K classes.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from export.golden import Predict, run_batched
from export.parity.metrics import Array
from export.servable import ServableModel

TRUTH_BATCH = 500


@dataclass(frozen=True)
class Reference:
    """Images, and what the checkpoint answers to them.

    Attributes:
        images: uint8 [N, 28, 28], the corner cases first.
        corners: How many corner cases there are.
        images_name: Where they come from, in words.
        truth: float64 [N, K], logits in float64.
    """

    model: ServableModel
    images: Array
    corners: int
    images_name: str
    truth: Array

    def describe(self, position: int) -> str:
        """An image by its position in ``images``, as a person would look it up."""
        if position < self.corners:
            return f"corner case {position}"
        return f"test image {position - self.corners}"

    def eager(self, count: int, batch_size: int) -> Array:
        """Logits of the first images, float32 [count, K]; eager depends on the batch size."""
        return run_batched(eager_predict(self.model), self.images[:count], batch_size)[0]


def make_reference(model: ServableModel, images: Tensor, images_name: str) -> Reference:
    """Compute the truth for real images and a few corner cases put in front of them.

    Args:
        model: The checkpoint's module, float32, on the CPU, in evaluation mode.
        images: Real images, uint8 [N, 28, 28].
        images_name: What they are, in words.
    """
    corners = corner_images()
    everything = np.concatenate([corners, images.numpy()])
    in_float64 = copy.deepcopy(model).double()
    truth, _ = run_batched(eager_predict(in_float64), everything, TRUTH_BATCH)
    name = f"{images_name} and {len(corners)} corner cases"
    return Reference(model, everything, len(corners), name, truth)


def eager_predict(model: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Predict:
    """A PyTorch module or program as a function from uint8 arrays to answers as arrays."""

    @torch.no_grad()
    def predict(images_NHW: Array) -> tuple[Array, Array]:
        logits, probabilities = model(torch.from_numpy(np.ascontiguousarray(images_NHW)))
        return logits.cpu().numpy(), probabilities.cpu().numpy()

    return predict


def corner_images() -> Array:
    """uint8 [7, 28, 28]: empty, full, two checkerboards, single pixels in two corners, a ramp."""
    checkerboard = (np.indices((28, 28)).sum(axis=0) % 2 * 255).astype(np.uint8)
    first, last = np.zeros((28, 28), np.uint8), np.zeros((28, 28), np.uint8)
    first[0, 0] = last[-1, -1] = 255
    ramp = (np.arange(784) % 256).astype(np.uint8).reshape(28, 28)
    zeros, full = np.zeros((28, 28), np.uint8), np.full((28, 28), 255, np.uint8)
    return np.stack([zeros, full, checkerboard, 255 - checkerboard, first, last, ramp])
