"""Run the exported files on a device, in this process or in a separate one.

Formats that a device cannot run are listed with the reason, never left out silently.
"""

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from export.bundle.golden import Predict, run_batched
from export.bundle.manifest import BundleError
from export.bundle.metrics import Array, Arrays
from export.bundle.session import OnnxModel
from export.bundle.tolerances import Device
from export.worker import OPENING_S, Worker

BYTES_PER_S = 1_000_000  # far slower than any format opens


@dataclass(frozen=True)
class ModelFile:
    """A model's file, and how it is run.

    Attributes:
        outputs: The outputs' names, in order.
        threads: Threads within an operator, on the CPU.
        tf32: See ``OnnxModel``.
        cuda_graphs: See ``OnnxModel``.
    """

    variant: str
    path: Path
    outputs: tuple[str, ...]
    device: Device
    threads: int = 1
    tf32: bool = False
    cuda_graphs: bool = False

    @property
    def needs_torch(self) -> bool:
        """True unless ONNX Runtime runs the file."""
        return not self.variant.startswith("onnx")

    def open(self) -> Predict:
        """Open the file in this process, as a function from inputs to outputs.

        Raises:
            BundleError: The file is not a model that can be run.
            DeviceUnavailableError: The device is not available.
        """
        if not self.needs_torch:
            return OnnxModel(
                self.path, self.device, self.threads, tf32=self.tf32, cuda_graphs=self.cuda_graphs
            )
        import torch  # noqa: PLC0415 - not needed for ONNX files

        from export.parity.reference import predict_with  # noqa: PLC0415

        model = _load(self.variant, self.path, self.device, self.tf32)
        predict = predict_with(
            model.module() if self.variant == "pt2" else model, self.outputs, self.device
        )

        def in_threads(inputs: Arrays) -> Arrays:
            if torch.get_num_threads() != self.threads:
                torch.set_num_threads(self.threads)
            return predict(inputs)

        return in_threads

    def tensors(self) -> Arrays | None:
        """The tensors of a PyTorch file by name (frozen constants lost theirs); None for ONNX.

        Raises:
            BundleError: The file is not a model that can be opened.
        """
        if not self.needs_torch:
            return None
        from export.provenance.state import (  # noqa: PLC0415 - not needed for ONNX files
            frozen_constants,
            program_arrays,
            state_arrays,
        )

        model = _load(self.variant, self.path, self.device, self.tf32)
        if self.variant == "pt2":
            return program_arrays(model)
        return frozen_constants(model) if self.variant.endswith("frozen") else state_arrays(model)


# Batches of one, odd sizes, and powers of two with their neighbours, where kernels change. The
# first size runs over every sample, the others over the first NARROW, where most leave a remainder.
# 1,024 represents larger batches that a service may run.
BATCH_SIZES = (256, 1024, 128, 64, 33, 32, 31, 16, 8, 7, 3, 2, 1)
# The service runs long batches in two threads, which split sums at other places.
IN_TWO_THREADS = (1024, 64, 8)
RUNS = tuple((size, 1) for size in BATCH_SIZES) + tuple((size, 2) for size in IN_TWO_THREADS)
# The runs of a first look (``build --quick``).
QUICK_RUNS = ((256, 1), (8, 1), (1, 1), (64, 2))
# The runs of edge cases and of other sizes: the first block of samples already tests whether an
# output depends on the batch.
FEW_RUNS = ((64, 1), (7, 1), (1, 1))


@dataclass(frozen=True)
class Setting:
    """Where and how the files are run.

    Attributes:
        device: The device of the files; the reference always runs on the CPU.
        tf32: On CUDA, run only the fp32 file, with TF32 on, as the variant onnx-tf32.
        cuda_graphs: On CUDA, replay recorded graphs.
        strict: Raise an error if a file is not a model, instead of failing its variant.
        runs: Pairs of a batch size and a number of threads.
    """

    device: Device = "cpu"
    tf32: bool = False
    cuda_graphs: bool = False
    strict: bool = False
    runs: tuple[tuple[int, int], ...] = RUNS


def choose_files(
    variants: Mapping[str, Path], outputs: tuple[str, ...], setting: Setting, threads: int = 1
) -> tuple[list[ModelFile], dict[str, str]]:
    """The files that the device can run, and why it cannot run the others."""
    cannot = {}
    if setting.device == "cuda":
        cannot = {
            "onnx-int8": "int8 is for the CPU: CUDA's provider would run it in fp32",
            "pt2": "the program was exported for the CPU and cannot run on cuda",
            "torchscript-frozen": "its weights are constants on the CPU and cannot run on cuda",
        }
    files = [
        ModelFile(
            variant, path, outputs, setting.device, threads, setting.tf32, setting.cuda_graphs
        )
        for variant, path in variants.items()
        if variant not in cannot
    ]
    return files, {variant: why for variant, why in cannot.items() if variant in variants}


class Workers:
    """Two processes: one without torch, for ONNX files and conversions, and one with torch."""

    def __init__(self) -> None:
        """Create both workers; their processes are not started yet."""
        self.onnx, self.torch = Worker(), Worker()

    def __enter__(self) -> Self:
        """Start both processes, so that the first calls do not wait for them."""
        self.onnx.__enter__()
        self.torch.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """End both processes."""
        self.onnx.__exit__()
        self.torch.__exit__()

    def of(self, file: ModelFile) -> Worker:
        """The worker that runs a file."""
        return self.torch if file.needs_torch else self.onnx


class Candidate:
    """A file that a worker runs; calling it runs a batch."""

    def __init__(self, file: ModelFile, workers: Workers, stored: Path, patience_s: float) -> None:
        """Prepare a candidate; the file is not opened yet.

        Args:
            file: The file to run.
            workers: The processes, one of which runs it.
            stored: A folder from ``store_samples``.
            patience_s: The timeout of a run over all stored samples.
        """
        self.file = file
        self._workers, self._worker = workers, workers.of(file)
        self._stored, self._patience_s = stored, patience_s

    def with_file(self, file: ModelFile) -> "Candidate":
        """A candidate for another file and the same samples."""
        return Candidate(file, self._workers, self._stored, self._patience_s)

    def open(self) -> Arrays | None:
        """Open the file in the worker and return its tensors by name; None for ONNX files."""
        patience_s = OPENING_S + self.file.path.stat().st_size / BYTES_PER_S
        state: Arrays | None = self._worker.call(_open, self.file, timeout_s=patience_s)
        return state

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run one batch: inputs by name to outputs by name."""
        found: Arrays = self._worker.call(_run, self.file, inputs, timeout_s=self._patience_s)
        return found

    def answers(self, count: int, batch_size: int, threads: int) -> Arrays:
        """Outputs by name for the first ``count`` stored samples."""
        file = dataclasses.replace(self.file, threads=threads)
        arguments = (file, self._stored, count, batch_size)
        found: Arrays = self._worker.call(_run_stored, *arguments, timeout_s=self._patience_s)
        return found


def store_samples(inputs: Arrays, folder: Path) -> None:
    """Write samples to a folder, from which workers read them for many runs."""
    folder.mkdir()
    for position, (name, array) in enumerate(inputs.items()):
        np.save(folder / f"{position:03}.{name}.npy", array)


def run_filled(predict: Predict, inputs: Arrays, batch_size: int) -> Arrays:
    """Run samples in batches of one size; too few samples are repeated to fill one batch.

    If a sample has several outputs, the one that differs most from the first is returned, so that a
    fault at a later position in the batch is found.
    """
    count = len(next(iter(inputs.values())))
    if count >= batch_size:
        return run_batched(predict, inputs, batch_size)
    filled = {n: np.resize(array, (batch_size, *array.shape[1:])) for n, array in inputs.items()}
    return {name: _farthest(array, count) for name, array in predict(filled).items()}


def _farthest(answers: Array, count: int) -> Array:
    worst = answers[:count].copy()
    distance = np.zeros(count)
    for start in range(count, len(answers), count):
        again = answers[start : start + count]
        first = answers[: len(again)]
        difference = np.abs(again.astype(np.float64) - first).reshape(len(again), -1).max(axis=1)
        difference = np.nan_to_num(difference, nan=np.inf)
        farther = difference > distance[: len(again)]
        worst[: len(again)][farther] = again[farther]
        distance[: len(again)] = np.maximum(difference, distance[: len(again)])
    return worst


# The functions below run in a worker, which may be new at each call: they open what they need.


def _opened(file: ModelFile) -> Predict:
    return _opened_as(file, file.path.stat().st_mtime_ns)


@functools.cache
def _opened_as(file: ModelFile, _changed_ns: int) -> Predict:
    """Open the file, cached by its time of change: a repair may replace it."""
    return file.open()


@functools.cache
def _load(variant: str, path: Path, device: Device, tf32: bool) -> Any:
    import torch  # noqa: PLC0415 - not needed for ONNX files

    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = tf32
    try:
        if variant == "pt2":
            return torch.export.load(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript's deprecation
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(path, map_location=device)
    except Exception as error:  # PyTorch's loaders raise many classes
        raise BundleError(f"{path} is not a model that can be run: {error}") from error


@functools.cache
def _read_stored(folder: Path) -> Arrays:
    return {path.name.split(".")[1]: np.load(path) for path in sorted(folder.glob("*.npy"))}


def _open(file: ModelFile) -> Arrays | None:
    _opened(file)
    return file.tensors()


def _run(file: ModelFile, inputs: Arrays) -> Arrays:
    return _opened(file)(inputs)


def _run_stored(file: ModelFile, stored: Path, count: int, batch_size: int) -> Arrays:
    samples = {name: array[:count] for name, array in _read_stored(stored).items()}
    return run_filled(_opened(file), samples, batch_size)
