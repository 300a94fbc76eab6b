"""Open an ONNX file on a device, in the same way for proving and for serving.

An opened file never falls back to another device. This module does not import torch.
"""

import ctypes
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

# Read when the library is loaded: without it, ONNX Runtime 1.31 sends telemetry to its vendor.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    import onnxruntime as ort
except ImportError as error:
    raise ImportError(
        f"ONNX Runtime cannot be loaded ({error}): pip install 'onnxruntime-gpu[cuda,cudnn]', or "
        "onnxruntime on a machine without a GPU"
    ) from error

from export.bundle.manifest import BundleError
from export.bundle.metrics import Arrays
from export.bundle.tolerances import Device

# Processors with these flags add int8 products in 32 bits: AVX-512's, or AVX's without AVX-512.
VNNI = {"avx512bw": "avx512_vnni", "avx2": "avx_vnni"}
CPU_INFO = Path("/proc/cpuinfo")

PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class DeviceUnavailableError(RuntimeError):
    """The requested device, or a library needed to use it, is not available."""


def cuda_device_count() -> int:
    """The number of CUDA devices that the driver reports; 0 without a driver.

    This queries the driver itself: ``get_available_providers`` lists CUDA for every build that
    supports it, even without a GPU.
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
    """The device to use: ``auto`` is CUDA if the driver reports a device, else the CPU.

    Raises:
        DeviceUnavailableError: CUDA was requested and there is no device.
    """
    if asked == "cpu":
        return "cpu"
    if cuda_device_count() > 0:
        return "cuda"
    if asked == "cuda":
        raise DeviceUnavailableError(
            "device cuda was requested, but the NVIDIA driver reports no CUDA device; "
            "use cpu or auto, or a machine with a CUDA device"
        )
    return "cpu"


def saturates_int8(cpu_info: str) -> bool:
    """Whether ONNX Runtime's default int8 kernels clip sums of two products to 16 bits here.

    ONNX Runtime prefers its AVX-512 kernels to the AVX2 ones, and has each with and without VNNI
    (mlas/lib/platform.cpp). Processors that are not x86 do not clip.

    Args:
        cpu_info: The content of /proc/cpuinfo.
    """
    flags = set(cpu_info.partition("flags")[2].partition("\n")[0].split())
    exact = next((vnni for avx, vnni in VNNI.items() if avx in flags), "none")
    return "sse2" in flags and exact not in flags


def _exact_int8_setting() -> str:
    """Return "1" to run int8 weights as u8: the same products by slower kernels that never clip."""
    try:
        return str(int(saturates_int8(CPU_INFO.read_text())))
    except OSError:  # not Linux: 1 is correct on every processor
        return "1"


class OnnxModel:
    """An ONNX file opened on one device; calling it runs a batch.

    Attributes:
        device: The device that it runs on.
        provider: ONNX Runtime's name for the device, as the session itself reports it.
        metadata: The file's own metadata.
    """

    def __init__(
        self,
        source: Path | bytes,
        device: Device,
        intra_op_threads: int = 1,
        *,
        name: Path | None = None,
        tf32: bool = False,
        cuda_graphs: bool = False,
        fixed_buffers: bool = False,
    ) -> None:
        """Open a session.

        Args:
            source: The ONNX file, or its content.
            device: The device to run on.
            intra_op_threads: Threads within an operator on the CPU; 0 lets ONNX Runtime choose.
                One image of these models takes tens of microseconds, so waking a second thread
                would not pay off.
            name: The file's name in error messages, if its content is given.
            tf32: On CUDA, let matrix products round their inputs to 10 bits of mantissa. False
                turns TF32 off for the whole process, permanently: the libraries read this once.
            cuda_graphs: On CUDA, record the kernels of each batch size once and replay them.
            fixed_buffers: Keep buffers on the device for the inputs and outputs of each batch size;
                for callers that use few sizes. CUDA graphs imply it.

        Raises:
            BundleError: ONNX Runtime cannot run the file.
            DeviceUnavailableError: The provider cannot be loaded, or the session does not use it.
        """
        options = _options(intra_op_threads)
        provider, settings = PROVIDERS[device], {}
        if device == "cuda":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            settings = _cuda_settings(tf32=tf32, cuda_graphs=cuda_graphs)
        try:
            self._session = ort.InferenceSession(
                source, sess_options=options, providers=[(provider, settings)]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            path = source if isinstance(source, Path) else name or Path("the model")
            if device == "cpu":
                raise BundleError(f"{path} is not a model that can be run: {error}") from error
            raise DeviceUnavailableError(f"{provider} cannot run {path}: {error}") from error
        self.device = device
        self.provider: str = self._session.get_providers()[0]
        if self.provider != provider:
            raise DeviceUnavailableError(
                f"{provider} was requested, but ONNX Runtime uses {self.provider}: the provider's "
                "libraries cannot be loaded (pip install 'onnxruntime-gpu[cuda,cudnn]')"
            )
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self._outputs: list[str] = [output.name for output in self._session.get_outputs()]
        self._cuda_graphs = cuda_graphs and device == "cuda"
        self._fixed_buffers = fixed_buffers or self._cuda_graphs
        self._bound: dict[tuple[int, ...], _Bound] = {}

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run one batch of at least one sample: inputs by name to outputs by name."""
        inputs = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        if self._fixed_buffers:
            return self._run_bound(inputs)
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))

    def _run_bound(self, inputs: Arrays) -> Arrays:
        """Run in the buffers for these shapes; the first run with new shapes creates them."""
        shapes = tuple(size for array in inputs.values() for size in array.shape)
        if shapes not in self._bound:
            unrecorded = ort.RunOptions()
            unrecorded.add_run_config_entry("gpu_graph_id", "-1")
            answers = self._session.run(self._outputs, inputs, unrecorded)
            outputs = dict(zip(self._outputs, answers, strict=True))
            graph_id = len(self._bound) + 1 if self._cuda_graphs else None
            self._bound[shapes] = _Bound(self._session, self.device, inputs, outputs, graph_id)
        return self._bound[shapes].run(self._session, inputs)


def _options(intra_op_threads: int) -> Any:
    """The options of every session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    # Threads that spin after a batch take the cores from other processes.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.x64quantprecision", _exact_int8_setting())
    return options


def _cuda_settings(*, tf32: bool, cuda_graphs: bool) -> dict[str, str]:
    """Load the CUDA provider's libraries, set up the process, and return the settings."""
    ort.preload_dlls()  # the CUDA and cuDNN libraries from Python packages
    if not tf32:
        # cuDNN's own switch: use_tf32=0 is not documented to cover every convolution.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    elif os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
        raise DeviceUnavailableError(
            "TF32 was requested, but NVIDIA_TF32_OVERRIDE=0 turns it off in this process"
        )
    return {"use_tf32": str(int(tf32)), "enable_cuda_graph": str(int(cuda_graphs))}


class _Bound:
    """Fixed buffers on the device for one set of shapes, and the CUDA graph that uses them."""

    def __init__(
        self, session: Any, device: Device, inputs: Arrays, outputs: Arrays, graph_id: int | None
    ) -> None:
        self._inputs, self._outputs = (
            {
                name: ort.OrtValue.ortvalue_from_numpy(a.copy(), device, 0)
                for name, a in part.items()
            }
            for part in (inputs, outputs)
        )
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._options = ort.RunOptions()
        if graph_id is not None:
            self._options.add_run_config_entry("gpu_graph_id", str(graph_id))

    def run(self, session: Any, inputs: Arrays) -> Arrays:
        for name, array in inputs.items():
            self._inputs[name].update_inplace(array)
        session.run_with_iobinding(self._binding, self._options)
        # On the CPU the array is the buffer itself, which the next batch overwrites.
        return {name: np.array(value.numpy()) for name, value in self._outputs.items()}
