"""The service's endpoints as an ASGI app, which BentoML mounts into its own.

BentoML's declared endpoints are not used: they fetch URLs given for images, turn null into NaN,
reshape arrays that do not fit, and return errors in two formats. BentoML refuses the paths that no
route serves.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio.to_thread
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from service.core import messages
from service.core.messages import Target
from service.models.registry import ServedModel
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
from service.transport.context import CONTEXT

Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(
    base_openapi: Callable[[], dict[str, Any]], further_routes: list[BaseRoute]
) -> Starlette:
    """Return the app, which can answer once the models are verified.

    Args:
        base_openapi: Returns BentoML's own OpenAPI document.
        further_routes: The routes of the web pages.
    """
    endpoints: list[tuple[str, str, Endpoint]] = [
        ("POST", "/predict", partial(_infer, "predict")),
        ("POST", "/predict/image", partial(_infer, "predict_image")),
        ("POST", "/models/{model:str}/predict", partial(_infer, "predict")),
        ("POST", "/models/{model:str}/features", partial(_infer, "features")),
        ("GET", "/models", _list_models),
        ("GET", "/docs.json", partial(_describe_api, base_openapi)),
        ("GET", "/metrics", _expose_metrics),
        ("GET", "/healthz/deep", _check_golden),
        ("GET", "/v2", _describe_server),
        ("GET", "/v2/health/live", _report_live),
        ("GET", "/v2/health/ready", _report_ready),
    ]
    for path in ("/v2/models/{model:str}", "/v2/models/{model:str}/versions/{version:str}"):
        endpoints += [
            ("GET", path, _describe_model),
            ("GET", f"{path}/ready", _report_ready),
            ("POST", f"{path}/infer", partial(_infer, "infer")),
        ]
    routes = [Route(path, endpoint, methods=[method]) for method, path, endpoint in endpoints]
    # An exception that leaves a mounted app is never answered, and the client hangs. Handlers given
    # to Starlette itself do not help: it raises an unexpected exception again.
    handlers = Middleware(ExceptionMiddleware, handlers={Exception: _answer_failure})
    return Starlette(routes=[*routes, *further_routes], middleware=[handlers])


async def _infer(endpoint: str, request: Request) -> Response:
    """Answer through the core, unless the client disconnects."""
    params, exchange = request.path_params, _exchange(request)
    target = Target(endpoint, params.get("model"), params.get("version"), request.url.query)
    CONTEXT.handler.endpoints.check_target(target)
    body = await _read_body(request, CONTEXT.settings.max_body_bytes)
    done: asyncio.Future[messages.Response] = asyncio.get_running_loop().create_future()
    asked = messages.Request(
        target,
        body,
        request.headers.get("content-type", ""),
        _json_length(request),
        exchange.request_id,
        exchange.started_s,
        lambda: not done.done(),
    )

    def respond(response: messages.Response) -> None:
        if not done.done():
            done.set_result(response)

    gone = asyncio.ensure_future(_wait_until_gone(request))
    try:
        CONTEXT.handler.handle(asked, respond)
        await asyncio.wait((done, gone), return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise ClientDisconnect
    finally:
        gone.cancel()
        done.cancel()
    response = done.result()
    exchange.model, exchange.timing = response.model, response.timing
    return _convert(response)


async def _answer_failure(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        CONTEXT.handler.record_client_gone()
        return Response(status_code=ErrorKind.CLIENT_GONE.status)
    return _convert(CONTEXT.refuse(error, request.url.path, _exchange(request).request_id))


async def _describe_api(base_openapi: Callable[[], dict[str, Any]], _: Request) -> Response:
    # Use the adapter's task, because manifests of older bundles name none.
    models = [
        model.manifest.model_copy(update={"task": model.adapter.task})
        for model in CONTEXT.handler.models.all()
    ]
    return JSONResponse(openapi_document(base_openapi(), models, CONTEXT.settings))


async def _list_models(_: Request) -> Response:
    models = CONTEXT.handler.models
    cards = [
        model.describe(is_default=model.manifest.name == models.default) for model in models.all()
    ]
    content = TypeAdapter(ModelCards).dump_json({"models": cards})
    return Response(content, media_type="application/json")


async def _expose_metrics(_: Request) -> Response:
    CONTEXT.handler.metrics.flush()
    content, media_type = await anyio.to_thread.run_sync(write_exposition)
    return Response(content, media_type=media_type)


async def _check_golden(_: Request) -> Response:
    failures = await CONTEXT.handler.health.check()
    if failures:
        words = "; ".join(f"{name}: {', '.join(found)}" for name, found in failures.items())
        return _unavailable(f"golden samples: {words}")
    names = [model.manifest.name for model in CONTEXT.handler.models.all()]
    return JSONResponse({"golden": dict.fromkeys(names, "right")})


async def _describe_server(_: Request) -> Response:
    return JSONResponse(server_metadata())


async def _describe_model(request: Request) -> Response:
    manifest = _named_model(request).manifest
    versions = CONTEXT.handler.models.list_versions(manifest.name)
    return JSONResponse(model_metadata(manifest, versions))


async def _report_live(_: Request) -> Response:
    return JSONResponse({"live": True})


async def _report_ready(request: Request) -> Response:
    """Report whether the worker is ready, and with it the model that the path names, if any."""
    named = {"name": _named_model(request).manifest.name} if request.path_params else {}
    health = CONTEXT.handler.health
    if health.is_ready:
        return JSONResponse(named | {"ready": True})
    why = (
        "the worker is shutting down" if health.is_draining else "a model fails its golden samples"
    )
    return _unavailable(f"not ready: {why}")


def _named_model(request: Request) -> ServedModel:
    params = request.path_params
    return CONTEXT.handler.models.get(params["model"], params.get("version"))


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """Read the whole body.

    Raises:
        PayloadTooLargeError: The body has, or announces, more than ``max_bytes``.
        UnsupportedMediaError: The body is compressed: a small one could fill the memory.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaError(
            f"content encoding {quote_value(encoding)} is not supported; send the body uncompressed"
        )
    transfer = request.headers.get("transfer-encoding", "chunked").strip().lower()
    if transfer != "chunked":
        raise UnsupportedMediaError(
            f"transfer encoding {quote_value(transfer)} is not supported; send the body as "
            "chunked, without compression"
        )
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise PayloadTooLargeError(
            f"the body has {int(announced):,} bytes, at most {max_bytes:,} are allowed"
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


def _exchange(request: Request) -> Exchange:
    """Return the request's record, which ``asgi_cycle`` puts into the scope."""
    found: Exchange = request.scope["exchange"]
    return found


def _convert(response: messages.Response) -> Response:
    converted = Response(response.body, status_code=response.status)
    converted.raw_headers = response.headers()
    return converted


def _unavailable(message: str) -> Response:
    return _convert(messages.refuse(ErrorKind.NOT_READY, message))
