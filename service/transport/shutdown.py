"""Stops a worker without losing a request: on SIGTERM, or because a model answers wrongly.

On SIGTERM readiness ends first. For ``drain_s`` seconds requests are still answered, each with
``connection: close``. Then no new connection is accepted, what was accepted is answered, and the
server stops.
"""

import asyncio
import logging
import signal
from collections.abc import Callable
from types import FrameType

from service.models.health import HealthMonitor
from service.observability.metrics import Metrics
from service.transport.context import ServerContext
from service.transport.listener import Listener

logger = logging.getLogger("bentoml.service")

# Handshakes that had begun are complete by then; and as long as connections are still accepted, at
# most so many times as long.
HANDSHAKE_GRACE_S, MOST_GRACES = 0.2, 10

SignalHandler = Callable[[int, FrameType | None], object]


class GracefulShutdown:
    """Ends this worker; lives in its event loop."""

    def __init__(
        self,
        health: HealthMonitor,
        context: ServerContext,
        listener: Listener,
        metrics: Metrics,
        drain_s: float,
    ) -> None:
        """Take what has to be told.

        Args:
            health: Ends readiness.
            context: Makes all connections close after their answers.
            listener: Stops accepting.
            metrics: Counts workers that end themselves.
            drain_s: Seconds from SIGTERM until connections are no longer accepted.
        """
        self._health, self._context, self._listener = health, context, listener
        self._metrics, self._drain_s = metrics, drain_s
        self._stop_server: SignalHandler | None = None
        self._is_leaving = False
        self._accepted = -1

    def start(self) -> None:
        """Take over SIGTERM; called in the event loop after uvicorn has set its own handler."""
        handler = signal.getsignal(signal.SIGTERM)
        if callable(handler):
            self._stop_server = handler
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._begin)

    def leave(self) -> None:
        """End this worker alone: it answers wrongly. BentoML's parent process starts another."""
        if self._is_leaving or self._health.is_draining:
            return
        self._is_leaving = True
        logger.error("this worker ends: a model answers its golden samples wrongly")
        self._metrics.record_worker_exit("golden_check")
        self._context.is_draining = True
        self._listener.stop_accepting()
        self._stop()

    def _begin(self) -> None:
        if self._health.is_draining:
            return
        self._health.is_draining = self._context.is_draining = True
        logger.info("SIGTERM: not ready any more, stopping in %g s", self._drain_s)
        asyncio.get_running_loop().call_later(self._drain_s, self._refuse_connections)

    def _refuse_connections(self) -> None:
        self._listener.drop_handshakes()
        self._finish_accepting(MOST_GRACES)

    def _finish_accepting(self, graces: int) -> None:
        """Stop once no connection was accepted for a while."""
        if graces == 0 or self._context.accepted == self._accepted:
            self._listener.stop_accepting()
            self._stop()
            return
        self._accepted = self._context.accepted
        loop = asyncio.get_running_loop()
        loop.call_later(HANDSHAKE_GRACE_S, self._finish_accepting, graces - 1)

    def _stop(self) -> None:
        if self._stop_server is not None:
            self._stop_server(signal.SIGTERM, None)
