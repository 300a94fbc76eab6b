"""The optional engine for TorchScript: the only module of the service that imports torch."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from export.bundle.manifest import BundleError
from export.bundle.metrics import Arrays
from export.bundle.tolerances import Device

PROVIDERS: dict[Device, str] = {"cpu": "TorchScript-CPU", "cuda": "TorchScript-CUDA"}


class TorchScriptModel:
    """A TorchScript file opened on one device; calling it runs a batch.

    Attributes:
        device: The device.
        provider: The name reported in place of ONNX Runtime's provider.
    """

    def __init__(
        self, content: bytes, path: Path, outputs: Sequence[str], device: Device, threads: int
    ) -> None:
        """Load the module, traced or frozen, from the file's content.

        Args:
            content: The file's bytes.
            path: The file, for error messages.
            outputs: Names of the returned tensors, in order.
            device: The device.
            threads: Threads within an operator on the CPU, for the whole process; 0: PyTorch's
                default.

        Raises:
            BundleError: PyTorch cannot load the file on the device.
        """
        try:
            with warnings.catch_warnings():  # the export warned of TorchScript's deprecation
                warnings.simplefilter("ignore", FutureWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                self._module = torch.jit.load(io.BytesIO(content), map_location=device)
        except Exception as error:  # PyTorch's loaders raise many kinds of exceptions
            raise BundleError(f"{path} cannot be loaded as a TorchScript model: {error}") from error
        if threads:
            torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self.device, self.provider = device, PROVIDERS[device]
        self._outputs = list(outputs)

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run one batch: inputs by name, in the order of the module's arguments, to outputs."""
        # Unoptimized: the optimizing executor compiles for seconds for each new batch size.
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            # Copied: PyTorch warns of read-only arrays, such as those over a request's bytes.
            tensors = [torch.tensor(array, device=self.device) for array in inputs.values()]
            answers = self._module(*tensors)
        answers = answers if isinstance(answers, tuple) else (answers,)
        return {
            name: answer.cpu().numpy() for name, answer in zip(self._outputs, answers, strict=True)
        }
