"""Bundles opened, put on a device and asked their golden samples: what may be served."""

from dataclasses import dataclass

from export.bundle import Bundle, find_bundles
from export.golden import Golden, GoldenResult
from export.guard import Guard
from export.manifest import BundleError, Manifest
from export.parity.tolerances import Device, Tolerance
from export.session import choose_device
from service.engines import Engine, open_engine, required_tolerance
from service.features import ProvenFeatures, open_features
from service.proving import prove
from service.settings import Settings

# What the endpoints speak: images in, digits out.
IMAGES, PROBABILITIES = "images", "probabilities"


@dataclass(frozen=True)
class ProvenModel:
    """An opened bundle whose model gave the right answers on its device.

    Attributes:
        variant: Which of the bundle's files it is; "onnx-tf32" where products are rounded.
        tolerance: What its answers may differ from the reference's by.
        samples: The golden samples; ``golden`` is what came of them at the start.
        guard: Tells images that are unlike those that the model learned from, if it has one.
        features: The first layer by itself, if the bundle has it.
    """

    manifest: Manifest
    variant: str
    engine: Engine
    tolerance: Tolerance
    samples: Golden
    golden: GoldenResult
    guard: Guard | None = None
    features: ProvenFeatures | None = None

    @property
    def reads_digits(self) -> bool:
        """Does it take images and give what /predict answers with?"""
        manifest = self.manifest
        outputs = {spec.name for spec in manifest.outputs}
        return [spec.name for spec in manifest.inputs] == [IMAGES] and PROBABILITIES in outputs


def open_proven(settings: Settings) -> list[ProvenModel]:
    """Open every bundle in the configured folder and prove it on its device.

    Raises:
        BundleError: No bundle there, a broken one, two of one name, one without a passed parity
            verdict, or no bundle of the default model's name.
        DeviceUnavailableError: The device asked for is not there.
        UnprovenError: Golden samples were answered wrongly.
    """
    device = choose_device(settings.device)
    folders = find_bundles(settings.bundles)
    if not folders:
        raise BundleError(
            f"no bundle in {settings.bundles.resolve()}: make them with `make bundles`, or name "
            "another folder with DIGITS_BUNDLES"
        )
    proven: dict[str, ProvenModel] = {}
    for folder in folders:
        model = _prove(Bundle.open(folder), device, settings)
        name = model.manifest.name
        if name in proven:
            raise BundleError(f"two bundles in {settings.bundles} bear the name {name}")
        proven[name] = model
    if settings.default_model is not None and settings.default_model not in proven:
        raise BundleError(
            f"DIGITS_DEFAULT_MODEL={settings.default_model}: no such bundle in {settings.bundles}; "
            f"there are: {', '.join(proven)}"
        )
    return list(proven.values())


def _prove(bundle: Bundle, device: Device, settings: Settings) -> ProvenModel:
    manifest = bundle.manifest
    variant, tolerance = settings.variant, required_tolerance(manifest, device, settings)
    bundle.model_path(variant)  # says why it is not there
    verdicts = [verdict.passed for verdict in manifest.parity if verdict.variant == variant]
    if not verdicts or not all(verdicts):
        raise BundleError(
            f"{bundle.folder} carries no passed parity verdict for its {variant} model"
        )
    engine = open_engine(bundle, device, settings)
    golden = Golden.load(bundle.path("golden"))
    what = f"{manifest.name} ({variant})"
    result = prove(what, engine, golden, manifest.outputs, tolerance)
    # TF32 is no file of its own, but another arithmetic: an answer names it.
    served = tolerance.variant if variant.startswith("onnx") else variant
    guard = None if manifest.guard is None else Guard.load(bundle.path("guard"))
    features = open_features(bundle, device, settings)
    return ProvenModel(manifest, served, engine, tolerance, golden, result, guard, features)
