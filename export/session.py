"""Opening an ONNX file on a device: the one way in, for proving and for serving. Knows no torch.

What was proven and what is served are opened alike, and neither ever falls back to another device.
"""

import ctypes
import os
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort

from export.bundle import BundleError
from export.parity.metrics import Array

Device = Literal["cpu", "cuda"]
PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class DeviceUnavailableError(RuntimeError):
    """The device asked for, or what it takes to use it, is not there."""


def cuda_device_count() -> int:
    """How many CUDA devices the driver knows; 0 without a driver.

    Asks the driver itself: ``get_available_providers`` lists CUDA for every build that could use
    it, GPU or none.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def choose_device(asked: Literal["auto", "cpu", "cuda"]) -> Device:
    """The device to use: ``auto`` is CUDA where the driver knows a device, else the CPU.

    Raises:
        DeviceUnavailableError: CUDA was asked for and there is no device.
    """
    if asked == "cpu":
        return "cpu"
    if cuda_device_count() > 0:
        return "cuda"
    if asked == "cuda":
        raise DeviceUnavailableError(
            "device cuda was asked for, but the NVIDIA driver reports no CUDA device; "
            "ask for cpu or auto, or run on a machine with one"
        )
    return "cpu"


class OnnxModel:
    """An ONNX file opened on one device; calling it runs a batch.

    Attributes:
        device: Where it runs.
        provider: ONNX Runtime's name for that, as the session itself reports it.
    """

    def __init__(self, path: Path, device: Device, intra_op_threads: int = 1) -> None:
        """Open a session.

        Args:
            path: The ONNX file.
            device: Where to run; TF32 is off on CUDA, so that float32 means float32.
            intra_op_threads: Threads within an operator on the CPU; 0 lets ONNX Runtime choose.
                One image of these models takes tens of microseconds, less than waking a second
                thread is worth.

        Raises:
            BundleError: The file is no model that ONNX Runtime can run.
            DeviceUnavailableError: The provider cannot be loaded, or the session does not use it.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = intra_op_threads
        options.inter_op_num_threads = 1
        provider = PROVIDERS[device]
        if device == "cuda":
            ort.preload_dlls()  # the CUDA and cuDNN libraries that came as packages
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            # cuDNN's own switch: use_tf32=0 alone is not documented to reach every convolution.
            os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
        settings = {"use_tf32": "0"} if device == "cuda" else {}
        try:
            self._session = ort.InferenceSession(
                path, sess_options=options, providers=[(provider, settings)]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            if device == "cpu":
                raise BundleError(f"{path} is no model that can be run: {error}") from error
            raise DeviceUnavailableError(f"{provider} cannot run {path}: {error}") from error
        self.device = device
        self.provider: str = self._session.get_providers()[0]
        if self.provider != provider:
            raise DeviceUnavailableError(
                f"{provider} was asked for, ONNX Runtime came up with {self.provider}: its "
                "libraries cannot be loaded (pip install 'onnxruntime-gpu[cuda,cudnn]')"
            )
        self._input: str = self._session.get_inputs()[0].name
        self._outputs: list[str] = [output.name for output in self._session.get_outputs()]

    def __call__(self, images_NHW: Array) -> tuple[Array, Array]:
        """uint8 [N, 28, 28], N >= 1, to (logits, probabilities), float32 [N, K] each."""
        images = np.ascontiguousarray(images_NHW)
        logits, probabilities = self._session.run(self._outputs, {self._input: images})
        return logits, probabilities
