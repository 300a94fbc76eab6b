"""The Open Inference Protocol over gRPC: a third transport over the same request handler.

BentoML has no gRPC for services of this kind, so each worker runs its own ``grpc.aio`` server in
its event loop; several workers share the port by SO_REUSEPORT. Requests are decoded by
``service.core.endpoints``, queued, limited, checked and recorded in the same way as HTTP requests.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from time import perf_counter
from typing import Any

import grpc
import grpc.aio
import msgspec

from service.core import messages
from service.core.messages import Target
from service.observability.records import Exchange
from service.protocol.errors import UnknownModelError
from service.protocol.grpc_messages import (
    SERVICE,
    encode_message,
    encode_model_metadata,
    encode_server_metadata,
    parse_message,
)
from service.settings import Settings, SettingsError
from service.transport.context import CONTEXT
from service.transport.gate import REQUEST_ID

# gRPC codes of the HTTP statuses (https://grpc.io/docs/guides/status-codes). A request that is too
# large is INVALID_ARGUMENT, because RESOURCE_EXHAUSTED would make clients retry it.
CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
# As over HTTP, health needs no key.
OPEN_METHODS = {"ServerLive", "ServerReady"}

Answer = Callable[[bytes, Exchange], Awaitable[messages.Response]]


class GrpcServer:
    """The gRPC server of one worker."""

    def __init__(self, settings: Settings) -> None:
        """Use these settings; the server does not listen before ``start``."""
        self._settings = settings
        self._address = f"{settings.grpc_host}:{settings.grpc_port}"
        self._server: grpc.aio.Server | None = None

    def require_free_port(self) -> None:
        """Check that the workers will be able to listen.

        Raises:
            SettingsError: The address cannot be bound.
        """
        host, port = self._settings.grpc_host, self._settings.grpc_port
        try:
            socket.create_server((host, port or 0)).close()
        except OSError as error:
            raise SettingsError(
                f"gRPC cannot listen on {self._address}: {error.strerror or error}; set "
                "INFERENCE_GRPC_PORT and INFERENCE_GRPC_HOST to a free address of this machine"
            ) from error

    async def start(self) -> None:
        """Start to listen in the running event loop; the models must be verified."""
        settings = self._settings
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", int(settings.workers > 1)),
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.server_handshake_timeout_ms", int(1000 * settings.slow_client_s)),
            ],
            maximum_concurrent_rpcs=settings.max_connections,
        )
        answers: dict[str, Answer] = {
            "ServerLive": _report_live,
            "ServerReady": _report_ready,
            "ServerMetadata": _describe_server,
            "ModelReady": _report_model_ready,
            "ModelMetadata": _describe_model,
            "ModelInfer": _infer,
        }
        # Without serializers, the methods receive and return bytes.
        methods = {
            name: grpc.unary_unary_rpc_method_handler(partial(_serve, name, answer))
            for name, answer in answers.items()
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
        server.add_insecure_port(self._address)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Accept no further requests, and wait for the accepted ones."""
        if self._server is not None:
            await self._server.stop(self._settings.timeout_s)


async def _serve(
    method: str, answer: Answer, content: bytes, context: "grpc.aio.ServicerContext[Any, Any]"
) -> bytes:
    """Check, answer and record one request; a refusal ends it with its status code."""
    gate = CONTEXT.gate
    headers = [(name.encode(), _to_bytes(value)) for name, value in context.invocation_metadata()]
    request_id = gate.choose_request_id(dict(headers).get(REQUEST_ID))
    path = f"/{SERVICE}/{method}"
    exchange = Exchange(request_id, perf_counter(), _client(context.peer()), "POST", path)
    try:
        if method not in OPEN_METHODS:
            gate.check_key(headers)
        response = await answer(content, exchange)
    except asyncio.CancelledError:
        CONTEXT.handler.record_client_gone()
        raise
    except Exception as error:  # noqa: BLE001 - the client must be answered
        response = CONTEXT.refuse(error, path, request_id)
    if gate.is_recording:
        exchange.model, exchange.timing = response.model, response.timing
        gate.record(exchange, headers, response.status)
    metadata = [
        (name.decode(), value.decode("latin-1"))
        for name, value in response.headers()
        if not name.startswith(b"content-")
    ]
    metadata.append((REQUEST_ID.decode(), request_id.decode("latin-1")))
    if response.kind is not None:
        code = CODES.get(response.status, grpc.StatusCode.INVALID_ARGUMENT)
        await context.abort(code, msgspec.json.decode(response.body)["error"], tuple(metadata))
    context.set_trailing_metadata(tuple(metadata))
    return response.body


async def _infer(content: bytes, exchange: Exchange) -> messages.Response:
    """Answer through the core, unless the client cancels the request."""
    done: asyncio.Future[messages.Response] = asyncio.get_running_loop().create_future()

    def respond(response: messages.Response) -> None:
        if not done.done():
            done.set_result(response)

    request = messages.Request(
        Target("infer_grpc"),
        content,
        "",
        None,
        exchange.request_id,
        exchange.started_s,
        lambda: not done.done(),
    )
    CONTEXT.handler.handle(request, respond)
    return await done


async def _report_live(_: bytes, __: Exchange) -> messages.Response:
    return _ok(encode_message("ServerLiveResponse", live=True))


async def _report_ready(_: bytes, __: Exchange) -> messages.Response:
    return _ok(encode_message("ServerReadyResponse", ready=CONTEXT.handler.health.is_ready))


async def _report_model_ready(content: bytes, _: Exchange) -> messages.Response:
    """Report whether a model is ready; false if it is not served, as Triton does."""
    asked = parse_message("ModelReadyRequest", content)
    try:
        CONTEXT.handler.models.get(asked.name, asked.version or None)
    except UnknownModelError:
        return _ok(encode_message("ModelReadyResponse", ready=False))
    return _ok(encode_message("ModelReadyResponse", ready=CONTEXT.handler.health.is_ready))


async def _describe_server(_: bytes, __: Exchange) -> messages.Response:
    return _ok(encode_server_metadata())


async def _describe_model(content: bytes, _: Exchange) -> messages.Response:
    asked = parse_message("ModelMetadataRequest", content)
    models = CONTEXT.handler.models
    model = models.get(asked.name, asked.version or None)
    return _ok(encode_model_metadata(model.manifest, models.list_versions(model.manifest.name)))


def _ok(body: bytes) -> messages.Response:
    return messages.Response(HTTPStatus.OK, b"", body)


def _to_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _client(peer: str) -> tuple[str, int] | None:
    """Parse address and port from gRPC's name of a peer, such as "ipv4:127.0.0.1:5000"."""
    host, _, port = peer.partition(":")[2].rpartition(":")
    return (host, int(port)) if port.isdigit() else None
