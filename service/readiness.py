"""Whether this worker says that it is ready: its models stay right, and it is not leaving.

Once a minute each model is asked a few golden samples through its own batcher, beside the traffic.
A wrong answer turns readiness off until the next right one. On SIGTERM readiness goes first: for
``drain_s`` requests are still answered, each connection is closed behind its answer, and only then
the server stops.
"""

import asyncio
import logging
import signal
from collections.abc import Callable
from types import FrameType

from export.golden import judge_answers
from service.metrics import GoldenCheck, Metrics
from service.models import ServedModel, ServedModels

logger = logging.getLogger("bentoml.service")

SAMPLES = 8


class Readiness:
    """The state of one worker; lives in its event loop.

    Attributes:
        draining: The worker was told to stop.
        failures: What the last check found wrong, by model; empty if nothing was.
    """

    def __init__(
        self, models: ServedModels, metrics: Metrics, every_s: float, drain_s: float
    ) -> None:
        """Ready, until something says otherwise.

        Args:
            models: Proven.
            metrics: Told of each check.
            every_s: Seconds between checks.
            drain_s: Seconds between SIGTERM and the server's end.
        """
        self._models, self._metrics = models, metrics
        self._every_s, self._drain_s = every_s, drain_s
        metrics.golden_checked_every(every_s)
        self._watch: asyncio.Task[None] | None = None
        self.draining = False
        self.failures: dict[str, list[str]] = {}

    @property
    def ready(self) -> bool:
        """May a load balancer send requests here?"""
        return not self.draining and not self.failures

    def start(self) -> None:
        """Begin to watch; in the event loop, once the server has set its signal handlers."""
        self._watch = asyncio.get_running_loop().create_task(self._run())
        handler = signal.getsignal(signal.SIGTERM)
        if callable(handler):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._drain, handler)

    async def check(self) -> dict[str, list[str]]:
        """Ask every model some golden samples; what was wrong, by model."""
        found = {model.manifest.name: await self._ask(model) for model in self._models.all()}
        for name, failures in found.items():
            if failures:
                logger.error("%s fails its golden samples: %s", name, "; ".join(failures))
        self.failures = {name: failures for name, failures in found.items() if failures}
        return self.failures

    async def _ask(self, model: ServedModel) -> list[str]:
        golden = model.proven.samples
        if model.proven.tolerance.scaled_error is not None:  # else only many can be judged
            golden = golden.first(SAMPLES)
        name, tolerance = model.manifest.name, model.proven.tolerance
        try:
            answers, _ = await model.batcher.submit(golden.inputs)
        except Exception as error:  # noqa: BLE001 - no answer is a wrong one
            self._metrics.golden_checked(name, GoldenCheck(False, 0, None))
            return [repr(error)]
        judged = judge_answers(golden, answers, model.manifest.outputs, tolerance)
        check = GoldenCheck(not judged.failures, judged.scaled_error, tolerance.scaled_error)
        self._metrics.golden_checked(name, check)
        return judged.failures

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self.check()

    def _drain(self, stop: Callable[[int, FrameType | None], object]) -> None:
        if self.draining:
            return
        self.draining = True
        logger.info("told to stop: not ready any more, stopping in %g s", self._drain_s)
        asyncio.get_running_loop().call_later(self._drain_s, stop, signal.SIGTERM, None)
