"""The BentoML service: ``bentoml serve service.app:DigitClassifier``.

BentoML brings processes, sockets, health (/livez, /readyz), /metrics and the page of /docs.json;
``http`` brings the endpoints; ``models`` lets nothing through that is not proven.
"""

import gc
import os
from typing import Any, cast

import bentoml

from export.manifest import BundleError
from export.session import DeviceUnavailableError
from service import fastpath, logs, tracing
from service.http import HttpApi
from service.lane import Lane
from service.metrics import Metrics
from service.models import ServedModels
from service.proven import open_proven
from service.proving import UnprovenError
from service.readiness import Readiness
from service.reception import Reception, ReceptionMiddleware
from service.settings import SettingsError, read_settings

try:
    SETTINGS = read_settings()
    tracing.check_exporter(SETTINGS)
    logs.configure(SETTINGS)
except SettingsError as error:
    raise SystemExit(f"error: {error}") from None


def _bentoml_openapi() -> dict[str, Any]:
    service = cast("bentoml.Service[Any]", DigitClassifier)  # what the decorator makes of it
    return dict(service.openapi_spec.asdict())


GC_EVERY_OBJECTS = 50_000

HTTP = HttpApi(SETTINGS, _bentoml_openapi)
RECEPTION = Reception(SETTINGS)
fastpath.register(SETTINGS)


@bentoml.service(
    name="digit_classifier",
    workers=SETTINGS.workers,
    traffic={"timeout": SETTINGS.timeout_s},
    logging={"access": {"enabled": False}},  # see service.reception
    http={"host": "127.0.0.1"},  # whoever means all interfaces says so: --host, BENTOML_HOST
    tracing=tracing.bentoml_settings(SETTINGS),
    metrics={"enabled": False},  # see service.metrics
)
@bentoml.asgi_app(HTTP.app)
class DigitClassifier:
    """Reads handwritten digits with every proven bundle of the configured folder."""

    @bentoml.on_deployment
    def prove_once() -> None:
        """Refuse to start, in words, before any worker does: a worker that fails is restarted."""
        # In a container that it has made BentoML would not restart one: the rest would go on alone.
        os.environ.pop("BENTOML_CONTAINERIZED", None)
        try:
            open_proven(SETTINGS)
        except (BundleError, DeviceUnavailableError, UnprovenError) as error:
            raise logs.ended(SETTINGS, error) from None

    def __init__(self) -> None:
        """Prove every model in this worker, on its device; only then it answers."""
        metrics = Metrics()
        self._models = ServedModels(open_proven(SETTINGS), SETTINGS, metrics)
        self._readiness = Readiness(
            self._models, metrics, SETTINGS.golden_check_s, SETTINGS.drain_s
        )
        self._tracing = tracing.Tracing.of(SETTINGS)
        HTTP.serve(self._models, metrics, self._readiness, self._tracing)
        RECEPTION.metrics = metrics
        lane = None
        if SETTINGS.fast_path:
            lane = Lane(self._models, metrics, self._readiness, RECEPTION, self._tracing, SETTINGS)
        fastpath.install(metrics, lane)
        # What is alive now stays alive: the collector need not walk over it again and again. Nor
        # need it look at every 700 new objects: a request makes dozens, and none of them in rings.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_EVERY_OBJECTS, 20, 50)

    @bentoml.on_startup
    async def watch(self) -> None:
        """Ask golden samples now and then, and leave politely."""
        self._readiness.start()

    def __is_ready__(self) -> bool:
        """May requests be sent here? Before its models are proven a worker answers nothing."""
        return self._readiness.ready

    @bentoml.on_shutdown
    def close(self) -> None:
        """Let the batches that run end, and send the traces that are left."""
        self._models.close()
        if self._tracing is not None:
            self._tracing.close()


# What the decorator made of the class.
cast("bentoml.Service[Any]", DigitClassifier).add_asgi_middleware(
    ReceptionMiddleware, reception=RECEPTION
)
