"""The optional engine for TorchScript; the only room of the service that may name torch."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from export.manifest import BundleError
from export.parity.metrics import Arrays
from export.parity.tolerances import Device

PROVIDERS: dict[Device, str] = {"cpu": "TorchScript-CPU", "cuda": "TorchScript-CUDA"}


class TorchScriptModel:
    """A TorchScript file opened on one device; calling it runs a batch.

    Attributes:
        device: Where it runs.
        provider: What stands where ONNX Runtime would name its provider.
    """

    def __init__(self, path: Path, outputs: Sequence[str], device: Device, threads: int) -> None:
        """Load the file.

        Args:
            path: The file, traced or frozen.
            outputs: Names of what it returns, in order.
            device: Where to run.
            threads: Within an operator on the CPU, in this whole process; 0 lets PyTorch choose.

        Raises:
            BundleError: PyTorch cannot load it there.
        """
        try:
            with warnings.catch_warnings():  # TorchScript's deprecation, which its export told of
                warnings.simplefilter("ignore", FutureWarning)
                warnings.simplefilter("ignore", DeprecationWarning)
                self._module = torch.jit.load(path, map_location=device)
        except Exception as error:  # PyTorch's loaders raise whatever they stumble on
            raise BundleError(f"{path} is no model that can be run: {error}") from error
        if threads:
            torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self.device, self.provider = device, PROVIDERS[device]
        self._outputs = list(outputs)

    def __call__(self, inputs: Arrays) -> Arrays:
        """Inputs by name, in the order of the module's arguments, to outputs by name."""
        # Unoptimised: the executor would compile anew, for seconds, for sizes it has not yet seen.
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            # Copied: arrays over a request's bytes are read-only, which PyTorch warns of.
            tensors = [torch.tensor(array, device=self.device) for array in inputs.values()]
            answers = self._module(*tensors)
        answers = answers if isinstance(answers, tuple) else (answers,)
        return {
            name: answer.cpu().numpy() for name, answer in zip(self._outputs, answers, strict=True)
        }
