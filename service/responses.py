"""The one shape of an error, for every way in: ``{"error": "what came, what was expected"}``."""

import json
import logging
import uuid
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ServiceError

logger = logging.getLogger("bentoml.service")


def error_body(message: str) -> bytes:
    """JSON of an error; what a client sent may hold half characters, which UTF-8 cannot say."""
    sayable = message.encode("utf-8", "backslashreplace").decode()
    return json.dumps({"error": sayable}, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Refusal:
    """What a client is told in place of an answer."""

    status: HTTPStatus
    message: str
    headers: dict[str, str] = field(default_factory=dict)


def refusal(error: Exception, where: str) -> Refusal:
    """What a client is told of an error: its own words, or of a fault here a number to ask by.

    Args:
        error: What was raised.
        where: What was asked; for the log, which alone tells of a fault.
    """
    if isinstance(error, ServiceError):
        return Refusal(error.status, str(error), error.headers)
    incident = uuid.uuid4().hex[:12]
    logger.error("incident %s at %s", incident, where, exc_info=error)
    return Refusal(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        f"the service failed, not the request; its log tells more of {incident}",
    )


class JsonErrors:
    """ASGI middleware: refusals in plain text, BentoML's for paths that nobody serves, as ours."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an app."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and put a refusal into the one shape."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = False

        async def shaped(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                refused = message["status"] >= HTTPStatus.BAD_REQUEST and kind[:10] == b"text/plain"
                if refused:
                    status = HTTPStatus(message["status"])
                    body = error_body(f"{status.phrase}: {scope['method']} {scope['path'][:200]}")
                    kept = [h for h in message["headers"] if not h[0].startswith(b"content-")]
                    length = (b"content-length", str(len(body)).encode())
                    headers = [*kept, (b"content-type", b"application/json"), length]
                    await send({**message, "headers": headers})
                    await send({"type": "http.response.body", "body": body})
            elif refused:
                return
            if not refused:
                await send(message)

        await self._app(scope, receive, shaped)
