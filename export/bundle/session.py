"""Opening an ONNX file on a device: the one way in, for proving and for serving. Knows no torch.

What was proven and what is served are opened alike, and neither ever falls back to another device.
"""

import ctypes
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

# Read when the library is loaded: without it ONNX Runtime 1.31 reports its use to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    import onnxruntime as ort
except ImportError as error:
    raise ImportError(
        f"ONNX Runtime cannot be loaded ({error}): pip install 'onnxruntime-gpu[cuda,cudnn]', or "
        "onnxruntime where there is no GPU"
    ) from error

from export.bundle.manifest import BundleError
from export.bundle.metrics import Arrays
from export.bundle.tolerances import Device

# Processors with these add int8 products in 32 bits: AVX-512's own, or AVX's where that is not.
VNNI = {"avx512bw": "avx512_vnni", "avx2": "avx_vnni"}
CPU_INFO = Path("/proc/cpuinfo")

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


def saturates_int8(cpu_info: str) -> bool:
    """Would ONNX Runtime's usual int8 kernels clip sums of two products to 16 bits here?

    Its kernels for AVX-512 come before those for AVX2, and each has one with VNNI and one without
    (mlas/lib/platform.cpp). Processors that are not x86 do not clip.

    Args:
        cpu_info: The content of /proc/cpuinfo.
    """
    flags = set(cpu_info.partition("flags")[2].partition("\n")[0].split())
    exact = next((vnni for avx, vnni in VNNI.items() if avx in flags), "none")
    return "sse2" in flags and exact not in flags


def _exact_int8_setting() -> str:
    """1 lets int8 weights run as u8: the same products by slower kernels, which do not clip."""
    try:
        return str(int(saturates_int8(CPU_INFO.read_text())))
    except OSError:  # not Linux: whatever the processor is, this is right
        return "1"


class OnnxModel:
    """An ONNX file opened on one device; calling it runs a batch.

    Attributes:
        device: Where it runs.
        provider: ONNX Runtime's name for that, as the session itself reports it.
        metadata: What the file says of itself.
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
            device: Where to run.
            intra_op_threads: Threads within an operator on the CPU; 0 lets ONNX Runtime choose.
                One image of these models takes tens of microseconds, less than waking a second
                thread is worth.
            name: The file in error messages, if its content is given.
            tf32: On CUDA, let matrix products round their inputs to 10 bits of mantissa. Off, it is
                off for the whole process and for good: the libraries read it once.
            cuda_graphs: On CUDA, record the kernels of each batch size once and replay them.
            fixed_buffers: Bind inputs and outputs of each batch size to memory on the device that
                is kept; for callers that ask few sizes. CUDA graphs imply it.

        Raises:
            BundleError: The file is no model that ONNX Runtime can run.
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
                raise BundleError(f"{path} is no model that can be run: {error}") from error
            raise DeviceUnavailableError(f"{provider} cannot run {path}: {error}") from error
        self.device = device
        self.provider: str = self._session.get_providers()[0]
        if self.provider != provider:
            raise DeviceUnavailableError(
                f"{provider} was asked for, ONNX Runtime came up with {self.provider}: its "
                "libraries cannot be loaded (pip install 'onnxruntime-gpu[cuda,cudnn]')"
            )
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self._outputs: list[str] = [output.name for output in self._session.get_outputs()]
        self._cuda_graphs = cuda_graphs and device == "cuda"
        self._fixed_buffers = fixed_buffers or self._cuda_graphs
        self._bound: dict[tuple[int, ...], _Bound] = {}

    def __call__(self, inputs: Arrays) -> Arrays:
        """Inputs by name, one batch of at least one sample, to outputs by name."""
        inputs = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        if self._fixed_buffers:
            return self._run_bound(inputs)
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))

    def _run_bound(self, inputs: Arrays) -> Arrays:
        """Run in the buffers of these shapes; the first run with new shapes makes them."""
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
    """What every session is opened with."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    # Threads that spin after a batch take the cores from whatever else runs here.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.x64quantprecision", _exact_int8_setting())
    return options


def _cuda_settings(*, tf32: bool, cuda_graphs: bool) -> dict[str, str]:
    """The provider's settings, its libraries loaded and the process set up for them."""
    ort.preload_dlls()  # the CUDA and cuDNN libraries that came as packages
    if not tf32:
        # cuDNN's own switch: use_tf32=0 alone is not documented to reach every convolution.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    elif os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
        raise DeviceUnavailableError(
            "TF32 was asked for, but NVIDIA_TF32_OVERRIDE=0 turns it off in this process"
        )
    return {"use_tf32": str(int(tf32)), "enable_cuda_graph": str(int(cuda_graphs))}


class _Bound:
    """Fixed buffers on the device for one set of shapes, and the graph recorded over them."""

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
        # On the CPU an array is the buffer itself, which the next batch writes to.
        return {name: np.array(value.numpy()) for name, value in self._outputs.items()}
