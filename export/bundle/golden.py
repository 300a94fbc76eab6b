"""Golden samples: a few real samples, stored in the bundle with their expected outputs.

A program that runs a model from a bundle, such as the service at startup or a check on another
machine, runs these samples first, on the device that it will use. This module imports no torch.

Shape suffix: G golden samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from pydantic import BaseModel, ConfigDict

from export.bundle.manifest import BundleError, TensorSpec
from export.bundle.metrics import Array, Arrays, compare, softmax_error
from export.bundle.tolerances import Tolerance, violations

# A service runs batches of any size: the samples are run in one batch, one by one, and in
# uneven parts.
BATCH_SIZES = (1, 7, 64)

Predict = Callable[[Arrays], Arrays]
"""A function from inputs by name to outputs by name; the first axis of each is the sample."""


@dataclass(frozen=True)
class Golden:
    """The samples and the reference's outputs, by the tensors' names.

    Attributes:
        inputs: The inputs, e.g. images uint8 [G, 28, 28].
        fp32: The fp32 baseline: the outputs of the checkpoint's module, float32 on the CPU.
        fp64: The fp64 reference: the same in float64.
        targets: int64 [G], the ground-truth labels, -1 where none is known.
        one_scale: Errors are divided by the largest of all values, not by their channel's. This is
            used for feature maps, where a unit may be almost inactive in so few samples.
    """

    inputs: Arrays
    fp32: Arrays
    fp64: Arrays
    targets: Array
    one_scale: bool = False

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.targets)

    def first(self, count: int) -> "Golden":
        """The golden samples, reduced to the first ``count``."""
        inputs, fp32, fp64 = (
            {name: array[:count] for name, array in part.items()}
            for part in (self.inputs, self.fp32, self.fp64)
        )
        return Golden(inputs, fp32, fp64, self.targets[:count], self.one_scale)

    def labels(self, logits: str = "logits") -> Array:
        """The labels that the fp32 baseline predicts, int64 [G]."""
        return np.asarray(self.fp32[logits].argmax(axis=1))

    def save(self, path: Path) -> None:
        """Write an .npz with names like "eager/logits"; its bytes depend only on the samples."""
        groups = {"inputs": self.inputs, "eager": self.fp32, "truth": self.fp64}
        arrays = {
            f"{g}/{name}": array for g, part in groups.items() for name, array in part.items()
        }
        np.savez(path, allow_pickle=False, targets=self.targets, **arrays)

    @classmethod
    def load(cls, path: Path, content: bytes | None = None) -> "Golden":
        """Read a file that ``save`` wrote; nothing in it is unpickled.

        Args:
            path: The file.
            content: Its content, if it was read already.

        Raises:
            BundleError: It is not such a file, or its arrays do not fit each other.
        """
        groups: dict[str, Arrays] = {"inputs": {}, "eager": {}, "truth": {}}
        try:
            # Opened here, because NumPy would leave a file open that is not an archive.
            opened = path.open("rb") if content is None else BytesIO(content)
            with opened as file, np.load(file, allow_pickle=False) as arrays:
                targets = arrays["targets"]
                for key in arrays.files:
                    if key != "targets":
                        group, name = key.split("/")
                        groups[group][name] = arrays[key]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise BundleError(f"{path} is not a file of golden samples: {error}") from error
        counts = {len(a) if a.ndim else 0 for part in groups.values() for a in part.values()}
        fit = counts == {len(targets)} and all(groups.values())
        if not fit or len(targets) == 0 or groups["eager"].keys() != groups["truth"].keys():
            raise BundleError(f"{path} is not a file of golden samples: its arrays do not match")
        return cls(groups["inputs"], groups["eager"], groups["truth"], targets)


class GoldenResult(BaseModel):
    """The result of a check with golden samples; ``failures`` describe what was wrong, if anything.

    ``scaled_error_bound`` is None if the variant is judged by other figures.
    """

    model_config = ConfigDict(frozen=True)

    samples: int
    batch_sizes: tuple[int, ...]
    scaled_error: float
    scaled_error_bound: float | None
    wrong_labels: int
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """True if nothing failed."""
        return not self.failures


def check_golden(
    golden: Golden, predict: Predict, outputs: Sequence[TensorSpec], tolerance: Tolerance
) -> GoldenResult:
    """Run the golden samples through a model at several batch sizes, and judge its outputs.

    Args:
        golden: The bundle's samples.
        predict: The model, on the device that will be used.
        outputs: The manifest's outputs, in their order.
        tolerance: The bundle's tolerance for the model's variant on that device.
    """
    worst, wrong, failures = 0.0, 0, list[str]()
    for batch_size in BATCH_SIZES:
        answers = run_batched(predict, golden.inputs, batch_size)
        found = judge_answers(golden, answers, outputs, tolerance)
        worst, wrong = max(worst, found.scaled_error), max(wrong, found.wrong_labels)
        failures += [f"batch {batch_size}, {failure}" for failure in found.failures]
    return GoldenResult(
        samples=len(golden),
        batch_sizes=BATCH_SIZES,
        scaled_error=worst,
        scaled_error_bound=tolerance.scaled_error,
        wrong_labels=wrong,
        failures=tuple(failures),
    )


@dataclass(frozen=True)
class JudgedAnswers:
    """The worst figures of one set of outputs; ``failures`` describe anything that was wrong."""

    scaled_error: float
    wrong_labels: int
    failures: list[str]


def judge_answers(
    golden: Golden, answers: Arrays, outputs: Sequence[TensorSpec], tolerance: Tolerance
) -> JudgedAnswers:
    """Compare a model's outputs for the golden samples with the reference's.

    Args:
        golden: The samples, and the reference's outputs.
        answers: The model's outputs by name.
        outputs: The manifest's outputs, in their order.
        tolerance: The tolerance for the variant on its device.
    """
    worst, wrong, failures = 0.0, 0, list[str]()
    for spec in outputs:
        answer, fp32 = answers.get(spec.name), golden.fp32.get(spec.name)
        if answer is None or fp32 is None or answer.shape != fp32.shape:
            shapes = [None if array is None else array.shape for array in (answer, fp32)]
            failures.append(f"{spec.name}: has shape {shapes[0]}, expected {shapes[1]}")
        elif spec.kind != "probabilities":
            logits = spec.kind == "logits"
            fp64, one_scale = golden.fp64[spec.name], golden.one_scale
            found = compare(answer, fp32, fp64, logits=logits, one_scale=one_scale)
            worst = max(worst, found.scaled_error)
            wrong = max(wrong, found.labels.flips if found.labels else 0)
            failures += [f"{spec.name}: {complaint}" for complaint in violations(found, tolerance)]
    error = head_error(answers, outputs)
    if not error <= tolerance.softmax_error:
        failures.append(
            f"probabilities differ from the softmax of the logits by {error:.2e} > "
            f"{tolerance.softmax_error:.0e}"
        )
    return JudgedAnswers(worst, wrong, failures)


def head_error(answers: Arrays, outputs: Sequence[TensorSpec]) -> float:
    """Largest difference of probabilities to the softmax of the logits before them; 0 if none."""
    worst, logits = 0.0, None
    for spec in outputs:
        if spec.kind == "logits":
            logits = spec.name
        elif spec.kind == "probabilities" and {spec.name, logits} <= answers.keys():
            if answers[spec.name].shape != answers[str(logits)].shape:
                return float("inf")
            worst = max(worst, softmax_error(answers[spec.name], answers[str(logits)]))
    return worst


def run_batched(predict: Predict, inputs: Arrays, batch_size: int) -> Arrays:
    """The outputs for samples that are run in batches of ``batch_size``."""
    count = len(next(iter(inputs.values())))
    parts = [
        predict({name: array[start : start + batch_size] for name, array in inputs.items()})
        for start in range(0, count, batch_size)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
