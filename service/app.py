"""The BentoML service: ``bentoml serve service.app:DigitClassifier``.

BentoML provides the processes, the listening socket, /livez, /readyz and its OpenAPI document.
``transport`` answers the requests; ``models`` serves only verified models.
"""

import gc
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import bentoml

from service.core.handler import Handler
from service.models.health import HealthMonitor
from service.models.loader import load_verified_models
from service.models.registry import ModelRegistry
from service.observability import logs
from service.observability.metrics import Metrics
from service.observability.tracing import make_tracing
from service.rollout.coordinator import RolloutCoordinator
from service.settings import ROOT, Settings, SettingsError, list_old_names, read_settings
from service.transport.asgi_app import make_app
from service.transport.context import CONTEXT
from service.transport.direct_router import DirectRouter
from service.transport.gate import RequestGate
from service.transport.http1 import register
from service.transport.shutdown import GracefulShutdown
from service.web.pages import PAGE_PATHS, page_routes

if TYPE_CHECKING:
    from service.transport.grpc_server import GrpcServer


def _make_grpc_server(settings: Settings) -> "GrpcServer | None":
    if settings.grpc_port is None:
        return None
    try:
        from service.transport.grpc_server import GrpcServer  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise SettingsError(
            "INFERENCE_GRPC_PORT is set, but gRPC needs another package: pip install grpcio"
        ) from error
    return GrpcServer(settings)


try:
    SETTINGS = read_settings()
    TRACING = make_tracing(SETTINGS)
    GRPC = _make_grpc_server(SETTINGS)
    logs.configure(SETTINGS)
except SettingsError as error:
    raise SystemExit(f"error: {error}") from None

GC_EVERY_OBJECTS = 50_000


def _bentoml_openapi() -> dict[str, Any]:
    service = cast("bentoml.Service[Any]", DigitClassifier)  # the decorator returns a Service
    return dict(service.openapi_spec.asdict())


async def _stop_grpc() -> None:
    if GRPC is not None:
        await GRPC.stop()


register()


@bentoml.service(
    name="digit_classifier",
    workers=SETTINGS.workers,
    # A last resort: each request has its own deadline, which does not include time spent sending.
    traffic={"timeout": 2 * (SETTINGS.timeout_s + SETTINGS.slow_client_s)},
    logging={"access": {"enabled": False}},  # see service.observability.logs
    http={"host": "127.0.0.1"},  # all interfaces only by --host or BENTOML_HOST
    metrics={"enabled": False},  # see service.observability.metrics
)
@bentoml.asgi_app(make_app(_bentoml_openapi, page_routes()))
class DigitClassifier:
    """Serves every verified bundle of the configured folder."""

    @bentoml.on_deployment
    def verify_once() -> None:
        """Refuse to start if a bundle cannot be served; a worker that fails would be restarted.

        A child process does the verification, so the parent never opens a model or CUDA context.
        """
        # With this variable set, as in containers built by BentoML, dead workers are not replaced.
        os.environ.pop("BENTOML_CONTAINERIZED", None)
        for name in list_old_names():
            logs.logger.warning(
                "%s is an old name; use the INFERENCE_ name listed in docs/serving.md", name
            )
        command = [sys.executable, "-m", "service.models.loader"]
        ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if ran.returncode != 0:
            raise logs.end_process(SETTINGS, ran.stdout or "the models cannot be verified")
        if GRPC is not None:
            try:
                GRPC.require_free_port()
            except SettingsError as error:
                raise logs.end_process(SETTINGS, str(error)) from None

    def __init__(self) -> None:
        """Verify every model on this worker's device, then begin to serve requests."""
        metrics = Metrics()
        self._models = ModelRegistry(
            load_verified_models(SETTINGS), SETTINGS, metrics, lambda: CONTEXT.accepted
        )
        self._rollouts = RolloutCoordinator(self._models, SETTINGS, metrics, self._route)
        self._health = HealthMonitor(
            self._models,
            metrics,
            SETTINGS.golden_check_s,
            lambda: self._shutdown.leave(),
            self._rollouts.report_fault,
        )
        self._shutdown = GracefulShutdown(self._health, metrics, SETTINGS.drain_s, _stop_grpc)
        self._handler = Handler(self._models, SETTINGS, self._health, metrics)
        CONTEXT.serve(RequestGate(SETTINGS, PAGE_PATHS, TRACING), self._handler, SETTINGS)
        self._route()
        # Objects that are alive now stay alive, so the garbage collector can skip them. It also
        # runs less often than the default of every 700 new objects: a request creates dozens of
        # objects, none of them in reference cycles.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_EVERY_OBJECTS, 20, 50)

    @bentoml.on_startup
    async def start(self) -> None:
        """Start the golden checks, the roll-outs and the gRPC server, and take over SIGTERM."""
        self._health.start()
        self._shutdown.start()
        self._rollouts.start()
        if GRPC is not None:
            await GRPC.start()

    def _route(self) -> None:
        """Update the direct routes to match the versions that are loaded."""
        CONTEXT.route(DirectRouter(self._models.loaded() if SETTINGS.fast_path else []))

    def __is_ready__(self) -> bool:
        """Return whether this worker is ready for requests; called by BentoML's /readyz."""
        return self._health.is_ready

    @bentoml.on_shutdown
    def close(self) -> None:
        """Let running batches finish, and send the remaining traces."""
        self._rollouts.close()
        self._handler.close()
        self._models.close()
        if TRACING is not None:
            TRACING.close()
