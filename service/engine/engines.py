"""Opens a bundle's model file with the runtime of its variant, on the configured device."""

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from export.bundle.golden import Golden, Predict, run_batched
from export.bundle.manifest import BundleError, Manifest
from export.bundle.metrics import Arrays
from export.bundle.session import OnnxModel
from export.bundle.store import Bundle
from export.bundle.tolerances import Device, Tolerance
from service.settings import Settings

WARM_UP_RUNS = 3
LOWEST_PRIORITY = 19  # of setpriority(2)
LARGEST_OPENED_TWICE = 64 * 2**20  # bytes
# A batch runs in two threads if one thread takes at least this long. 32 images of CNN quick take
# .37 ms, and two threads raise throughput by 8% on 2 idle cores. Shorter batches gain 0 to 3%, and
# lose up to half of their throughput if another process occupies the second core.
WORTH_TWO_THREADS_S = 0.0003
SIZES_FOR_TWO_THREADS = (8, 16, 32)
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "max PERIOD" or "QUOTA PERIOD", in microseconds


class Engine(Protocol):
    """A model on a device; calling it runs one batch, never two at a time.

    Attributes:
        device: The device.
        provider: The runtime's own name for it.
    """

    device: Device
    provider: str

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run one batch of at least one sample: inputs by name to outputs by name."""


def open_engine(bundle: Bundle, device: Device, settings: Settings) -> Engine:
    """Open the model file of the configured variant, from the same bytes that were verified.

    Raises:
        BundleError: The bundle has no such variant, or its file cannot be run.
        DeviceUnavailableError: The device, or a library that the variant needs there, is missing.
    """
    path = bundle.model_path(settings.variant)
    if settings.variant.startswith("torchscript"):
        return _open_torchscript(bundle, path, device, choose_threads(settings))
    if device == "cpu":
        return _open_on_cpu(bundle, path, settings)
    if settings.variant == "onnx-int8":
        raise BundleError(
            "the variant onnx-int8 is only for the CPU: ONNX Runtime's CUDA provider would run "
            "it in fp32"
        )
    has_fixed_shapes = not any(spec.bounds for spec in bundle.manifest.inputs)
    model = OnnxModel(
        bundle.read(path),
        device,
        name=path,
        tf32=settings.tf32,
        cuda_graphs=settings.cuda_graphs and has_fixed_shapes,
        fixed_buffers=has_fixed_shapes,
    )
    return BucketedEngine(model, batch_buckets(settings.max_batch_samples))


def _open_torchscript(bundle: Bundle, path: Path, device: Device, threads: int) -> Engine:
    try:
        from service.engine.torchscript import TorchScriptModel  # noqa: PLC0415 - imports torch
    except ImportError as error:
        raise BundleError(
            f"INFERENCE_VARIANT is set to TorchScript, but PyTorch cannot be imported ({error}): "
            "pip install torch, or serve the variant onnx"
        ) from error
    outputs = [spec.name for spec in bundle.manifest.outputs]
    return TorchScriptModel(bundle.read(path), path, outputs, device, threads)


def _open_on_cpu(bundle: Bundle, path: Path, settings: Settings) -> Engine:
    """Open an ONNX file; open a small one twice if large batches gain from two threads."""
    content, threads = bundle.read(path), choose_threads(settings)
    if settings.threads != "auto" or threads == 1 or len(content) > LARGEST_OPENED_TWICE:
        return OnnxModel(content, "cpu", threads, name=path)
    single = OnnxModel(content, "cpu", 1, name=path)
    golden_path = bundle.path("golden")
    golden_samples = len(Golden.load(golden_path, bundle.read(golden_path)))
    for size in SIZES_FOR_TWO_THREADS:
        # With fewer golden samples than this, no check would run in the session with two threads.
        if size > golden_samples:
            break
        if _shortest_s(single, _empty_batch(bundle.manifest, size)) >= WORTH_TWO_THREADS_S:
            return TwoThreadEngine(single, OnnxModel(content, "cpu", threads, name=path), size)
    return single


def choose_threads(settings: Settings) -> int:
    """Return the number of threads within an operator on the CPU; 0 means all cores.

    "auto" chooses two if each worker has two cores: the second core is idle while the event loop
    handles requests, and a batch of 64 takes .6 of the time (CNN quick, 2 cores). More than two
    were not measured. Short batches still run in one thread, see ``WORTH_TWO_THREADS_S``.
    """
    if settings.threads != "auto":
        return settings.threads
    return 2 if count_cores() >= 2 * settings.workers else 1


def count_cores() -> int:
    """Return how many cores this process may use, from its CPU affinity and its cgroup (v2)."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def required_tolerance(manifest: Manifest, device: Device, settings: Settings) -> Tolerance:
    """Return the tolerance between the reference and the engine that these settings choose.

    TorchScript has the tolerance of fp32 ONNX, because on another machine than the exporter's it
    also adds in another order.

    Raises:
        BundleError: The bundle has no such tolerance, or one looser than the project's table.
    """
    variant: str = settings.variant
    if variant.startswith("torchscript"):
        variant = "onnx"
    if variant == "onnx" and device == "cuda" and settings.tf32:
        variant = "onnx-tf32"
    return manifest.tolerance(device, variant)


def batch_buckets(largest: int) -> list[int]:
    """Return the batch sizes to warm up; on CUDA no other batch sizes run."""
    return sorted({*(2**i for i in range(largest.bit_length())), largest})


def warm_up(engine: Engine, manifest: Manifest, max_batch_samples: int) -> dict[int, float]:
    """Run a batch of each bucket's size, so that the first request waits for no initialization.

    Returns:
        The shortest time of each batch size in seconds.
    """
    return {
        size: _shortest_s(engine, _empty_batch(manifest, size))
        for size in batch_buckets(max_batch_samples)
    }


def _empty_batch(manifest: Manifest, size: int) -> Arrays:
    """Return a batch of zeros, by input name."""
    return {
        spec.name: np.zeros((size, *spec.largest_sample), spec.dtype) for spec in manifest.inputs
    }


def _shortest_s(engine: Engine, batch: Arrays) -> float:
    """Return the shortest time of ``WARM_UP_RUNS`` runs, in seconds."""
    timed_s = []
    for _ in range(WARM_UP_RUNS):
        start_s = time.perf_counter()
        engine(batch)
        timed_s.append(time.perf_counter() - start_s)
    return min(timed_s)


def count_to_check(engine: Engine) -> int:
    """Return the smallest number of golden samples that runs in the session for large batches."""
    return engine.smallest_for_two if isinstance(engine, TwoThreadEngine) else 1


def lower_priority(predict: Predict) -> Predict:
    """Wrap ``predict`` so that the thread that calls it gets the lowest CPU priority.

    On Linux each thread has its own priority, inherited by the threads that it starts. On other
    systems nothing changes.
    """
    lowered: set[int] = set()

    def run(inputs: Arrays) -> Arrays:
        thread = threading.get_native_id()
        if sys.platform == "linux" and thread not in lowered:
            os.setpriority(os.PRIO_PROCESS, thread, LOWEST_PRIORITY)
            lowered.add(thread)
        return predict(inputs)

    return run


class TwoThreadEngine:
    """Runs small batches in a session with one thread, larger ones in a session with two.

    Attributes:
        smallest_for_two: The smallest batch, in samples, that runs in two threads.
    """

    def __init__(self, single: OnnxModel, double: OnnxModel, smallest_for_two: int) -> None:
        """Use two sessions of the same model, one with one thread and one with two."""
        self.device, self.provider = single.device, single.provider
        self._single, self._double = single, double
        self.smallest_for_two = smallest_for_two

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run one batch."""
        count = len(next(iter(inputs.values())))
        return (self._double if count >= self.smallest_for_two else self._single)(inputs)


class BucketedEngine:
    """Pads batches with zeros to a few sizes, each with its own buffers and recorded graph.

    The outputs of the padding are dropped. On CUDA the other samples in a batch change an answer by
    no more than the tolerance; the choice of kernels depends only on the batch size.
    """

    def __init__(self, engine: Engine, sizes: Sequence[int]) -> None:
        """Wrap an engine; ``sizes`` are the batch sizes that it runs, ascending."""
        self.device, self.provider = engine.device, engine.provider
        self._engine, self._sizes = engine, sizes

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run one batch; split it if it has more samples than the largest size."""
        count, largest = len(next(iter(inputs.values()))), self._sizes[-1]
        if count > largest:
            return run_batched(self, inputs, largest)
        size = next(size for size in self._sizes if size >= count)
        if size == count:
            return self._engine(inputs)
        padded = {}
        for name, array in inputs.items():
            padded[name] = np.zeros((size, *array.shape[1:]), array.dtype)
            padded[name][:count] = array
        return {name: array[:count] for name, array in self._engine(padded).items()}
