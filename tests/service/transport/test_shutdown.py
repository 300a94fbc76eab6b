"""A worker that stops because a model answers wrongly accepts no request on any protocol."""

import asyncio

import pytest

from service.models.health import HealthMonitor
from service.models.loader import load_verified_models
from service.models.registry import ModelRegistry
from service.observability.metrics import Metrics
from service.settings import Settings
from service.transport.context import CONTEXT
from service.transport.shutdown import GracefulShutdown
from tests.tiny import SERVED_BUNDLES


def test_a_worker_that_leaves_stops_grpc_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepted gRPC requests finish first, and a second failed check changes nothing."""
    monkeypatch.setattr(CONTEXT, "is_draining", False)
    calls: list[str] = []

    async def stop_grpc() -> None:
        calls.append("begun")
        await asyncio.sleep(0.01)
        calls.append("stopped")

    async def leave_twice() -> None:
        shutdown.leave()
        shutdown.leave()
        await asyncio.sleep(0.2)

    metrics, settings = Metrics(), Settings(bundles=SERVED_BUNDLES)
    models = ModelRegistry(load_verified_models(settings), settings, metrics)
    try:
        shutdown = GracefulShutdown(HealthMonitor(models, metrics, 60), metrics, 0, stop_grpc)
        asyncio.run(leave_twice())
    finally:
        models.close()
    assert calls == ["begun", "stopped"]
    assert CONTEXT.is_draining
