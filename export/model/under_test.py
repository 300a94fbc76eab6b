"""What is exported: a module, its tensors, and the samples that it is asked."""

import hashlib
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Samples:
    """Inputs by name, and what is known of them.

    Attributes:
        arrays: First axis: the sample.
        targets: int64 [N], the right labels; None if they are not known.
        name: What they are, in words; ``sha256`` is the fingerprint of where they come from.
    """

    arrays: Arrays
    name: str
    sha256: str
    targets: Array | None = None

    def __len__(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.arrays.values())))

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
        weights: The safetensors file that its weights came from.
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

    @property
    def architecture(self) -> str:
        """What made the module: an architecture of ``training``, or a factory."""
        if self.training is not None:
            return str(self.training.config["model"])
        return self.factory.factory if self.factory else self.name

    @property
    def example(self) -> tuple[Tensor, ...]:
        """A few samples, for tracing."""
        return tuple(torch.from_numpy(a[:EXAMPLES].copy()) for a in self.samples.arrays.values())


def read_samples(path: Path) -> Samples:
    """Samples from an .npz of arrays; nothing in it is unpickled.

    Raises:
        SubjectError: No such file, or its arrays do not fit each other.
    """
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
        )
    sha256 = hashlib.sha256(content).hexdigest()
    return Samples(arrays, path.name, sha256, targets)
