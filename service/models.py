"""The models that are served: bundles opened, put on a device and asked their golden samples."""

import functools
import json
import logging
import time
from dataclasses import dataclass

import numpy as np

from export.bundle import Bundle, find_bundles
from export.golden import Golden, GoldenResult, check_golden
from export.guard import Guard
from export.manifest import BundleError, Manifest
from export.parity.metrics import Array, Arrays
from export.parity.tolerances import Device, Tolerance
from export.session import choose_device
from service.batcher import Batcher
from service.engines import Engine, batch_buckets, open_engine, required_tolerance
from service.errors import InvalidInputError, UnknownModelError, shown
from service.metrics import GoldenCheck, Metrics, ModelInfo
from service.protocol import predictions
from service.settings import Settings

# What the endpoints speak: images in, digits out.
IMAGES, PROBABILITIES = "images", "probabilities"
WARM_UP_RUNS = 3
# A batch that holds the event loop up for longer is run in a thread: requests are read meanwhile.
LONGEST_IN_LOOP_S = 0.005

logger = logging.getLogger("bentoml.service")  # BentoML shows its own loggers alone


class UnprovenError(RuntimeError):
    """A model does not answer its golden samples rightly on the device it would serve from."""


@dataclass(frozen=True)
class ProvenModel:
    """An opened bundle whose model gave the right answers on its device.

    Attributes:
        variant: Which of the bundle's files it is; "onnx-tf32" where products are rounded.
        tolerance: What its answers may differ from the reference's by.
        samples: The golden samples; ``golden`` is what came of them at the start.
        guard: Tells images that are unlike those that the model learned from, if it has one.
    """

    manifest: Manifest
    variant: str
    engine: Engine
    tolerance: Tolerance
    samples: Golden
    golden: GoldenResult
    guard: Guard | None

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
    try:
        result = check_golden(golden, engine, manifest.outputs, tolerance)
    except Exception as error:  # runtimes raise whatever they like
        raise UnprovenError(
            f"{manifest.name} ({variant}) cannot answer its golden samples on {device}: {error}"
        ) from error
    if not result.passed:
        raise UnprovenError(
            f"{manifest.name} ({variant}) fails its golden samples on {device}: "
            f"{'; '.join(result.failures)}"
        )
    # TF32 is no file of its own, but another arithmetic: an answer names it.
    served = tolerance.variant if variant.startswith("onnx") else variant
    guard = None if manifest.guard is None else Guard.load(bundle.path("guard"))
    return ProvenModel(manifest, served, engine, tolerance, golden, result, guard)


def _warm_up(engine: Engine, manifest: Manifest, settings: Settings) -> float:
    """Run batches of every bucket's size; seconds of the largest, at best.

    So the first request finds memory and kernels as the hundredth does.
    """
    for size in batch_buckets(settings.max_batch_images):
        batch = {s.name: np.zeros((size, *s.shape[1:]), s.dtype) for s in manifest.inputs}
        timed_s = []
        for _ in range(WARM_UP_RUNS):
            start_s = time.perf_counter()
            engine(batch)
            timed_s.append(time.perf_counter() - start_s)
    return min(timed_s)


@dataclass(frozen=True)
class ServedModel:
    """A proven model with its own batcher."""

    proven: ProvenModel
    batcher: Batcher

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.proven.manifest

    def inputs(self, images_NHW: Array) -> Arrays:
        """What the model is asked with for images, uint8 [N, 28, 28].

        Raises:
            InvalidInputError: It does not read digits; says where it is asked.
        """
        if not self.proven.reads_digits:
            name = self.manifest.name
            raise InvalidInputError(
                f"{name} does not read digits; ask it at /v2/models/{name}/infer"
            )
        return {IMAGES: images_NHW}

    def answer(self, outputs: Arrays, inputs: Arrays) -> bytes:
        """What /predict and /predict/image answer, JSON."""
        guard = self.proven.guard
        verdicts = None if guard is None else guard.judge(inputs[IMAGES])
        found = predictions(self.manifest.labels, outputs[PROBABILITIES], verdicts)
        return json.dumps(
            self.identity() | {"predictions": found}, separators=(",", ":"), ensure_ascii=False
        ).encode()

    def identity(self) -> dict[str, object]:
        """Who answers: the fields that every answer carries."""
        return {
            "model": self.manifest.name,
            "version": self.manifest.version,
            "variant": self.proven.variant,
            "device": self.proven.engine.device,
            "provider": self.proven.engine.provider,
        }

    def card(self) -> dict[str, object]:
        """What GET /models says of it."""
        training, guard = self.manifest.training, self.manifest.guard
        return self.identity() | {
            "inputs": [t.model_dump(exclude={"kind"}) for t in self.manifest.inputs],
            "outputs": [t.model_dump(exclude={"kind"}) for t in self.manifest.outputs],
            "labels": self.manifest.labels,
            "parameters": self.manifest.parameters,
            "test_accuracy": training.test_accuracy if training else None,
            "test_images": training.test_images if training else None,
            "parity": [verdict.model_dump(mode="json") for verdict in self.manifest.parity],
            "golden": self.proven.golden.model_dump(),
            "guard": guard and guard.model_dump(),
        }


def _serve(proven: ProvenModel, settings: Settings, metrics: Metrics) -> ServedModel:
    """Give a model its batcher and say in log and metrics what is served, and where."""
    manifest, engine, golden = proven.manifest, proven.engine, proven.golden
    batch_s = _warm_up(engine, manifest, settings)
    in_loop = settings.engine == "loop" or (
        settings.engine == "auto" and engine.device == "cpu" and batch_s <= LONGEST_IN_LOOP_S
    )
    batcher = Batcher(
        engine,
        max_batch_samples=settings.max_batch_images,
        max_queue_samples=settings.max_queue_images,
        in_loop=in_loop,
        deadline_s=settings.timeout_s,
        wait_s=settings.batch_wait_ms / 1000,
        on_batch=functools.partial(metrics.batch, manifest.name),
    )
    info = ModelInfo(
        manifest.name, manifest.version, proven.variant, engine.device, engine.provider
    )
    metrics.model_ready(
        info,
        GoldenCheck(True, golden.scaled_error, proven.tolerance.scaled_error),
        ("infer", "predict", "predict_image") if proven.reads_digits else ("infer",),
        waiting=lambda: batcher.queued_samples,
        limit=settings.max_queue_images,
    )
    logger.info(
        "serving %s version %s (%s) on %s (%s): %d golden samples right, batches of %d "
        "take %.1f ms and run in %s",
        *info,
        *(golden.samples, settings.max_batch_images, 1000 * batch_s),
        "the event loop" if in_loop else "a thread",
    )
    return ServedModel(proven, batcher)


class ServedModels:
    """All models of a worker, by name."""

    def __init__(self, proven: list[ProvenModel], settings: Settings, metrics: Metrics) -> None:
        """Serve each."""
        self._models = {model.manifest.name: _serve(model, settings, metrics) for model in proven}
        self.default = settings.default_model or proven[0].manifest.name

    def get(self, name: str | None) -> ServedModel:
        """The model of that name, or the default one.

        Raises:
            UnknownModelError: Says which there are.
        """
        try:
            return self._models[self.default if name is None else name]
        except KeyError:
            known = ", ".join(self._models)
            raise UnknownModelError(
                f"no model {shown(name)} is served; there are: {known}"
            ) from None

    def chosen(self, in_query: str | None, in_body: str | None) -> ServedModel:
        """The model that a request names, in its URL or in its body.

        Raises:
            UnknownModelError: No such model.
            InvalidInputError: It names two.
        """
        model = self.get(in_query if in_body is None else in_body)
        if in_query is not None and self.get(in_query) is not model:
            raise InvalidInputError(
                f"the URL names the model {shown(in_query)} and the body {shown(in_body)}; name one"
            )
        return model

    def all(self) -> list[ServedModel]:
        """Every model, by name."""
        return list(self._models.values())

    def close(self) -> None:
        """End all engines."""
        for model in self._models.values():
            model.batcher.close()
