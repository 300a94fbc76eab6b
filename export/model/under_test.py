"""The model under test: a module, the specs of its tensors, and the samples it is run on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from export.bundle.manifest import (
    FactorySummary,
    ImagePreprocessing,
    SampleSet,
    SubjectError,
    Task,
    TensorSpec,
    TrainingSummary,
)
from export.bundle.metrics import Array, Arrays

EXAMPLES = 4
FIXED_SIZE = (
    "A size that depends on the values of the inputs cannot be exported: return a fixed number of "
    "entries (topk, or padded to the largest), together with a mask or a count"
)


@dataclass(frozen=True)
class Samples:
    """Inputs by name, and where they come from.

    Attributes:
        arrays: The inputs by name; the first axis is the sample.
        targets: int64 [N], the ground-truth labels; None if they are not known.
        name: A description of the samples.
        sha256: The fingerprint of the source that they were read from.
        sizes: The sizes of the variable axes, as text; empty for the main block of samples.
        others: Blocks of samples with other sizes, each of which is proven too.
    """

    arrays: Arrays
    name: str
    sha256: str
    targets: Array | None = None
    sizes: str = ""
    others: tuple["Samples", ...] = ()

    def __len__(self) -> int:
        """The number of samples."""
        return len(next(iter(self.arrays.values())))

    def first(self, count: int) -> "Samples":
        """The first ``count`` samples, of this block and of the blocks of other sizes."""
        arrays = {name: array[:count] for name, array in self.arrays.items()}
        targets = None if self.targets is None else self.targets[:count]
        others = tuple(samples.first(count) for samples in self.others)
        return replace(self, arrays=arrays, targets=targets, others=others)

    def summary(self) -> SampleSet:
        """The summary for the manifest."""
        return SampleSet(name=self.name, samples=len(self), sha256=self.sha256)


@dataclass(frozen=True)
class Learned:
    """An image model's training and held-out images, which its guard is fitted to.

    Attributes:
        images: The training images, uint8 [N, 28, 28].
        held_out: Images held out of training, uint8 [M, 28, 28].
        name: The name of the data set that they are taken from.
    """

    images: Array
    held_out: Array
    name: str


@dataclass(frozen=True)
class ModelUnderTest:
    """A module to be exported and proven.

    Attributes:
        module: float32, on the CPU, in evaluation mode; takes the inputs in their order, returns
            the outputs in theirs.
        weights: The safetensors file that the module's weights came from.
        weights_sha256: The SHA-256 of that file when it was read; None if not known.
        samples: The samples that the gate runs.
        calibration: The samples that int8's scales are fitted to; None: no int8.
        learned: Images, for a guard; None if they are not known or the inputs are not images.
        task: What the service does with the model; None: it is derived from the tensors.
        preprocessing: How a picture is converted to an input, for image classifiers.
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    weights: Path
    samples: Samples
    calibration: Samples | None
    learned: Learned | None = None
    task: Task | None = None
    preprocessing: ImagePreprocessing | None = None
    training: TrainingSummary | None = None
    factory: FactorySummary | None = None
    weights_sha256: str | None = None

    @property
    def architecture(self) -> str:
        """What makes the module: the name of an architecture in ``training``, or of a factory."""
        if self.training is not None:
            return str(self.training.config["model"])
        return self.factory.factory if self.factory else self.name

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs' names, in order."""
        return tuple(spec.name for spec in self.inputs)

    @property
    def example(self) -> tuple[Tensor, ...]:
        """A few samples of the largest sizes, for tracing, which would fix an axis of size 1."""
        blocks = (self.samples, *self.samples.others)
        largest = max(blocks, key=lambda block: sum(a[:1].size for a in block.arrays.values()))
        return tuple(torch.from_numpy(a[:EXAMPLES].copy()) for a in largest.arrays.values())


def read_samples(paths: Sequence[Path]) -> list[Samples]:
    """Read samples from .npz files, one file for each size; nothing in them is unpickled.

    Returns:
        The samples of each file; all have the name and the fingerprint of the files together.

    Raises:
        SubjectError: A file is missing, or the arrays do not fit each other.
    """
    found = [_read(path) for path in paths]
    if len(found) == 1:
        return found
    expected = list(found[0].arrays)
    for path, samples in zip(paths, found, strict=True):
        if list(samples.arrays) != expected:
            raise SubjectError(
                f"{path} has the arrays {', '.join(samples.arrays)}; expected those of "
                f"{paths[0]}: {', '.join(expected)}"
            )
    together = hashlib.sha256("".join(s.sha256 for s in found).encode()).hexdigest()
    name = ", ".join(s.name for s in found)
    return [replace(samples, name=name, sha256=together) for samples in found]


def _read(path: Path) -> Samples:
    try:
        content = path.read_bytes()
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise SubjectError(
            f"{path} is not an .npz of arrays ({error}); write one with "
            "numpy.savez(path, NAME=array, ...), with the batch on the first axis"
        ) from error
    targets = arrays.pop("targets", None)
    counts = {
        len(a) if a.ndim else 0
        for a in [*arrays.values(), *([targets] if targets is not None else [])]
    }
    if not arrays or len(counts) != 1 or min(counts) < EXAMPLES:
        raise SubjectError(
            f"{path}: expected arrays of the same length, at least {EXAMPLES}; found "
            + ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
            + ". The first axis of each is the batch: a state [layers, N, hidden] must be "
            "transposed to [N, layers, hidden], and back in forward"
        )
    sha256 = hashlib.sha256(content).hexdigest()
    return Samples(arrays, path.name, sha256, targets)
