"""What runs a bundle's model: which of its files, by which runtime, with which tricks."""

import importlib
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np

from export.bundle import Bundle
from export.manifest import BundleError, Manifest
from export.parity.metrics import Arrays
from export.parity.tolerances import Device, Tolerance
from export.session import OnnxModel
from service.settings import Settings


class Engine(Protocol):
    """A model on a device; calling it runs one batch, never two at a time.

    Attributes:
        device: Where it runs.
        provider: The runtime's own name for that.
    """

    device: Device
    provider: str

    def __call__(self, inputs: Arrays) -> Arrays:
        """Inputs by name, one batch of at least one sample, to outputs by name."""


def open_engine(bundle: Bundle, device: Device, settings: Settings) -> Engine:
    """Open the file of the variant that is set.

    Raises:
        BundleError: The bundle has no such variant, or its file cannot be run.
        DeviceUnavailableError: The device, or what it takes to run this variant there, is missing.
    """
    path = bundle.model_path(settings.variant)
    if settings.variant.startswith("torchscript"):
        return _torchscript().TorchScriptModel(
            path, [spec.name for spec in bundle.manifest.outputs], device, settings.threads
        )
    if device == "cpu":
        return OnnxModel(path, device, settings.threads)
    if settings.variant == "onnx-int8":
        raise BundleError("onnx-int8 is for the CPU: CUDA's provider would run it in fp32")
    model = OnnxModel(
        path, device, tf32=settings.tf32, cuda_graphs=settings.cuda_graphs, fixed_buffers=True
    )
    return Bucketed(model, batch_buckets(settings.max_batch_images))


def required_tolerance(manifest: Manifest, device: Device, settings: Settings) -> Tolerance:
    """What the engine of these settings may differ from the reference by.

    TorchScript is held to what fp32 ONNX is: on another machine than the exporter's its sums run
    in another order too.

    Raises:
        BundleError: The bundle carries no such tolerance, or one that is looser than the table's.
    """
    variant: str = settings.variant
    if variant.startswith("torchscript"):
        variant = "onnx"
    if variant == "onnx" and device == "cuda" and settings.tf32:
        variant = "onnx-tf32"
    return manifest.tolerance(device, variant)


def batch_buckets(largest: int) -> list[int]:
    """Batch sizes that are warmed up, and on CUDA the only ones that run: powers of two."""
    return sorted({*(2**i for i in range(largest.bit_length())), largest})


class Bucketed:
    """Fills batches up to a few sizes, each of which has its buffers and its recorded graph.

    What fills up is zeros, and their answers are thrown away; on CUDA no answer depends on its
    neighbours beyond the tolerance, and the batch's size alone chooses kernels.
    """

    def __init__(self, engine: Engine, sizes: Sequence[int]) -> None:
        """Wrap an engine.

        Args:
            engine: What runs.
            sizes: The batch sizes that it is asked, ascending.
        """
        self.device, self.provider = engine.device, engine.provider
        self._engine, self._sizes = engine, sizes

    def __call__(self, inputs: Arrays) -> Arrays:
        """One batch; of more samples than the largest size, in several."""
        count, largest = len(next(iter(inputs.values()))), self._sizes[-1]
        if count > largest:
            parts = [
                self({name: array[start : start + largest] for name, array in inputs.items()})
                for start in range(0, count, largest)
            ]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        size = next(size for size in self._sizes if size >= count)
        if size == count:
            return self._engine(inputs)
        filled = {}
        for name, array in inputs.items():
            filled[name] = np.zeros((size, *array.shape[1:]), array.dtype)
            filled[name][:count] = array
        return {name: array[:count] for name, array in self._engine(filled).items()}


class _TorchScript(Protocol):
    def TorchScriptModel(  # noqa: N802 - a class
        self, path: object, outputs: Sequence[str], device: Device, threads: int
    ) -> Engine: ...


def _torchscript() -> _TorchScript:
    try:
        # By name: nothing else of the service may bring torch in.
        return cast("_TorchScript", importlib.import_module("service.torchscript"))
    except ImportError as error:
        raise BundleError(
            f"DIGITS_VARIANT asks for TorchScript, which needs PyTorch, and it cannot be imported "
            f"({error}): pip install torch, or serve the variant onnx"
        ) from error
