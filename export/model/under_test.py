"""What is exported: a module, its tensors, and the samples that it is asked."""

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
    "entries (topk, or padded to the largest) and a mask or a count beside them"
)


@dataclass(frozen=True)
class Samples:
    """Inputs by name, and what is known of them.

    Attributes:
        arrays: First axis: the sample.
        targets: int64 [N], the right labels; None if they are not known.
        name: What they are, in words; ``sha256`` is the fingerprint of where they come from.
        sizes: Of the variable axes, in words; empty of the samples that all else is asked of.
        others: Samples of other sizes, each proven as well.
    """

    arrays: Arrays
    name: str
    sha256: str
    targets: Array | None = None
    sizes: str = ""
    others: tuple["Samples", ...] = ()

    def __len__(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.arrays.values())))

    def first(self, count: int) -> "Samples":
        """The first of them, and of those of other sizes."""
        arrays = {name: array[:count] for name, array in self.arrays.items()}
        targets = None if self.targets is None else self.targets[:count]
        others = tuple(samples.first(count) for samples in self.others)
        return replace(self, arrays=arrays, targets=targets, others=others)

    def summary(self) -> SampleSet:
        """For the manifest."""
        return SampleSet(name=self.name, samples=len(self), sha256=self.sha256)


@dataclass(frozen=True)
class Learned:
    """What a model of images learned from, and what was held out meanwhile, for its guard.

    Attributes:
        images: uint8 [N, 28, 28]; ``held_out`` uint8 [M, 28, 28].
        name: What they are taken from, in words.
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
        weights: The safetensors file that its weights came from, and ``weights_sha256`` that of
            its content when they were read; None: not known.
        samples: What the gate asks.
        calibration: What int8's scales are fitted to; None: no int8.
        learned: Images, for a guard; None: not known, or the inputs are others.
        task: What the service does with it; None: the service derives it from the tensors.
        preprocessing: How a picture becomes an input, for image classifiers.
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
        """What made the module: an architecture of ``training``, or a factory."""
        if self.training is not None:
            return str(self.training.config["model"])
        return self.factory.factory if self.factory else self.name

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs' names, in order."""
        return tuple(spec.name for spec in self.inputs)

    @property
    def example(self) -> tuple[Tensor, ...]:
        """A few samples of the largest sizes, for tracing: an axis of size 1 would be fixed."""
        blocks = (self.samples, *self.samples.others)
        largest = max(blocks, key=lambda block: sum(a[:1].size for a in block.arrays.values()))
        return tuple(torch.from_numpy(a[:EXAMPLES].copy()) for a in largest.arrays.values())


def read_samples(paths: Sequence[Path]) -> list[Samples]:
    """Samples from .npz files, a file for each size; nothing in them is unpickled.

    Returns:
        Those of each file; all bear the name and the fingerprint of the files together.

    Raises:
        SubjectError: No such file, or its arrays do not fit each other.
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
            f"{path} is no .npz of arrays ({error}); write one with "
            "numpy.savez(path, NAME=array, ...), the first axis of each being the sample"
        ) from error
    targets = arrays.pop("targets", None)
    counts = {
        len(a) if a.ndim else 0
        for a in [*arrays.values(), *([targets] if targets is not None else [])]
    }
    if not arrays or len(counts) != 1 or min(counts) < EXAMPLES:
        raise SubjectError(
            f"{path}: expected arrays of one length, at least {EXAMPLES}; found "
            + ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
            + ". The first axis of each is the sample: a state [layers, N, hidden] must be "
            "transposed to [N, layers, hidden], and back in forward"
        )
    sha256 = hashlib.sha256(content).hexdigest()
    return Samples(arrays, path.name, sha256, targets)
