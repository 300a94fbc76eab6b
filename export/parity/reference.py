"""Compute the checkpoint's own outputs: the fp64 reference and the fp32 baseline.

Shape suffixes: N samples, H and W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from export.bundle.golden import Golden, Predict, run_batched
from export.bundle.manifest import SubjectError
from export.bundle.metrics import Array, Arrays, Floor, margins
from export.model.domains import edge_cases
from export.model.program import Program
from export.model.under_test import ModelUnderTest
from export.parity.interpreter import fp64_predict
from export.parity.schema import EDGE_CASES

FP64_BATCH = 500
GOLDEN_PER_LABEL = 6
GOLDEN_UNLABELLED = 60
IMAGES_NDIM = 3  # batch, height, width
NO_DOMAIN = (
    "the values that the inputs may have are not known; declare them: "
    "--input NAME=DATATYPE[-1,...]:range=LOW..HIGH"
)


@dataclass(frozen=True)
class Reference:
    """Samples of one size, and the checkpoint's outputs for them.

    Attributes:
        inputs: The inputs by name.
        fp64: The fp64 reference: the outputs, with every floating operator computed in float64.
        targets: int64 [N], the ground-truth labels, -1 where there is none.
        block: Which samples they are: "" for the subject's own, ``EDGE_CASES``, or their sizes.
        edge_cases: The names of edge cases, in the order of the samples; else empty.
        floors: Each output's floor, which is float32's own error on the CPU (``noise``); empty if
            it was not measured.
    """

    subject: ModelUnderTest
    inputs: Arrays
    fp64: Arrays
    targets: Array
    block: str = ""
    edge_cases: tuple[str, ...] = ()
    floors: dict[str, Floor] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.targets)

    def first(self, count: int) -> Arrays:
        """The inputs of the first ``count`` samples."""
        return {name: array[:count] for name, array in self.inputs.items()}

    def fp32_baseline(self, count: int, batch_size: int) -> Arrays:
        """The fp32 baseline for the first samples; it depends on the batch size."""
        return run_batched(eager_predict(self.subject), self.first(count), batch_size)


def make_reference(subject: ModelUnderTest, program: Program) -> Reference:
    """Compute the fp64 reference for a subject's samples.

    Args:
        subject: The module and its samples.
        program: Its exported program.

    Raises:
        NarrowOperatorError: An operator cannot be computed in float64.
        SubjectError: An output is not finite.
    """
    samples = subject.samples
    fp64 = run_batched(fp64_predict(program, _names(subject)), samples.arrays, FP64_BATCH)
    wrong_N = ~_finite(fp64)
    if wrong_N.any():
        raise SubjectError(
            f"{subject.name} returns NaN or infinity for {int(wrong_N.sum())} of {len(samples)} "
            f"samples of {samples.name} in float64, first sample {int(wrong_N.argmax())}; "
            "expected finite outputs: leave these samples out"
        )
    targets = np.full(len(samples), -1) if samples.targets is None else samples.targets
    return Reference(subject, samples.arrays, fp64, targets, samples.sizes)


def make_edge_reference(
    subject: ModelUnderTest, program: Program
) -> tuple[Reference | None, dict[str, str]]:
    """Compute the reference for the edge cases, which have a scale of their own.

    Args:
        subject: The module and its samples.
        program: Its exported program.

    Returns:
        The reference, None if no edge case is left; and those left out, each with the reason.

    Raises:
        SubjectError: The network cannot process a value of a domain.
    """
    cases = make_edge_cases(subject)
    if not cases:
        return None, {"all": NO_DOMAIN}
    inputs = {name: np.stack([case[name] for case in cases.values()]) for name in subject.names}
    try:
        fp64 = run_batched(fp64_predict(program, _names(subject)), inputs, FP64_BATCH)
        finite_N = _finite(fp64) & _finite(eager_predict(subject)(inputs))
    except (RuntimeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise SubjectError(
            f"{subject.name} cannot run its edge cases ({', '.join(cases)}): {reason}; their "
            "values are within the domains that were declared for its inputs, or inferred: "
            f"{', '.join(map(str, subject.inputs))}; declare the allowed values: --input "
            "NAME=DATATYPE[-1,...]:DOMAIN"
        ) from error
    left_out = {
        name: "the reference's output for it is not finite"
        for name, finite in zip(cases, finite_N, strict=True)
        if not finite
    }
    if not finite_N.any():
        return None, left_out
    kept = Reference(
        subject,
        {name: array[finite_N] for name, array in inputs.items()},
        {name: array[finite_N] for name, array in fp64.items()},
        np.full(int(finite_N.sum()), -1),
        EDGE_CASES,
        tuple(name for name in cases if name not in left_out),
    )
    return kept, left_out


def make_edge_cases(subject: ModelUnderTest) -> dict[str, Arrays]:
    """Edge cases by name: pictures if the only input is one, else the extremes of the domains."""
    first, *others = subject.inputs
    if not others and first.datatype == "UINT8" and len(first.shape) == IMAGES_NDIM:
        images = edge_case_images(*subject.samples.arrays[first.name].shape[1:])
        return {name: {first.name: image} for name, image in images.items()}
    return edge_cases(subject.inputs, subject.samples.arrays)


def predict_with(run: Callable[..., Any], outputs: Sequence[str], device: str = "cpu") -> Predict:
    """Wrap a PyTorch module or program as a function from arrays to arrays.

    Args:
        run: Takes the input tensors in order and returns the output tensors in order.
        outputs: The outputs' names.
        device: The device of the tensors.
    """

    @torch.no_grad()
    def predict(inputs: Arrays) -> Arrays:
        tensors = [torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in inputs.values()]
        # Later sums over these numbers depend on their order in memory.
        return {
            name: np.ascontiguousarray(tensor.cpu().numpy())
            for name, tensor in zip(outputs, run(*tensors), strict=True)
        }

    return predict


def choose_golden(reference: Reference) -> Golden:
    """Choose a few of the subject's samples that the reference classifies correctly, in order.

    They are the first few of each label, or the first samples if there are no logits. Misclassified
    samples are near a decision boundary, where a device's rounding could flip the label and raise a
    false alarm. Samples with the smallest margins are left out for the same reason. If none is
    classified correctly, only the margin decides.
    """
    subject, fp64, targets = reference.subject, reference.fp64, reference.targets
    chosen = np.arange(min(GOLDEN_UNLABELLED, len(reference)))
    logits = [spec.name for spec in subject.outputs if spec.kind == "logits"]
    if logits:
        labels = fp64[logits[0]].argmax(axis=1)
        margin = np.min([margins(fp64[name]) for name in logits], axis=0)
        clear = margin >= np.median(margin) / 10
        right = clear & ((labels == targets) | (targets < 0))
        usable = right if right.any() else clear
        chosen = np.concatenate(
            [np.flatnonzero(usable & (labels == x))[:GOLDEN_PER_LABEL] for x in np.unique(labels)]
        )
        chosen.sort()
    asked = {name: array[chosen] for name, array in subject.samples.arrays.items()}
    return Golden(
        asked,
        eager_predict(subject)(asked),
        {name: array[chosen] for name, array in fp64.items()},
        targets[chosen].astype(np.int64),
    )


def eager_predict(subject: ModelUnderTest) -> Predict:
    """The subject's own module in float32, as a function from arrays to arrays."""
    return predict_with(subject.module, _names(subject))


def _names(subject: ModelUnderTest) -> list[str]:
    return [spec.name for spec in subject.outputs]


def _finite(outputs: Arrays) -> Array:
    """Whether every value of a sample's outputs is finite, bool [N]."""
    parts = [np.isfinite(a).reshape(len(a), -1).all(axis=1) for a in outputs.values()]
    return np.asarray(np.all(parts, axis=0))


def edge_case_images(height: int, width: int) -> Arrays:
    """Images by name, uint8 [H, W]: empty, full, two checkerboards, two single pixels, a ramp."""
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
