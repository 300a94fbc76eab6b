"""What every request meets at the door, on either way in: a key, an id, a line in the log."""

import asyncio
import hmac
import logging
import os
import time
from collections.abc import Iterable
from http import HTTPStatus
from itertools import count

from opentelemetry.trace import Span, SpanContext, get_current_span
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ErrorKind, InvalidInputError, ServiceError, UnauthorizedError
from service.exchange import Exchange
from service.logs import trace_fields
from service.metrics import Metrics
from service.responses import error_body
from service.settings import Settings
from service.tracing import describe
from service.web import PAGE_PATHS

REQUEST_ID = b"x-request-id"
LONGEST_ID = 128
# What a browser must not do with any answer; ``pages`` says more of its own.
SECURITY_HEADERS = [(b"x-content-type-options", b"nosniff")]
# Whoever watches the process needs no key, and learns nothing but whether it is up; nor does the
# page, which asks the person for it.
OPEN_PATHS = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready", *PAGE_PATHS}
BEARER = b"bearer "

# Refusals of BentoML's that come in plain text; what else comes so is a fault.
PLAIN_KINDS = {404: ErrorKind.UNKNOWN_PATH, 405: ErrorKind.WRONG_METHOD}

logger = logging.getLogger("bentoml.access")  # BentoML shows its own loggers alone


class Reception:
    """The rules, for the ordinary way and for the short one.

    Attributes:
        metrics: Told of refusals, once there are any.
    """

    metrics: Metrics | None = None

    def __init__(self, settings: Settings) -> None:
        """Take the key and the share of requests that are logged from the settings."""
        key = settings.api_key
        self._key = None if key is None else key.get_secret_value().encode()
        self._log_share, self._due = settings.access_log_share, 0.0
        self.logs = settings.access_log_share > 0
        self._prefix, self._numbers = os.urandom(4).hex().encode(), count(1)

    def check_key(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Let through who brings the key, if there is one.

        Raises:
            UnauthorizedError: No key came, or another one.
        """
        if self._key is None:
            return
        given = b""
        for name, value in headers:
            if name == b"x-api-key":
                given = value
            elif name == b"authorization" and value[: len(BEARER)].lower() == BEARER:
                given = value[len(BEARER) :].strip()
        if not hmac.compare_digest(given, self._key):
            what = "another API key came" if given else "no API key came"
            raise UnauthorizedError(
                f"{what}; send the service's as Authorization: Bearer KEY, or as X-Api-Key: KEY"
            )

    def request_id(self, given: bytes | None) -> bytes:
        """The client's own id if it is of moderate length, else a new one."""
        if given and len(given) <= LONGEST_ID:
            return given
        return b"%b-%x" % (self._prefix, next(self._numbers))

    def refused(self, kind: ErrorKind) -> None:
        """A request was refused at the door."""
        if self.metrics is not None:
            self.metrics.refused(kind)

    def log(self, exchange: Exchange, status: int, seconds: float, span: SpanContext) -> None:
        """Write one line for so many requests as the share says; in JSON it has fields.

        Args:
            exchange: The request.
            status: HTTP's.
            seconds: From the end of its head to its answer.
            span: The request's, if it is traced.
        """
        self._due += self._log_share
        if self._due < 1:
            return
        self._due -= 1
        client, path = exchange.client, exchange.path[:200]
        fields = {
            "client": f"{client[0]}:{client[1]}" if client else "-",
            "method": exchange.method,
            "path": path,
            "status": status,
            "duration_s": round(seconds, 6),
            "request_id": exchange.request_id.decode("latin-1"),
        }
        said = (fields["client"], exchange.method, path, status, 1000 * seconds)
        if exchange.model is not None:
            fields |= {"model": exchange.model, "batch_images": exchange.batch_images}
        fields |= trace_fields(span)
        logger.info('%s "%s %s" %d %.3f ms %s', *said, fields["request_id"], extra=fields)


def check_host(scope: Scope) -> None:
    """A request of HTTP/1.1 names the host that it wants, once (RFC 9112, 3.2).

    Raises:
        InvalidInputError: None, several, or one of several words.
    """
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if scope["http_version"] == "1.0" and not hosts:
        return
    if len(hosts) != 1 or b" " in hosts[0]:
        raise InvalidInputError("the header Host must name one host, once")


class ReceptionMiddleware:
    """The rules around an ASGI app; and refusals in plain text, as BentoML's, become ours."""

    def __init__(self, app: ASGIApp, reception: Reception) -> None:
        """Wrap an app."""
        self._app, self._reception = app, reception

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answering = _Answering(self._reception, scope, send)
        try:
            check_host(scope)
            if scope["path"] not in OPEN_PATHS:
                self._reception.check_key(scope["headers"])
        except ServiceError as error:
            await answering.refuse(error)
        else:
            try:
                await self._app(scope, receive, answering.send)
            except asyncio.CancelledError:  # BentoML answers by itself what took too long
                answering.gave_up()
                raise


class _Answering:
    """One request on the ordinary way, from here to its answer."""

    def __init__(self, reception: Reception, scope: Scope, send: Send) -> None:
        self._reception, self._scope, self._send = reception, scope, send
        given = dict(scope["headers"]).get(REQUEST_ID)
        self._exchange = scope["exchange"] = Exchange(
            reception.request_id(given),
            time.perf_counter(),
            scope["client"],
            scope["method"],
            scope["raw_path"].decode("latin-1"),
        )
        self._replaced = False

    async def refuse(self, error: ServiceError) -> None:
        """Answer in place of the app."""
        self._reception.refused(error.kind)
        body = error_body(str(error))
        headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
        await self._start(error.status, _as_json(headers, body))
        await self._send({"type": "http.response.body", "body": body})

    def gave_up(self) -> None:
        """Note a request that BentoML answers with 504."""
        self._reception.refused(ErrorKind.DEADLINE)
        self._log(ErrorKind.DEADLINE.status, get_current_span())

    async def send(self, message: Message) -> None:
        """Pass the app's answer on."""
        if message["type"] == "http.response.start":
            status, headers = message["status"], list(message["headers"])
            named = dict(headers)
            kind = named.get(b"content-type", b"")
            self._replaced = status >= HTTPStatus.BAD_REQUEST and kind[:10] == b"text/plain"
            if not self._replaced:
                await self._start(status, headers)
                return
            if self._scope["path"] not in OPEN_PATHS:
                self._reception.refused(PLAIN_KINDS.get(status, ErrorKind.INTERNAL))
            asked = f"{self._scope['method']} {self._scope['path'][:200]}"
            if b"allow" in named:  # of Starlette, which knows no order
                asked += f"; allowed: {', '.join(sorted(named[b'allow'].decode().split(', ')))}"
            body = error_body(f"{HTTPStatus(status).phrase}: {asked}")
            await self._start(status, _as_json(headers, body))
            await self._send({"type": "http.response.body", "body": body})
        elif not self._replaced:
            await self._send(message)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        further = [*SECURITY_HEADERS, (REQUEST_ID, self._exchange.request_id)]
        message = {"type": "http.response.start", "status": status, "headers": headers + further}
        self._log(status, get_current_span())
        await self._send(message)

    def _log(self, status: int, span: Span) -> None:
        describe(span, self._exchange.request_id)
        if self._reception.logs:
            seconds = time.perf_counter() - self._exchange.begun_s
            self._reception.log(self._exchange, status, seconds, span.get_span_context())


def _as_json(headers: list[tuple[bytes, bytes]], body: bytes) -> list[tuple[bytes, bytes]]:
    kept = [header for header in headers if not header[0].startswith(b"content-")]
    length = (b"content-length", str(len(body)).encode())
    return [*kept, (b"content-type", b"application/json"), length]
