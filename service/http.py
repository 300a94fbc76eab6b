"""The HTTP endpoints as an ASGI app of their own, mounted into BentoML's.

BentoML's declared endpoints parse before they ask: they fetch URLs given for images, turn null
into NaN, reshape what does not fit and answer errors in two shapes. Here a body is read under a
limit, checked by ``protocol`` and ``images``, and refused in one shape: {"error": "..."}.
Paths that nobody serves are still BentoML's to refuse.
"""

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from export.parity.metrics import Array
from service.adapters.digits import decode_one_image as parse_one_image
from service.adapters.digits import decode_predict as parse_predict
from service.body import read_body, uploaded_file
from service.disconnect import computed
from service.errors import ErrorKind, InvalidInputError, UnknownModelError, shown
from service.exchange import Exchange
from service.exposition import exposition
from service.features import JSON_BYTES
from service.images import read_image
from service.metrics import Metrics
from service.models import ServedModel, ServedModels
from service.oip import (
    BINARY_TYPE,
    HEADER_LENGTH,
    format_infer,
    model_metadata,
    parse_infer,
    server_metadata,
)
from service.openapi import merged_openapi
from service.pages import page_routes
from service.proven import IMAGES
from service.query import MODEL, SHOW, model_and_show
from service.readiness import Readiness
from service.responses import error_body, identity_headers, refusal, timing_headers
from service.settings import Settings
from service.tracing import Tracing
from service.waiting import Ran

Endpoint = Callable[[Request], Awaitable[Response]]
DECODERS = 2


class HttpApi:
    """Endpoints over models that are set once they are proven.

    Attributes:
        app: The ASGI app to mount.
    """

    def __init__(self, settings: Settings, base_openapi: Callable[[], dict[str, object]]) -> None:
        """Make the routes.

        Args:
            settings: Limits.
            base_openapi: BentoML's own OpenAPI document, asked for when ours is.
        """
        self._settings = settings
        self._base_openapi = base_openapi
        # Each may hold a whole decoded picture in memory.
        self._decoders = anyio.CapacityLimiter(DECODERS)
        self._models: ServedModels | None = None
        self._metrics: Metrics | None = None
        self._readiness: Readiness | None = None
        self._tracing: Tracing | None = None
        routes = [
            Route("/predict", self._guarded(self._predict), methods=["POST"]),
            Route("/predict/image", self._guarded(self._predict_image), methods=["POST"]),
            Route("/models", self._guarded(self._list_models), methods=["GET"]),
            Route("/models/{model:str}/features", self._guarded(self._features), methods=["POST"]),
            Route("/docs.json", self._guarded(self._openapi), methods=["GET"]),
            Route("/metrics", self._guarded(self._exposition), methods=["GET"]),
            Route("/healthz/deep", self._guarded(self._deep_health), methods=["GET"]),
            Route("/v2", self._guarded(self._server_metadata), methods=["GET"]),
            Route("/v2/health/{probe:str}", self._guarded(self._health), methods=["GET"]),
        ]
        for path in ("/v2/models/{model:str}", "/v2/models/{model:str}/versions/{version:str}"):
            routes += [
                Route(path, self._guarded(self._model_metadata), methods=["GET"]),
                Route(f"{path}/ready", self._guarded(self._model_ready), methods=["GET"]),
                Route(f"{path}/infer", self._guarded(self._infer), methods=["POST"]),
            ]
        routes += page_routes()
        self.app = Starlette(routes=routes)

    def serve(
        self,
        models: ServedModels,
        metrics: Metrics,
        readiness: Readiness,
        tracing: Tracing | None = None,
    ) -> None:
        """Start to answer with these models."""
        self._models, self._metrics = models, metrics
        self._readiness, self._tracing = readiness, tracing

    @property
    def models(self) -> ServedModels:
        """The models; BentoML answers nothing before its service, and so they, are made."""
        if self._models is None:
            raise RuntimeError("asked for an answer before the models were proven")
        return self._models

    async def _predict(self, request: Request) -> Response:
        body = await read_body(request, self._settings.max_body_bytes)
        asked = parse_predict(body, self._settings.limits)
        in_query, _ = model_and_show(request.query_params, (MODEL,))
        model = self.models.chosen(in_query, asked.model)
        return await self._answer(request, asked.images, model, "predict")

    async def _infer(self, request: Request) -> Response:
        model = self._model_in_path(request)
        body = await read_body(request, self._settings.max_body_bytes)
        asked = parse_infer(body, _json_length(request), model.manifest, self._settings.limits)
        outputs, ran = await computed(request, model.batcher, asked.inputs)
        content, json_length = format_infer(outputs, asked, model.manifest)
        response = self._answered(request, model, "infer", asked.samples, content, ran)
        if json_length is not None:
            response.headers[HEADER_LENGTH] = str(json_length)
            response.headers["content-type"] = BINARY_TYPE
        return response

    async def _features(self, request: Request) -> Response:
        model = self._model_in_path(request)
        shown = model.shown_features()
        body = await read_body(request, self._settings.max_body_bytes)
        images = parse_one_image(body, self._settings.limits)
        outputs, ran = await computed(request, shown.batcher, {IMAGES: images})
        response = self._answered(request, model, "features", 1, outputs[JSON_BYTES][0], ran)
        if self._settings.answer_headers:
            response.headers.update(shown.headers)
        return response

    async def _exposition(self, _: Request) -> Response:
        if self._metrics is not None:
            self._metrics.settle()
        content, media_type = await anyio.to_thread.run_sync(exposition)
        return Response(content, media_type=media_type)

    async def _server_metadata(self, _: Request) -> Response:
        return JSONResponse(server_metadata())

    async def _health(self, request: Request) -> Response:
        probe = request.path_params["probe"]
        if probe not in ("live", "ready"):
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return self._readiness_response() if probe == "ready" else JSONResponse({"live": True})

    async def _deep_health(self, _: Request) -> Response:
        failures = await self._readiness.check() if self._readiness else {}
        if failures:
            words = "; ".join(f"{name}: {', '.join(found)}" for name, found in failures.items())
            return _error(f"golden samples: {words}", HTTPStatus.SERVICE_UNAVAILABLE)
        return JSONResponse({"golden": {m.manifest.name: "right" for m in self.models.all()}})

    def _readiness_response(self, model: str | None = None) -> Response:
        if self._readiness is None or self._readiness.ready:
            return JSONResponse(({"name": model} if model else {}) | {"ready": True})
        why = "leaving" if self._readiness.draining else "a model fails its golden samples"
        return _error(f"not ready: {why}", HTTPStatus.SERVICE_UNAVAILABLE)

    async def _model_metadata(self, request: Request) -> Response:
        return JSONResponse(model_metadata(self._model_in_path(request).manifest))

    async def _model_ready(self, request: Request) -> Response:
        return self._readiness_response(self._model_in_path(request).manifest.name)

    def _model_in_path(self, request: Request) -> ServedModel:
        """The model that the path names, in the version that it may name."""
        model = self.models.get(request.path_params["model"])
        version = request.path_params.get("version", model.manifest.version)
        if version != model.manifest.version:
            raise UnknownModelError(
                f"{model.manifest.name} is served in version {model.manifest.version}, not "
                f"{shown(version)}"
            )
        return model

    async def _predict_image(self, request: Request) -> Response:
        # An unknown model is refused before any pixel is decoded.
        name, show = model_and_show(request.query_params, (MODEL, SHOW))
        model = self.models.get(name)
        body = await read_body(request, self._settings.max_body_bytes)
        content = uploaded_file(body, request.headers.get("content-type", ""))
        # Decoding a large file takes long enough to hold up every other request.
        image = await anyio.to_thread.run_sync(
            read_image, content, self._settings.max_image_pixels, limiter=self._decoders
        )
        return await self._answer(request, image[None], model, "predict_image", show=show)

    async def _answer(
        self,
        request: Request,
        images: Array,
        model: ServedModel,
        endpoint: str,
        *,
        show: bool = False,
    ) -> Response:
        inputs = model.inputs(images)
        outputs, ran = await computed(request, model.batcher, inputs)
        content = model.answer(outputs, inputs, show=show)
        return self._answered(request, model, endpoint, len(images), content, ran)

    def _answered(
        self,
        request: Request,
        model: ServedModel,
        endpoint: str,
        samples: int,
        content: bytes,
        ran: Ran,
    ) -> Response:
        exchange: Exchange = request.scope["exchange"]
        name = exchange.model = model.manifest.name
        exchange.batch_images = ran.batch_samples
        if self._metrics is not None:
            seconds = time.perf_counter() - exchange.begun_s
            self._metrics.answered(name, endpoint, samples, seconds)
        if self._tracing is not None:
            self._tracing.computed(name, ran)
        headers = {}
        if self._settings.answer_headers:
            headers = identity_headers(model) | timing_headers(ran)
        return Response(content, media_type="application/json", headers=headers)

    async def _list_models(self, _: Request) -> Response:
        cards = [
            model.card() | {"default": model.manifest.name == self.models.default}
            for model in self.models.all()
        ]
        return JSONResponse({"models": cards})

    async def _openapi(self, _: Request) -> Response:
        models = self.models.all()
        return JSONResponse(merged_openapi(self._base_openapi(), models, self._settings))

    def _guarded(self, endpoint: Endpoint) -> Endpoint:
        """Turn whatever an endpoint raises into an answer.

        An exception that leaves a mounted app is answered by nobody, and the client hangs.
        """

        async def guarded(request: Request) -> Response:
            try:
                return await endpoint(request)
            except HTTPException:
                raise  # Starlette answers, and the reception puts it in the one shape
            except ClientDisconnect:
                kind = ErrorKind.CLIENT_GONE
                response = Response(status_code=kind.status)
            except Exception as error:  # noqa: BLE001 - an answer is due, whatever it was
                refused = refusal(error, request.url.path, request.scope["exchange"].request_id)
                kind = refused.kind
                response = _error(refused.message, refused.status, refused.headers)
            if self._metrics is not None:
                self._metrics.refused(kind)
            return response

        return guarded


def _json_length(request: Request) -> str | None:
    given = request.headers.getlist(HEADER_LENGTH)
    if len(given) > 1:
        raise InvalidInputError("Inference-Header-Content-Length is given twice")
    return given[0] if given else None


def _error(message: str, status: HTTPStatus, headers: dict[str, str] | None = None) -> Response:
    return Response(
        error_body(message), status_code=status, media_type="application/json", headers=headers
    )
