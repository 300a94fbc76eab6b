"""The service's endpoints as an ASGI app, which BentoML mounts into its own.

BentoML's declared endpoints are not used: they fetch URLs given for images, turn null into NaN,
reshape what does not fit, and answer errors in two shapes. Paths that no route serves are BentoML's
to refuse.
"""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from time import perf_counter
from typing import Any

import anyio.to_thread
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from service.core import messages
from service.core.handler import Handler
from service.core.messages import Target
from service.models.registry import ModelRegistry
from service.observability.exposition import write_exposition
from service.observability.records import Exchange
from service.openapi.document import openapi_document
from service.protocol.answers import ModelCards
from service.protocol.errors import (
    ErrorKind,
    InvalidInputError,
    PayloadTooLargeError,
    UnsupportedMediaError,
    quote_value,
)
from service.protocol.oip import HEADER_LENGTH, model_metadata, server_metadata
from service.settings import Settings

Endpoint = Callable[[Request], Awaitable[Response]]
MODEL_PATHS = ("/v2/models/{model:str}", "/v2/models/{model:str}/versions/{version:str}")


class HttpApi:
    """The endpoints, over models that are set once they are verified.

    Attributes:
        app: The ASGI app to mount.
    """

    def __init__(
        self,
        settings: Settings,
        base_openapi: Callable[[], dict[str, Any]],
        further_routes: list[BaseRoute],
    ) -> None:
        """Make the routes.

        Args:
            settings: Limits.
            base_openapi: Returns BentoML's own OpenAPI document.
            further_routes: The pages' routes.
        """
        self._settings, self._base_openapi = settings, base_openapi
        self._models: ModelRegistry | None = None
        self._handler: Handler | None = None
        routes = [
            self._route("POST", "/predict", self._infer_by("predict")),
            self._route("POST", "/predict/image", self._infer_by("predict_image")),
            self._route("POST", "/models/{model:str}/predict", self._infer_by("predict")),
            self._route("POST", "/models/{model:str}/features", self._infer_by("features")),
            self._route("GET", "/models", self._list_models),
            self._route("GET", "/docs.json", self._describe_api),
            self._route("GET", "/metrics", self._expose_metrics),
            self._route("GET", "/healthz/deep", self._check_golden),
            self._route("GET", "/v2", self._describe_server),
            self._route("GET", "/v2/health/{probe:str}", self._report_health),
        ]
        for path in MODEL_PATHS:
            routes += [
                self._route("GET", path, self._describe_model),
                self._route("GET", f"{path}/ready", self._report_model_ready),
                self._route("POST", f"{path}/infer", self._infer_by("infer")),
            ]
        self.app = Starlette(routes=[*routes, *further_routes])

    def serve(self, models: ModelRegistry, handler: Handler) -> None:
        """Begin to answer with these models."""
        self._models, self._handler = models, handler

    @property
    def models(self) -> ModelRegistry:
        """The models; BentoML sends no request before its service, and so they, are made."""
        if self._models is None:
            raise RuntimeError("a request came before the models were verified")
        return self._models

    @property
    def handler(self) -> Handler:
        """The core."""
        if self._handler is None:
            raise RuntimeError("a request came before the models were verified")
        return self._handler

    def _route(self, method: str, path: str, endpoint: Endpoint) -> Route:
        return Route(path, self._guard(endpoint), methods=[method])

    def _guard(self, endpoint: Endpoint) -> Endpoint:
        """Turn whatever an endpoint raises into a response.

        An exception that leaves a mounted app is answered by nobody, and the client hangs.
        """

        async def guarded(request: Request) -> Response:
            try:
                return await endpoint(request)
            except HTTPException:
                raise  # Starlette answers it, and ``asgi_cycle`` makes it JSON
            except ClientDisconnect:
                if self._handler is not None:
                    self._handler.record_client_gone()
                return Response(status_code=ErrorKind.CLIENT_GONE.status)
            except Exception as error:  # noqa: BLE001 - the client must be answered
                request_id = b"" if (seen := _exchange(request)) is None else seen.request_id
                if self._handler is None:
                    return _convert(messages.describe_failure(error, request.url.path, request_id))
                return _convert(self._handler.refuse(error, request.url.path, request_id))

        return guarded

    def _infer_by(self, endpoint: str) -> Endpoint:
        async def infer(request: Request) -> Response:
            target = Target(
                endpoint,
                request.path_params.get("model"),
                request.path_params.get("version"),
                request.url.query,
            )
            self.handler.endpoints.check_target(target)
            body = await _read_body(request, self._settings.max_body_bytes)
            return await self._handle(request, target, body)

        return infer

    async def _handle(self, request: Request, target: Target, body: bytes) -> Response:
        """Have the core answer, as long as the client is there."""
        done: asyncio.Future[messages.Response] = asyncio.get_running_loop().create_future()
        exchange = _exchange(request)
        asked = messages.Request(
            target,
            body,
            request.headers.get("content-type", ""),
            _json_length(request),
            b"" if exchange is None else exchange.request_id,
            perf_counter() if exchange is None else exchange.started_s,
            lambda: not done.done(),
        )

        def respond(response: messages.Response) -> None:
            if not done.done():
                done.set_result(response)

        gone = asyncio.ensure_future(_wait_until_gone(request))
        try:
            self.handler.handle(asked, respond)
            await asyncio.wait((done, gone), return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                raise ClientDisconnect
        finally:
            gone.cancel()
            done.cancel()
        response = done.result()
        if exchange is not None:
            exchange.model, exchange.timing = response.model, response.timing
        return _convert(response)

    async def _list_models(self, _: Request) -> Response:
        default = self.models.default
        cards = [
            model.describe(is_default=model.manifest.name == default) for model in self.models.all()
        ]
        content = TypeAdapter(ModelCards).dump_json({"models": cards})
        return Response(content, media_type="application/json")

    async def _describe_api(self, _: Request) -> Response:
        # The adapter's task, because manifests of older bundles give none.
        models = [
            model.manifest.model_copy(update={"task": model.adapter.task})
            for model in self.models.all()
        ]
        return JSONResponse(openapi_document(self._base_openapi(), models, self._settings))

    async def _expose_metrics(self, _: Request) -> Response:
        self.handler.metrics.flush()
        content, media_type = await anyio.to_thread.run_sync(write_exposition)
        return Response(content, media_type=media_type)

    async def _check_golden(self, _: Request) -> Response:
        failures = await self.handler.health.check()
        if failures:
            words = "; ".join(f"{name}: {', '.join(found)}" for name, found in failures.items())
            return _unavailable(f"golden samples: {words}")
        return JSONResponse({"golden": {m.manifest.name: "right" for m in self.models.all()}})

    async def _describe_server(self, _: Request) -> Response:
        return JSONResponse(server_metadata())

    async def _report_health(self, request: Request) -> Response:
        probe = request.path_params["probe"]
        if probe not in ("live", "ready"):
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return self._readiness_response() if probe == "ready" else JSONResponse({"live": True})

    async def _describe_model(self, request: Request) -> Response:
        params = request.path_params
        model = self.models.get(params["model"], params.get("version"))
        return JSONResponse(model_metadata(model.manifest))

    async def _report_model_ready(self, request: Request) -> Response:
        params = request.path_params
        model = self.models.get(params["model"], params.get("version"))
        return self._readiness_response(model.manifest.name)

    def _readiness_response(self, model: str | None = None) -> Response:
        health = self.handler.health
        if health.is_ready:
            return JSONResponse(({"name": model} if model else {}) | {"ready": True})
        why = "leaving" if health.is_draining else "a model fails its golden samples"
        return _unavailable(f"not ready: {why}")


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """Read the whole body.

    Raises:
        PayloadTooLargeError: It has, or announces, more than ``max_bytes``.
        UnsupportedMediaError: It is compressed: a small body could fill the memory.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaError(
            f"content encoding {quote_value(encoding)} is not read; send the body as it is"
        )
    transfer = request.headers.get("transfer-encoding", "chunked").strip().lower()
    if transfer != "chunked":
        raise UnsupportedMediaError(
            f"transfer encoding {quote_value(transfer)} is not read; send the body in plain chunks"
        )
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise PayloadTooLargeError(
            f"the body has {int(announced):,} bytes, at most {max_bytes:,} are read"
        )
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise PayloadTooLargeError(f"the body has more than the {max_bytes:,} bytes allowed")
    return b"".join(parts)


def _json_length(request: Request) -> str | None:
    given = request.headers.getlist(HEADER_LENGTH)
    if len(given) > 1:
        raise InvalidInputError("Inference-Header-Content-Length is given twice")
    return given[0] if given else None


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _exchange(request: Request) -> Exchange | None:
    """Return the record of the request, which ``asgi_cycle`` puts into the scope."""
    found: Exchange | None = request.scope.get("exchange")
    return found


def _convert(response: messages.Response) -> Response:
    converted = Response(response.body, status_code=response.status)
    converted.raw_headers = response.headers()
    return converted


def _unavailable(message: str) -> Response:
    return _convert(messages.refuse(ErrorKind.NOT_READY, message))
