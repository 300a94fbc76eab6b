"""Check that a bundle is still what its manifest states, and computes the same on this device.

The quick check runs the golden samples and does not import torch. The full check rebuilds the
module from the bundle's own weights and runs the whole gate. Neither calls code that the bundle
names: the caller names the module (``Origin``).
"""

import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.bundle.golden import Golden, GoldenResult, check_golden
from export.bundle.manifest import BundleError, FactorySummary, SubjectError
from export.bundle.session import OnnxModel
from export.bundle.store import Bundle
from export.bundle.tolerances import Device
from export.parity.judge import Judgement, judge
from export.parity.schema import ParityFigures

if TYPE_CHECKING:
    from export.parity.candidates import Setting, Workers
    from export.parity.run import ParityRun
    from export.progress import Progress

UNSAFE = (
    "opening such a file can run code that it contains, and it is not, byte for byte, what the "
    "module exports to on this machine; give --trust if you trust the author of the bundle"
)


def quick_check(bundle: Bundle, device: Device, variant: str = "onnx") -> GoldenResult:
    """Run an ONNX file on the device and compare with the golden samples; needs no torch.

    The first layer's file, if there is one, is compared with golden samples of its own.

    Raises:
        BundleError: The bundle has no such variant.
        DeviceUnavailableError: The device is not available.
    """
    model = OnnxModel(bundle.model_path(variant), device)
    golden = Golden.load(bundle.path("golden"))
    tolerance = bundle.manifest.tolerance(device, variant)
    result = check_golden(golden, model, bundle.manifest.outputs, tolerance)
    features = bundle.manifest.features
    if features is None:
        return result
    shown = OnnxModel(bundle.path("features"), device)
    golden = replace(Golden.load(bundle.path("features-golden")), one_scale=True)
    asked = check_golden(golden, shown, [features.output], bundle.manifest.tolerance(device))
    failures = [f"feature maps, {failure}" for failure in asked.failures]
    return result.model_copy(update={"failures": (*result.failures, *failures)})


@dataclass(frozen=True)
class Origin:
    """The caller's description of a bundle's origin: a manifest never decides which code runs.

    Attributes:
        data_dir: The four IDX files, for a bundle of a checkpoint.
        samples: The sample files, for a bundle of any other module.
        model: "package.module:function"; it returns the module that the bundle was built from.
        arguments: The arguments of that function.
        trusted: The caller trusts the bundle's author: files that can run code may be opened.
    """

    data_dir: Path | None = None
    samples: Sequence[Path] | None = None
    model: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    trusted: bool = False


def full_check(
    bundle: Bundle,
    proof: "ParityRun",
    setting: "Setting",
    *,
    trusted: bool = False,
    progress: "Progress | None" = None,
) -> tuple[ParityFigures, Judgement]:
    """Run the gate on every variant that the device can run, against the bundle's own weights.

    Args:
        bundle: An opened bundle.
        proof: From ``rebuild``.
        setting: Where and how the files run.
        trusted: Open files that can run code without checking their content.
        progress: Shows each step.

    Raises:
        BundleError: The bundle's tolerances are looser than the table, or a file is not a model.
        DeviceUnavailableError: The device is not available.
    """
    manifest = bundle.manifest
    tolerances = tuple(manifest.tolerance(t.device, t.variant) for t in manifest.tolerances)
    from export.parity.candidates import Workers  # noqa: PLC0415 - multiprocessing

    with Workers() as workers:
        unsafe = {} if trusted else unsafe_variants(bundle, proof, workers)
        figures = proof.measure(
            {variant: path for variant, path in bundle.variants.items() if variant not in unsafe},
            setting,
            tolerances,
            workers=workers,
            features=bundle.path("features") if manifest.features else None,
            progress=progress,
        )
    figures = figures.model_copy(update={"not_checked": figures.not_checked | unsafe})
    return figures, judge(figures, figures.tolerances)


def unsafe_variants(bundle: Bundle, proof: "ParityRun", workers: "Workers") -> dict[str, str]:
    """The variants whose files could run code when they are opened, each with the reason.

    Programs (.pt2) and TorchScript files can. They are safe if exporting the module again gives the
    same bytes.
    """
    from export.formats import write_models  # noqa: PLC0415 - torch only for the full check
    from export.progress import Progress  # noqa: PLC0415

    asked = {v: path for v, path in bundle.variants.items() if not v.startswith("onnx")}
    if not asked:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        write_models(proof, Path(folder), bundle.manifest.version, asked, workers, Progress())
        made = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return {v: UNSAFE for v, path in asked.items() if bundle.read(path) != made.get(path.name)}


def rebuild(bundle: Bundle, origin: Origin) -> "ParityRun":
    """The module that a bundle was built from, filled with the bundle's weights, as a reference.

    Raises:
        BundleError: The weights are not those of the bundle, or its manifest names no source.
        DataError: The images or the samples are missing, or are not those of the bundle.
        SubjectError: The caller names no module, or one that does not fit the bundle.
    """
    from export.mnist.checkpoint import from_bundle  # noqa: PLC0415
    from export.model.factory import from_factory  # noqa: PLC0415
    from export.model.saved_program import from_program  # noqa: PLC0415
    from export.parity.run import ParityRun  # noqa: PLC0415 - torch only for the full check
    from training.data import DataError, load_dataset  # noqa: PLC0415

    manifest = bundle.manifest
    if manifest.training is not None:
        return ParityRun.of(from_bundle(bundle, load_dataset(origin.data_dir)))
    if manifest.factory is None:
        raise BundleError(
            f"the manifest of {bundle.folder} names neither a checkpoint nor a factory"
        )
    if origin.model is None and not origin.trusted:
        raise SubjectError(_module_missing(manifest.factory))
    if origin.samples is None:
        raise DataError(
            f"the bundle of {manifest.factory.factory} was proven with {manifest.proof.name}: give "
            "these samples with --inputs"
        )
    if origin.model is None:
        proof = ParityRun.of(*from_program(bundle, origin.samples))
    else:
        subject = from_factory(
            origin.model,
            bundle.path("weights"),
            origin.samples,
            arguments=origin.arguments,
            declared=manifest.inputs,
            output_names=[spec.name for spec in manifest.outputs],
            logits=[spec.name for spec in manifest.outputs if spec.kind == "logits"],
        )
        proof = ParityRun.of(subject)
    found, expected = proof.subject.samples.sha256, manifest.proof.sha256
    if found != expected:
        raise DataError(
            f"{proof.subject.samples.name} is not the file that the bundle was proven with: "
            f"SHA-256 {found[:12]}, expected {expected[:12]}"
        )
    return proof


def _module_missing(factory: FactorySummary) -> str:
    arguments = json.dumps(factory.arguments)
    return (
        "a bundle does not decide which code runs. The manifest states that it was built with\n"
        f"  --model {factory.factory} --arguments {shlex.quote(arguments)}\n"
        "Give these options if you trust the module of this name on this machine. Or give --trust "
        "if you trust the author of the bundle: its model.pt2 is then used as the module"
    )
