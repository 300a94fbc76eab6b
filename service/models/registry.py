"""The models that a worker serves, each with its batcher, found by name."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

from export.manifest import Manifest
from service.adapters.tensors import TensorsAdapter
from service.engine.batcher import Batcher
from service.engine.engines import warm_up
from service.models.feature_maps import FeatureMapServer
from service.models.loader import VerifiedModel
from service.observability.metrics import GoldenCheck, Metrics, ModelInfo
from service.protocol.answers import Identity, ModelCard
from service.protocol.errors import (
    InvalidInputError,
    NoFeatureMapsError,
    UnknownModelError,
    quote_value,
)
from service.protocol.oip import describe_tensor
from service.settings import Settings

# A batch that runs in the event loop delays every other client by its time. Shorter ones are not
# worth a thread, with idle cores neither: the two threads contend for Python's interpreter lock,
# and the rate at 32 and 128 connections fell by a tenth (2 cores, CNN quick, CPython 3.11).
LOOP_BUDGET_S = 0.005

logger = logging.getLogger("bentoml.service")  # BentoML shows only its own loggers


@dataclass(frozen=True)
class ServedModel:
    """A verified model with its batcher, and another one for its feature maps."""

    verified: VerifiedModel
    batcher: Batcher
    feature_maps: FeatureMapServer | None = None

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.verified.manifest

    @property
    def adapter(self) -> TensorsAdapter:
        """The adapter of the model's task."""
        return self.verified.adapter

    def require_feature_maps(self) -> FeatureMapServer:
        """Return the server of the first layer.

        Raises:
            NoFeatureMapsError: The bundle does not hold it; gives the recorded reason.
        """
        if self.feature_maps is None:
            unknown = "its bundle holds none; build it again"
            why = self.manifest.not_built.get("features", unknown)
            raise NoFeatureMapsError(f"{self.manifest.name} has no feature maps: {why}")
        return self.feature_maps

    @functools.cached_property
    def identity(self) -> Identity:
        """The fields of every JSON answer that say which model computed it, and where."""
        return {
            "model": self.manifest.name,
            "version": self.manifest.version,
            "variant": self.verified.variant,
            "device": self.verified.engine.device,
            "provider": self.verified.engine.provider,
        }

    def describe(self, *, is_default: bool) -> ModelCard:
        """Return the model's entry of GET /models."""
        manifest, training = self.manifest, self.manifest.training
        return {
            **self.identity,
            "inputs": [describe_tensor(spec) for spec in manifest.inputs],
            "outputs": [describe_tensor(spec) for spec in manifest.outputs],
            "labels": list(manifest.labels),
            "parameters": manifest.parameters,
            "test_accuracy": training.test_accuracy if training else None,
            "test_images": training.test_images if training else None,
            "parity": list(manifest.parity),
            "golden": self.verified.golden,
            "guard": manifest.guard,
            "features": manifest.features,
            "default": is_default,
        }


class ModelRegistry:
    """All models of a worker, by name."""

    def __init__(
        self,
        verified: list[VerifiedModel],
        settings: Settings,
        metrics: Metrics,
        count_accepted: Callable[[], int] = lambda: 0,
    ) -> None:
        """Warm every model up and make its batcher.

        Args:
            verified: The models.
            settings: Sizes, times and the place where batches run.
            metrics: Records each model and each batch.
            count_accepted: Connections accepted so far; see ``Batcher``.
        """
        self._models = {
            model.manifest.name: _serve(model, settings, metrics, count_accepted)
            for model in verified
        }
        self.default = settings.default_model or verified[0].manifest.name

    def get(self, name: str | None, version: str | None = None) -> ServedModel:
        """Return the model of that name, or the default one.

        Raises:
            UnknownModelError: No such model, or not in this version; lists what there is.
        """
        model = self._models.get(self.default if name is None else name)
        if model is None:
            known = ", ".join(self._models)
            raise UnknownModelError(f"no model {quote_value(name)} is served; there are: {known}")
        if version is not None and version != model.manifest.version:
            raise UnknownModelError(
                f"{model.manifest.name} is served in version {model.manifest.version}, not "
                f"{quote_value(version)}"
            )
        return model

    def choose(self, in_query: str | None, in_body: str | None) -> ServedModel:
        """Return the model that a request names in its URL or in its body.

        Raises:
            UnknownModelError: No such model.
            InvalidInputError: The two name different models.
        """
        model = self.get(in_query if in_body is None else in_body)
        if in_query is not None and self.get(in_query) is not model:
            raise InvalidInputError(
                f"the URL names the model {quote_value(in_query)} and the body "
                f"{quote_value(in_body)}; name one"
            )
        return model

    def all(self) -> list[ServedModel]:
        """Return every model, by name."""
        return list(self._models.values())

    def close(self) -> None:
        """End all engines."""
        for model in self._models.values():
            model.batcher.close()
            if model.feature_maps is not None:
                model.feature_maps.batcher.close()


def _serve(
    verified: VerifiedModel,
    settings: Settings,
    metrics: Metrics,
    count_accepted: Callable[[], int],
) -> ServedModel:
    """Warm a model up, make its batcher, and record in log and metrics what is served."""
    manifest, engine, golden = verified.manifest, verified.engine, verified.golden
    batch_s = warm_up(engine, manifest, settings.max_batch_samples)
    max_loop_samples = _choose_max_loop_samples(batch_s, engine.device, settings)
    batcher = Batcher(
        verified.adapter.extend(engine),
        max_batch_samples=settings.max_batch_samples,
        max_queue_samples=settings.max_queue_samples,
        max_loop_samples=max_loop_samples,
        deadline_s=settings.timeout_s,
        wait_s=settings.batch_wait_ms / 1000,
        on_batch=functools.partial(metrics.record_batch, manifest.name),
        count_accepted=count_accepted,
    )
    info = ModelInfo(
        manifest.name, manifest.version, verified.variant, engine.device, engine.provider
    )
    has_maps = verified.feature_maps is not None
    metrics.add_model(
        info,
        GoldenCheck(True, golden.scaled_error, verified.tolerance.scaled_error),
        ["infer", *verified.adapter.endpoints, *(["features"] if has_maps else [])],
        read_queued=lambda: batcher.queued_samples,
        limit=settings.max_queue_samples,
    )
    logger.info(
        "serving %s version %s (%s) on %s (%s): %d golden samples right, batches of %d "
        "take %.1f ms; batches of up to %d samples run in the event loop, others in a thread",
        *info,
        golden.samples,
        settings.max_batch_samples,
        1000 * batch_s[settings.max_batch_samples],
        max_loop_samples,
    )
    feature_maps = None
    if verified.feature_maps is not None:
        feature_maps = FeatureMapServer(verified.feature_maps, manifest, settings.timeout_s)
    return ServedModel(verified, batcher, feature_maps)


def _choose_max_loop_samples(batch_s: dict[int, float], device: str, settings: Settings) -> int:
    """Return the largest batch that runs in the event loop; 0 if all run in the thread.

    Args:
        batch_s: Seconds of a batch by its size, measured.
        device: The engine's.
        settings: Where batches run, if it is set.
    """
    if settings.engine == "loop":
        return settings.max_batch_samples
    if settings.engine == "thread" or device != "cpu":
        return 0
    return max((size for size, seconds in batch_s.items() if seconds <= LOOP_BUDGET_S), default=0)
