"""Readiness of a worker: its models pass their golden samples, and it is not stopping.

Every ``golden_check_s`` seconds each model computes a few golden samples through its own batcher,
alongside requests. A wrong answer ends readiness and the model's inference until a later check
passes. ``on_failure`` makes the worker stop accepting connections and exit, so that BentoML
replaces it. A check that could not run, such as one that waited too long in a full queue, changes
nothing.
"""

import asyncio
import logging
from collections.abc import Callable

import numpy as np

from export.bundle.golden import judge_answers
from service.engine.engines import count_to_check
from service.models.registry import ModelRegistry, ServedModel
from service.observability.metrics import Metrics
from service.protocol.errors import NotReadyError, ServiceError

logger = logging.getLogger("bentoml.service")

SAMPLES = 8


class HealthMonitor:
    """The readiness of one worker; lives in its event loop.

    Attributes:
        is_draining: Whether the worker received SIGTERM and is stopping.
        failures: The failures found by the last check, by model; empty if all passed.
    """

    def __init__(
        self,
        models: ModelRegistry,
        metrics: Metrics,
        interval_s: float,
        on_failure: Callable[[], None] = lambda: None,
        on_fault: Callable[[ServedModel, list[str]], None] = lambda model, failures: None,
    ) -> None:
        """Start in the ready state.

        Args:
            models: The models to check.
            metrics: Records the checks.
            interval_s: Seconds between checks.
            on_failure: Called after a check in which a stable version answered wrongly.
            on_fault: Called with each version that answered wrongly, and its failures.
        """
        self._models, self._metrics = models, metrics
        self._interval_s, self._on_failure, self._on_fault = interval_s, on_failure, on_fault
        metrics.set_golden_interval(interval_s)
        self._task: asyncio.Task[None] | None = None
        self.is_draining = False
        self.failures: dict[str, list[str]] = {}

    @property
    def is_ready(self) -> bool:
        """Whether a load balancer may send requests here."""
        return not self.is_draining and not self.failures

    def require_right_answers(self, model: str) -> None:
        """Raise NotReadyError if the model failed its golden samples in the last check."""
        if model in self.failures:
            raise NotReadyError(
                f"{model} fails its golden samples in this worker, which is being replaced; try "
                "again"
            )

    def start(self) -> None:
        """Start the periodic checks; called in the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def check(self) -> dict[str, list[str]]:
        """Check every model now and return the failures by model."""
        for model in self._models.loaded():
            name = model.manifest.name
            if model is not self._models.get(name):
                await self._check_candidate(model)
                continue
            failures = await self._check_model(model)
            if failures:
                self._on_fault(model, failures)
                logger.error("%s fails its golden samples: %s", name, "; ".join(failures))
                self.failures[name] = failures
            elif failures is not None:
                self.failures.pop(name, None)
        if self.failures:
            self._on_failure()
        return dict(self.failures)

    async def _check_candidate(self, model: ServedModel) -> None:
        """Check a version that is not stable; a wrong answer ends only its roll-out."""
        try:
            failures, _ = await self._ask(model)
        except ServiceError:
            return  # a full queue says nothing about the version
        except Exception as error:  # noqa: BLE001 - an engine that raises fails the check
            failures = [repr(error)]
        if failures:
            self._on_fault(model, failures)

    async def _check_model(self, model: ServedModel) -> list[str] | None:
        """Return the failures of a model's answers, or None if the check could not run."""
        name, tolerance = model.manifest.name, model.tolerance
        try:
            failures, worst = await self._ask(model)
        except ServiceError as error:
            logger.warning("the golden samples of %s were not checked: %s", name, error)
            self._metrics.record_skipped_check(name)
            return None
        except Exception as error:  # noqa: BLE001 - an engine that raises fails the check
            self._metrics.record_golden_check(name, passed=False)
            return [repr(error)]
        self._metrics.record_golden_check(
            name, passed=not failures, error=worst, bound=tolerance.scaled_error
        )
        return failures

    async def _ask(self, model: ServedModel) -> tuple[list[str], float]:
        """Run golden samples; return the failures of the answers and the worst scaled error."""
        golden, tolerance = model.samples, model.tolerance
        if tolerance.scaled_error is not None:  # other tolerances judge all samples together
            golden = golden.first(max(SAMPLES, count_to_check(model.engine)))
        together, _ = await model.batcher.submit(golden.inputs, is_exempt=True)
        alone, _ = await model.batcher.submit(golden.first(1).inputs, is_exempt=True)
        # Small batches may run in another session than large ones, so check one sample in both.
        names = [spec.name for spec in model.manifest.outputs]
        mixed = {key: np.concatenate([alone[key], together[key][1:]]) for key in names}
        judged = [
            judge_answers(golden, answers, model.manifest.outputs, tolerance)
            for answers in (together, mixed)
        ]
        failures = [failure for found in judged for failure in found.failures]
        worst = max(found.scaled_error for found in judged)
        return list(dict.fromkeys(failures)), worst

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.check()
