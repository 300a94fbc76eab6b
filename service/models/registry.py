"""The models that a worker serves, each with its batcher, found by name."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

from service.engine.batcher import Batcher
from service.engine.engines import warm_up
from service.models.loader import VerifiedModel
from service.observability.metrics import Metrics
from service.protocol.answers import ModelCard
from service.protocol.errors import InvalidInputError, UnknownModelError, quote_value
from service.protocol.oip import describe_tensor
from service.settings import Settings

# A batch that runs in the event loop delays every other client by its time. Shorter ones are not
# worth a thread, with idle cores neither: the two threads contend for Python's interpreter lock,
# and the rate at 32 and 128 connections fell by a tenth (2 cores, CNN quick, CPython 3.11).
LOOP_BUDGET_S = 0.005

logger = logging.getLogger("bentoml.service")  # BentoML shows only its own loggers


@dataclass(frozen=True)
class ServedModel(VerifiedModel):
    """A verified model with its batcher."""

    batcher: Batcher

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
            "golden": self.golden,
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
        """Warm every model up and make its batcher; ``Batcher`` explains ``count_accepted``."""
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
    has_maps = verified.feature_maps is not None
    endpoints = ["infer", *verified.adapter.endpoints]
    endpoints += ["features"] if has_maps else []
    endpoints += ["infer_grpc"] if settings.grpc_port is not None else []
    metrics.add_model(
        verified.identity,
        endpoints,
        read_queued=lambda: batcher.queued_samples,
        limit=settings.max_queue_samples,
    )
    metrics.record_golden_check(
        manifest.name, passed=True, error=golden.scaled_error, bound=golden.scaled_error_bound
    )
    logger.info(
        "serving %s version %s (%s) on %s (%s): %d golden samples right, batches of %d "
        "take %.1f ms; batches of up to %d samples run in the event loop, others in a thread",
        *verified.identity.values(),
        golden.samples,
        settings.max_batch_samples,
        1000 * batch_s[settings.max_batch_samples],
        max_loop_samples,
    )
    return ServedModel(**vars(verified), batcher=batcher)


def _choose_max_loop_samples(batch_s: dict[int, float], device: str, settings: Settings) -> int:
    """Return the largest batch that runs in the event loop; 0 if all run in the thread.

    ``batch_s`` are the measured seconds of a batch by its size.
    """
    if settings.engine == "loop":
        return settings.max_batch_samples
    if settings.engine == "thread" or device != "cpu":
        return 0
    return max((size for size, seconds in batch_s.items() if seconds <= LOOP_BUDGET_S), default=0)
