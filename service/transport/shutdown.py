"""Stops a worker without losing a request: on SIGTERM, or because a model fails its golden check.

On SIGTERM readiness ends first. For ``drain_s`` seconds requests are still answered, each with
``connection: close``. Then no new connection is accepted, the accepted requests are answered, and
the server stops.
"""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable

import uvicorn

from service.models.health import HealthMonitor
from service.observability.metrics import Metrics
from service.transport.context import CONTEXT
from service.transport.listener import drop_handshakes

logger = logging.getLogger("bentoml.service")

# Handshakes that have begun complete within this time. While connections are still being accepted,
# the time is repeated, at most this often.
HANDSHAKE_GRACE_S, MOST_GRACES = 0.2, 10


class GracefulShutdown:
    """Stops this worker gracefully, in its event loop."""

    def __init__(
        self,
        health: HealthMonitor,
        metrics: Metrics,
        drain_s: float,
        stop_grpc: Callable[[], Awaitable[None]],
    ) -> None:
        """Continue to accept connections for ``drain_s`` seconds after SIGTERM.

        ``stop_grpc`` refuses further gRPC requests and returns once the accepted ones have ended.
        """
        self._health, self._metrics, self._drain_s = health, metrics, drain_s
        self._stop_grpc = stop_grpc
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take over SIGTERM from uvicorn's server, which has set its handler and runs this loop."""
        server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if isinstance(server, uvicorn.Server):
            self._server = server
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._begin, server)

    def leave(self) -> None:
        """End only this worker, since its answers are wrong; BentoML's parent starts another."""
        if CONTEXT.is_draining:
            return
        CONTEXT.is_draining = True
        logger.error("this worker exits: a model fails its golden samples")
        self._metrics.record_worker_exit("golden_check")
        self._task = asyncio.get_running_loop().create_task(self._leave())

    async def _leave(self) -> None:
        """Stop accepting HTTP and gRPC requests, wait for the accepted gRPC requests, and stop."""
        self._close_listeners()
        await self._stop_grpc()
        self._stop()

    def _begin(self, server: uvicorn.Server) -> None:
        if self._health.is_draining:
            return
        self._health.is_draining = CONTEXT.is_draining = True
        logger.info("received SIGTERM: no longer ready, stopping in %g s", self._drain_s)
        self._task = asyncio.get_running_loop().create_task(self._drain(server))

    async def _drain(self, server: uvicorn.Server) -> None:
        """Drain for ``drain_s`` seconds; stop once no connection was accepted for a while."""
        await asyncio.sleep(self._drain_s)
        stopping = asyncio.ensure_future(self._stop_grpc())
        for listening in server.servers:
            drop_handshakes(listening)
        for _ in range(MOST_GRACES):
            accepted = CONTEXT.accepted
            await asyncio.sleep(HANDSHAKE_GRACE_S)
            if CONTEXT.accepted == accepted:
                break
        await stopping
        self._stop()

    def _stop(self) -> None:
        """Stop accepting connections in this process; let uvicorn finish its requests and exit."""
        self._close_listeners()
        if self._server is not None:
            self._server.handle_exit(signal.SIGTERM, None)

    def _close_listeners(self) -> None:
        for listening in self._server.servers if self._server is not None else []:
            listening.close()
