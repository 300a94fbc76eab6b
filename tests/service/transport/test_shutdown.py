"""A worker that leaves because a model answers wrongly accepts nothing more by any protocol."""

import asyncio
import subprocess
import sys

from loadtest.server import REPOSITORY
from service.models.health import HealthMonitor
from service.models.loader import load_verified_models
from service.models.registry import ModelRegistry
from service.observability.metrics import Metrics
from service.settings import Settings
from service.transport.context import CONTEXT
from service.transport.shutdown import GracefulShutdown
from tests.tiny import SERVED_BUNDLES


def test_a_worker_that_leaves_stops_grpc_once() -> None:
    """Accepted gRPC requests finish first, and a second failed check changes nothing."""
    # A process registers its metrics once, so this one runs the check in another.
    subprocess.run([sys.executable, "-m", __name__], check=True, cwd=REPOSITORY)


def _leave_twice() -> None:
    calls: list[str] = []

    async def stop_grpc() -> None:
        calls.append("begun")
        await asyncio.sleep(0.01)
        calls.append("stopped")

    async def leave() -> None:
        shutdown.leave()
        shutdown.leave()
        await asyncio.sleep(0.2)

    metrics, settings = Metrics(), Settings(bundles=SERVED_BUNDLES, device="cpu")
    models = ModelRegistry(load_verified_models(settings), settings, metrics)
    try:
        shutdown = GracefulShutdown(HealthMonitor(models, metrics, 60), metrics, 0, stop_grpc)
        asyncio.run(leave())
    finally:
        models.close()
    assert calls == ["begun", "stopped"]
    assert CONTEXT.is_draining


if __name__ == "__main__":
    _leave_twice()
