"""The reference: the checkpoint itself, in float64 (the truth) and float32 eager (the yardstick).

Shape suffixes: N samples, H and W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from export.bundle.golden import Predict, run_batched
from export.bundle.metrics import Array, Arrays
from export.model.program import Program
from export.model.under_test import ModelUnderTest
from export.parity.interpreter import fp64_predict

TRUTH_BATCH = 500
IMAGES_NDIM = 3  # batch, height, width


@dataclass(frozen=True)
class Reference:
    """Samples, and what the checkpoint answers to them.

    Attributes:
        inputs: What is asked, the corner cases first.
        corners: The corner cases' names.
        truth: The outputs in float64.
        targets: int64 [N], the right labels, -1 where there is none.
    """

    subject: ModelUnderTest
    inputs: Arrays
    corners: tuple[str, ...]
    truth: Arrays
    targets: Array

    def __len__(self) -> int:
        """How many samples there are, corner cases among them."""
        return len(self.targets)

    def first(self, count: int) -> Arrays:
        """The inputs of the first samples."""
        return {name: array[:count] for name, array in self.inputs.items()}

    def eager(self, count: int, batch_size: int) -> Arrays:
        """Outputs for the first samples, float32; eager depends on the batch size."""
        return run_batched(eager_predict(self.subject), self.first(count), batch_size)


def make_reference(subject: ModelUnderTest, program: Program) -> Reference:
    """Compute the truth for a subject's samples and a few corner cases put in front of them."""
    names, corners = corner_cases(subject)
    inputs = {
        name: np.concatenate([corners[name], array])
        for name, array in subject.samples.arrays.items()
    }
    targets = subject.samples.targets
    unknown = np.full(len(subject.samples), -1)
    return Reference(
        subject,
        inputs,
        names,
        run_batched(fp64_predict(program, [s.name for s in subject.outputs]), inputs, TRUTH_BATCH),
        np.concatenate([unknown[: len(names)], unknown if targets is None else targets]),
    )


def predict_with(run: Callable[..., Any], outputs: Sequence[str], device: str = "cpu") -> Predict:
    """A PyTorch module or program as a function from arrays to arrays.

    Args:
        run: Takes the inputs' tensors in order, returns the outputs' in theirs.
        outputs: The outputs' names.
        device: Where the tensors are put.
    """

    @torch.no_grad()
    def predict(inputs: Arrays) -> Arrays:
        tensors = [torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in inputs.values()]
        return {n: t.cpu().numpy() for n, t in zip(outputs, run(*tensors), strict=True)}

    return predict


def eager_predict(subject: ModelUnderTest) -> Predict:
    """The subject's own module, float32."""
    return predict_with(subject.module, [spec.name for spec in subject.outputs])


def corner_cases(subject: ModelUnderTest) -> tuple[tuple[str, ...], Arrays]:
    """Names and inputs of corner cases: pictures if the input is one, else the extremes seen."""
    first, *others = subject.inputs
    if not others and first.datatype == "UINT8" and len(first.shape) == IMAGES_NDIM:
        images = corner_images(*first.shape[1:])
        return tuple(images), {first.name: np.stack(list(images.values()))}
    extremes = {name: extremes_of(array) for name, array in subject.samples.arrays.items()}
    return ("all smallest", "all largest"), extremes


def extremes_of(array: Array) -> Array:
    """[2, ...]: one sample of the type's smallest values, one of the largest, as far as seen.

    uint8 is taken for pixels, 0 and 255; of other types only values among the samples are known
    to be allowed (an integer may be an index).
    """
    low, high = (0, 255) if array.dtype == np.uint8 else (array.min(), array.max())
    return np.stack([np.full(array.shape[1:], value, array.dtype) for value in (low, high)])


def corner_images(height: int, width: int) -> Arrays:
    """By name: uint8 [H, W], empty, full, two checkerboards, two single pixels, a ramp."""
    checkerboard = (np.indices((height, width)).sum(axis=0) % 2 * 255).astype(np.uint8)
    first, last = np.zeros((2, height, width), np.uint8)
    first[0, 0] = last[-1, -1] = 255
    return {
        "empty": np.zeros((height, width), np.uint8),
        "full": np.full((height, width), 255, np.uint8),
        "checkerboard": checkerboard,
        "the other checkerboard": 255 - checkerboard,
        "first pixel": first,
        "last pixel": last,
        "ramp": (np.arange(height * width) % 256).astype(np.uint8).reshape(height, width),
    }
