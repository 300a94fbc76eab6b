"""Opens bundles and verifies each on the device that will serve it: ``load_verified_models``.

A model that does not answer its golden samples within its tolerance is not served. As a command,
``python -m service.models.loader`` verifies the configured bundles and exits. The service's parent
process runs this command, so that it never opens a model or a CUDA context itself. With a folder as
its argument it verifies only that version; ``service.rollout.verifier`` does so before a worker
opens it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from export.bundle.golden import Golden, GoldenResult, check_golden
from export.bundle.manifest import BundleError, Manifest, TensorSpec
from export.bundle.session import DeviceUnavailableError, OnnxModel, choose_device
from export.bundle.signature import open_signed
from export.bundle.store import Bundle, find_bundles
from export.bundle.tolerances import Device, Tolerance
from export.mnist.ood_detector import OodDetector
from service.adapters.adapter import choose_adapter
from service.adapters.tensors import TensorsAdapter
from service.engine.engines import Engine, choose_threads, open_engine, required_tolerance
from service.models.feature_maps import FeatureMapServer
from service.protocol.answers import Identity
from service.protocol.errors import NoFeatureMapsError
from service.settings import Settings, read_settings
from service.versions.state import DESIRED_NAME, RolloutError, find_rollouts


class VerificationError(RuntimeError):
    """A model does not answer its golden samples within its tolerance on this device."""


@dataclass(frozen=True)
class VerifiedModel:
    """An opened bundle whose model answered its golden samples correctly on its device.

    Attributes:
        identity: The fields in every JSON answer that name the model, its version and its device.
        tolerance: The largest allowed difference between its answers and the reference's.
        samples: The golden samples.
        golden: The result of the golden check at startup.
        adapter: Decodes and encodes requests of the model's task.
        feature_maps: Serves the outputs of the first layer, if the bundle has it as a file.
    """

    manifest: Manifest
    identity: Identity
    engine: Engine
    tolerance: Tolerance
    samples: Golden
    golden: GoldenResult
    adapter: TensorsAdapter
    feature_maps: FeatureMapServer | None

    @property
    def variant(self) -> str:
        """The variant of the model file; "onnx-tf32" if products are rounded to TF32."""
        return self.identity["variant"]

    def require_feature_maps(self) -> FeatureMapServer:
        """Return the server of the first layer.

        Raises:
            NoFeatureMapsError: The bundle does not contain it; gives the recorded reason.
        """
        if self.feature_maps is None:
            unknown = "its bundle contains none; rebuild the bundle"
            why = self.manifest.not_built.get("features", unknown)
            raise NoFeatureMapsError(f"{self.manifest.name} has no feature maps: {why}")
        return self.feature_maps


def load_verified_models(settings: Settings) -> list[VerifiedModel]:
    """Open every bundle in the configured folder and verify it on its device.

    For a model with versions, only the stable version is opened.

    Raises:
        BundleError: There is no bundle; one is damaged, not proven or not signed as configured;
            two have the same name; or none has the default model's name.
        DeviceUnavailableError: The configured device is not available.
        VerificationError: A model answered its golden samples wrongly.
        RolloutError: A file of a roll-out cannot be read.
    """
    folders = _find_stable(settings.bundles)
    if not folders:
        raise BundleError(
            f"no bundle in {settings.bundles.resolve()}: build some with `make bundles`, or set "
            "INFERENCE_BUNDLES to another folder"
        )
    verified: dict[str, VerifiedModel] = {}
    for folder in folders:
        if (folder.parent / DESIRED_NAME).exists():
            model = load_version(folder, settings, folder.parent.name)
        else:
            model = load_model(folder, settings)
        name = model.manifest.name
        if name in verified:
            raise BundleError(f"two bundles in {settings.bundles} have the name {name}")
        verified[name] = model
    if settings.default_model is not None and settings.default_model not in verified:
        raise BundleError(
            f"INFERENCE_DEFAULT_MODEL={settings.default_model}: no such bundle in "
            f"{settings.bundles}; there are: {', '.join(verified)}"
        )
    return list(verified.values())


def load_model(folder: Path, settings: Settings) -> VerifiedModel:
    """Open the bundle in a folder, and verify it on the configured device.

    Raises:
        BundleError: The bundle is missing, damaged, not proven or not signed as configured.
        DeviceUnavailableError: The configured device is not available.
        VerificationError: The model answered its golden samples wrongly.
    """
    return _load(open_signed(folder, settings.signing_key), settings)


def load_version(folder: Path, settings: Settings, name: str) -> VerifiedModel:
    """Open a version of a model, and verify it on the configured device.

    Args:
        folder: ``bundles/NAME/VERSION``.
        settings: The service's settings.
        name: The model's name.

    Raises:
        BundleError: The bundle is damaged or not proven, or has another name or version.
        DeviceUnavailableError: The configured device is not available.
        VerificationError: The version answered its golden samples wrongly.
    """
    bundle = open_signed(folder, settings.signing_key)
    found = bundle.manifest.name, bundle.manifest.version
    if found != (name, folder.name):
        raise BundleError(
            f"{folder} contains {found[0]} version {found[1]}, expected {name} version "
            f"{folder.name}; add versions with: python -m service.rollout stage"
        )
    return _load(bundle, settings)


def _find_stable(bundles: Path) -> list[Path]:
    """Return the folder of each model's bundle, ordered by the models' names."""
    folders = {folder.name: folder for folder in find_bundles(bundles)}
    for rollout in find_rollouts(bundles):
        if rollout.name in folders:
            raise BundleError(
                f"{rollout.folder} is a bundle but contains a {rollout.desired_path.name}; move "
                f"the bundle's files to {rollout.folder}/VERSION"
            )
        folders[rollout.name] = rollout.bundle(rollout.starting_state().stable)
    return [folders[name] for name in sorted(folders)]


def verify_golden(
    what: str, engine: Engine, golden: Golden, outputs: Sequence[TensorSpec], tolerance: Tolerance
) -> GoldenResult:
    """Check an engine's answers to golden samples; ``what`` is its name in errors.

    Raises:
        VerificationError: The engine cannot answer, or answers wrongly.
    """
    try:
        result = check_golden(golden, engine, outputs, tolerance)
    except Exception as error:  # runtimes raise many kinds of exceptions
        raise VerificationError(
            f"{what} cannot compute its golden samples on {engine.device}: {error}"
        ) from error
    if not result.passed:
        raise VerificationError(
            f"{what} fails its golden samples on {engine.device}: {'; '.join(result.failures)}"
        )
    return result


def _load(bundle: Bundle, settings: Settings) -> VerifiedModel:
    manifest, device = bundle.manifest, choose_device(settings.device)
    variant, tolerance = settings.variant, required_tolerance(manifest, device, settings)
    bundle.model_path(variant)  # raises with the reason if the bundle has no such variant
    verdicts = [verdict.passed for verdict in manifest.parity if verdict.variant == variant]
    if not verdicts or not all(verdicts):
        raise BundleError(f"{bundle.folder} has no passed parity verdict for its {variant} model")
    detector = None
    if manifest.guard is not None:
        path = bundle.path("guard")
        detector = OodDetector.load(path, bundle.read(path))
    adapter = choose_adapter(manifest, detector)
    engine = open_engine(bundle, device, settings)
    path = bundle.path("golden")
    golden = Golden.load(path, bundle.read(path))
    what = f"{manifest.name} ({variant})"
    result = verify_golden(what, engine, golden, manifest.outputs, tolerance)
    # TF32 is not a separate file but different arithmetic; the answers name it as the variant.
    served = tolerance.variant if variant.startswith("onnx") else variant
    identity = _identify(manifest, served, engine)
    feature_maps = _load_feature_maps(bundle, device, settings)
    return VerifiedModel(
        manifest, identity, engine, tolerance, golden, result, adapter, feature_maps
    )


def _identify(manifest: Manifest, variant: str, engine: Engine) -> Identity:
    return {
        "model": manifest.name,
        "version": manifest.version,
        "variant": variant,
        "device": engine.device,
        "provider": engine.provider,
    }


def _load_feature_maps(
    bundle: Bundle, device: Device, settings: Settings
) -> FeatureMapServer | None:
    """Open and verify the first layer's fp32 file, whichever variant serves inference."""
    maps = bundle.manifest.features
    if maps is None:
        return None
    if not maps.verdict.passed:
        raise BundleError(f"{bundle.folder} has no passed parity verdict for its feature maps")
    tf32 = settings.tf32 and device == "cuda"
    variant = "onnx-tf32" if tf32 else "onnx"
    path = bundle.path("features")
    engine = OnnxModel(bundle.read(path), device, choose_threads(settings), name=path, tf32=tf32)
    path = bundle.path("features-golden")
    verify_golden(
        f"{bundle.manifest.name} (feature maps)",
        engine,
        replace(Golden.load(path, bundle.read(path)), one_scale=True),
        [maps.output],
        bundle.manifest.tolerance(device, variant),
    )
    identity = _identify(bundle.manifest, variant, engine)
    return FeatureMapServer(engine, maps, identity, settings.timeout_s)


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """Verify the configured bundles, or the named version; print errors, return the status."""
    try:
        if arguments:
            folder = Path(arguments[0])
            load_version(folder, read_settings(), folder.parent.name)
        else:
            load_verified_models(read_settings())
    except (BundleError, DeviceUnavailableError, VerificationError, RolloutError) as error:
        sys.stdout.write(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
