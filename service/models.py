"""The models that are served: each with its batcher, and what it answers to whom."""

import functools
import json
import logging
import time
from dataclasses import dataclass

import numpy as np

from export.manifest import Manifest
from export.parity.metrics import Array, Arrays
from service.adapters.digits import describe_predictions as predictions
from service.batcher import Batcher
from service.engines import Engine, batch_buckets
from service.errors import InvalidInputError, NoFeatureMapsError, UnknownModelError, shown
from service.features import FeatureServer
from service.metrics import GoldenCheck, Metrics, ModelInfo
from service.proven import IMAGES, PROBABILITIES, ProvenModel
from service.settings import Settings

WARM_UP_RUNS = 3
# A batch that holds the event loop up for longer is run in a thread: requests are read meanwhile.
LONGEST_IN_LOOP_S = 0.005

logger = logging.getLogger("bentoml.service")  # BentoML shows its own loggers alone


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
    """A proven model with its own batcher, and another one for its feature maps."""

    proven: ProvenModel
    batcher: Batcher
    features: FeatureServer | None = None

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

    def shown_features(self) -> FeatureServer:
        """What shows the first layer.

        Raises:
            NoFeatureMapsError: The bundle does not have it; says why, if it knows.
        """
        if self.features is None:
            unknown = "its bundle holds none; build it again"
            why = self.manifest.not_built.get("features", unknown)
            raise NoFeatureMapsError(f"{self.manifest.name} has no feature maps: {why}")
        return self.features

    def answer(self, outputs: Arrays, inputs: Arrays, *, show: bool = False) -> bytes:
        """What /predict and /predict/image answer, JSON.

        Args:
            outputs: Of the model.
            inputs: What it was asked.
            show: Put the first image, as the model read it, into the answer.
        """
        guard, images_NHW = self.proven.guard, inputs[IMAGES]
        verdicts = None if guard is None else guard.judge(images_NHW)
        found = predictions(self.manifest.labels, outputs[PROBABILITIES], verdicts)
        read = {"image": images_NHW[0].tolist()} if show else {}
        return json.dumps(
            self.identity() | {"predictions": found} | read,
            separators=(",", ":"),
            ensure_ascii=False,
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
        features = self.manifest.features
        return self.identity() | {
            "inputs": [t.model_dump(exclude={"kind", "bounds"}) for t in self.manifest.inputs],
            "outputs": [t.model_dump(exclude={"kind", "bounds"}) for t in self.manifest.outputs],
            "labels": self.manifest.labels,
            "parameters": self.manifest.parameters,
            "test_accuracy": training.test_accuracy if training else None,
            "test_images": training.test_images if training else None,
            "parity": [verdict.model_dump(mode="json") for verdict in self.manifest.parity],
            "golden": self.proven.golden.model_dump(),
            "guard": guard and guard.model_dump(),
            "features": features.model_dump(mode="json") if features else None,
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
        _endpoints(proven),
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
    shown = None
    if proven.features is not None:
        shown = FeatureServer(proven.features, manifest, settings.timeout_s)
    return ServedModel(proven, batcher, shown)


def _endpoints(proven: ProvenModel) -> list[str]:
    """Where a model can be asked, as metrics name it."""
    return [
        "infer",
        *(["predict", "predict_image"] if proven.reads_digits else []),
        *(["features"] if proven.features is not None else []),
    ]


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
            if model.features is not None:
                model.features.batcher.close()
