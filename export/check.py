"""Is a bundle still what its manifest says, and does it compute that here, on this device?

The quick check asks the golden samples through the torch-free rooms alone. The full check
rebuilds the module from the bundle's own weights and runs the whole gate.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.bundle import Bundle, BundleError, Format
from export.golden import Golden, GoldenResult, Predict, check_golden
from export.session import Device, OnnxModel

if TYPE_CHECKING:
    from export.parity.gate import ParityReport
    from export.servable import ServableModel
    from training.data import Dataset


def quick_check(bundle: Bundle, device: Device) -> GoldenResult:
    """Run the ONNX file on the device and compare with the golden samples; needs no torch.

    Raises:
        DeviceUnavailableError: The device is not there.
    """
    model = OnnxModel(bundle.model_path("onnx"), device)
    golden = Golden.load(bundle.path("golden"))
    return check_golden(golden, model, bundle.manifest.tolerance(device))


def full_check(bundle: Bundle, device: Device, dataset: "Dataset") -> "ParityReport":
    """Run the gate on a bundle: every format that the device can run, against its own weights.

    Args:
        bundle: An opened bundle.
        device: Where the exported files run.
        dataset: Its test images are what the gate asks.

    Raises:
        DeviceUnavailableError: The device is not there.
    """
    from export.parity.gate import run_gate  # noqa: PLC0415 - torch only for the full check
    from export.parity.reference import make_reference  # noqa: PLC0415
    from export.parity.weights import check_weights  # noqa: PLC0415

    candidates = open_candidates(bundle, device)  # first: it refuses files that are no models
    model = rebuild(bundle)
    weights = check_weights(bundle.model_path("onnx"), model)
    reference = make_reference(model, dataset.test.images, dataset.test_name)
    not_checked = {}
    if "pt2" not in candidates:
        not_checked["pt2"] = f"the program was exported for the CPU and cannot run on {device}"
    return run_gate(candidates, reference, device, dataset.sha256, weights, not_checked)


def rebuild(bundle: Bundle) -> "ServableModel":
    """The checkpoint's module, from the weights in the bundle.

    Raises:
        CheckpointError: The weights do not fit the architecture.
    """
    from export.servable import ServableModel  # noqa: PLC0415 - torch only for the full check
    from training.checkpoint import load_weights  # noqa: PLC0415
    from training.config import TrainConfig  # noqa: PLC0415
    from training.models import build_model  # noqa: PLC0415

    config = TrainConfig.model_validate(bundle.manifest.training.config)
    module = build_model(config.model, config.architecture)
    weights = next(entry for entry in bundle.manifest.files if entry.role == "weights")
    load_weights(module, bundle.folder / weights.path, weights.sha256)
    return ServableModel(module)


def open_candidates(bundle: Bundle, device: Device) -> dict[Format, Predict]:
    """The bundle's formats as functions that run on the device."""
    import torch  # noqa: PLC0415 - torch only for the full check

    from export.parity.reference import eager_predict  # noqa: PLC0415

    candidates: dict[Format, Predict] = {"onnx": OnnxModel(bundle.model_path("onnx"), device)}
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    script_path, program_path = bundle.model_path("torchscript"), bundle.model_path("pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript's deprecation
        warnings.simplefilter("ignore", DeprecationWarning)
        script = _opened(script_path, lambda: torch.jit.load(script_path, map_location=device))
    candidates["torchscript"] = eager_predict(lambda images_NHW: script(images_NHW.to(device)))
    if device == "cpu":
        program = _opened(program_path, lambda: torch.export.load(program_path).module())
        candidates["pt2"] = eager_predict(program)
    return candidates


def _opened(path: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # PyTorch's loaders raise whatever they stumble on
        raise BundleError(f"{path} is no model that can be run: {error}") from error
