"""Is a bundle still what its manifest says, and does it compute that here, on this device?

The quick check asks the golden samples through the torch-free rooms alone. The full check
rebuilds the module from the bundle's own weights and runs the whole gate.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from export.bundle.golden import Golden, GoldenResult, check_golden
from export.bundle.session import OnnxModel
from export.bundle.store import Bundle
from export.bundle.tolerances import Device
from export.parity.judge import Judgement, judge
from export.parity.schema import ParityFigures

if TYPE_CHECKING:
    from export.parity.run import ParityRun
    from training.data import Dataset


def quick_check(bundle: Bundle, device: Device, variant: str = "onnx") -> GoldenResult:
    """Run an ONNX file on the device and compare with the golden samples; needs no torch.

    The first layer's file, if there is one, is asked its own.

    Raises:
        BundleError: The bundle has no such variant.
        DeviceUnavailableError: The device is not there.
    """
    model = OnnxModel(bundle.model_path(variant), device)
    golden = Golden.load(bundle.path("golden"))
    tolerance = bundle.manifest.tolerance(device, variant)
    result = check_golden(golden, model, bundle.manifest.outputs, tolerance)
    features = bundle.manifest.features
    if features is None:
        return result
    shown = OnnxModel(bundle.path("features"), device)
    golden = Golden.load(bundle.path("features-golden"))
    asked = check_golden(golden, shown, [features.output], bundle.manifest.tolerance(device))
    failures = [f"feature maps, {failure}" for failure in asked.failures]
    return result.model_copy(update={"failures": (*result.failures, *failures)})


def full_check(
    bundle: Bundle,
    device: Device,
    proof: "ParityRun",
    *,
    tf32: bool = False,
    cuda_graphs: bool = False,
) -> tuple[ParityFigures, Judgement]:
    """Run the gate on a bundle: every variant that the device can run, against its own weights.

    Args:
        bundle: An opened bundle.
        device: Where the exported files run.
        proof: From ``rebuild``.
        tf32: See ``ParityRun.measure``.
        cuda_graphs: See there.

    Raises:
        BundleError: The bundle allows itself more than the table, or a file is no model.
        DeviceUnavailableError: The device is not there.
    """
    manifest = bundle.manifest
    tolerances = tuple(manifest.tolerance(t.device, t.variant) for t in manifest.tolerances)
    figures = proof.measure(
        bundle.variants,
        device,
        tolerances,
        features=bundle.path("features") if manifest.features else None,
        tf32=tf32,
        cuda_graphs=cuda_graphs,
    )
    return figures, judge(figures, figures.tolerances)


def rebuild(bundle: Bundle, dataset: "Dataset | None", samples: Path | None) -> "ParityRun":
    """The checkpoint's module, from the weights in the bundle, ready to be compared with.

    Args:
        bundle: An opened bundle.
        dataset: The images, for a bundle of digits.
        samples: The file of samples, for a bundle of any other module.
    """
    from export.mnist.checkpoint import from_bundle  # noqa: PLC0415
    from export.parity.run import ParityRun  # noqa: PLC0415 - torch only for the full check

    return ParityRun.of(from_bundle(bundle, dataset, samples))
