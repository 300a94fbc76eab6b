"""Stops a worker without losing a request: on SIGTERM, or because a model answers wrongly.

On SIGTERM readiness ends first. For ``drain_s`` seconds requests are still answered, each with
``connection: close``. Then no new connection is accepted, what was accepted is answered, and the
server stops.
"""

import asyncio
import logging
import signal

import uvicorn

from service.models.health import HealthMonitor
from service.observability.metrics import Metrics
from service.transport.context import CONTEXT
from service.transport.listener import drop_handshakes

logger = logging.getLogger("bentoml.service")

# Handshakes that had begun are complete by then; and as long as connections are still accepted, at
# most so many times as long.
HANDSHAKE_GRACE_S, MOST_GRACES = 0.2, 10


class GracefulShutdown:
    """Ends this worker; lives in its event loop."""

    def __init__(self, health: HealthMonitor, metrics: Metrics, drain_s: float) -> None:
        """Accept connections for ``drain_s`` seconds from SIGTERM on."""
        self._health, self._metrics, self._drain_s = health, metrics, drain_s
        self._server: uvicorn.Server | None = None
        self._is_leaving = False

    def start(self) -> None:
        """Take SIGTERM over from uvicorn's server, which has set its handler and runs this loop."""
        server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if isinstance(server, uvicorn.Server):
            self._server = server
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._begin)

    def leave(self) -> None:
        """End this worker alone: it answers wrongly. BentoML's parent process starts another."""
        if self._is_leaving or self._health.is_draining:
            return
        self._is_leaving = True
        logger.error("this worker ends: a model answers its golden samples wrongly")
        self._metrics.record_worker_exit("golden_check")
        CONTEXT.is_draining = True
        self._stop()

    def _begin(self) -> None:
        if self._health.is_draining:
            return
        self._health.is_draining = CONTEXT.is_draining = True
        logger.info("SIGTERM: not ready any more, stopping in %g s", self._drain_s)
        asyncio.get_running_loop().call_later(self._drain_s, self._refuse_connections)

    def _refuse_connections(self) -> None:
        if self._server is not None:
            for server in self._server.servers:
                drop_handshakes(server)
        self._finish_accepting(MOST_GRACES, -1)

    def _finish_accepting(self, graces: int, accepted_before: int) -> None:
        """Stop once no connection was accepted for a while."""
        accepted = CONTEXT.accepted
        if graces == 0 or accepted == accepted_before:
            self._stop()
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(HANDSHAKE_GRACE_S, self._finish_accepting, graces - 1, accepted)

    def _stop(self) -> None:
        """Accept no more connections in this process, and let uvicorn answer and end."""
        if self._server is not None:
            for server in self._server.servers:
                server.close()
            self._server.handle_exit(signal.SIGTERM, None)
