"""Runs one request as a task of BentoML's ASGI app, and writes its response into its slot.

uvicorn's own ``RequestResponseCycle`` does the work. This module adds what every response of the
service has: a request id, security headers, and errors as JSON.
"""

import asyncio
import logging
import urllib.parse
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.utils import get_local_addr, is_ssl

from service.core.messages import Response, refuse
from service.protocol.errors import ErrorKind
from service.transport.context import CONTEXT, SECURITY_HEADERS
from service.transport.slots import ResponseSlot

logger = logging.getLogger("uvicorn.error")

# Refusals that BentoML and Starlette send as plain text; other plain-text errors are failures.
PLAIN_TEXT_KINDS = {404: ErrorKind.UNKNOWN_PATH, 405: ErrorKind.WRONG_METHOD}
LONGEST_PATH = 200


@dataclass(eq=False)
class AsgiSlot(ResponseSlot, RequestResponseCycle):
    """The slot of a response that an ASGI task writes; it is the transport for uvicorn's cycle."""

    def __post_init__(self) -> None:
        """Prepare the scope of the ASGI task."""
        connection, config = self.connection, self.connection.config
        parsed = httptools.parse_url(self.url)
        self._exchange = self.make_exchange()
        raw_path = config.root_path.encode("ascii") + parsed.path
        self._exchange.path = raw_path.decode("latin-1")
        scope = {
            "type": "http",
            "asgi": {"version": config.asgi_version, "spec_version": "2.3"},
            "http_version": self.http_version,
            "server": get_local_addr(connection.transport),
            "client": self._exchange.client,
            "scheme": "https" if is_ssl(connection.transport) else "http",
            "method": self.method,
            "root_path": config.root_path,
            "path": config.root_path + urllib.parse.unquote(parsed.path.decode("ascii")),
            "raw_path": raw_path,
            "query_string": parsed.query or b"",
            "headers": self.headers,
            "state": connection.app_state.copy(),
            "exchange": self._exchange,
        }
        RequestResponseCycle.__init__(
            self,
            scope=scope,  # type: ignore[arg-type] # an HTTPScope
            transport=self,  # type: ignore[arg-type] # what uvicorn calls of it
            flow=connection.flow,
            logger=logger,
            access_logger=logger,
            access_log=False,
            default_headers=[
                *connection.state.default_headers,
                *SECURITY_HEADERS,
                (b"x-request-id", self.request_id),
            ],
            message_event=asyncio.Event(),
            expect_100_continue=dict(self.headers).get(b"expect", b"").lower() == b"100-continue",
            keep_alive=self.keep_alive,
            on_response=self.complete,
        )

    @property
    def is_body_full(self) -> bool:
        """Whether more of the body waits for the task than uvicorn's high-water limit."""
        return len(self.body) > HIGH_WATER_LIMIT and not self.response_complete

    def take_turn(self) -> None:
        """Write the response if it is ready; otherwise run the task."""
        super().take_turn()
        if not self.is_complete:
            tasks, app = self.connection.state.tasks, self.connection.config.loaded_app
            task = asyncio.get_running_loop().create_task(self.run_asgi(app))
            task.add_done_callback(tasks.discard)
            tasks.add(task)

    def receive_body(self, data: bytes) -> None:
        """Buffer a part of the request's body for the task."""
        self.body += data
        self.message_event.set()

    def end_body(self) -> None:
        """Signal the task that the body has ended."""
        self.more_body = False
        self.message_event.set()

    def disconnect(self) -> None:
        """Signal the task that the client has disconnected."""
        self.disconnected = True
        self.message_event.set()

    def is_closing(self) -> bool:
        """Whether the client has disconnected; uvicorn calls this method of its transport."""
        return not self.is_connected()

    def close(self) -> None:
        """Close after the response, or at once if it is incomplete; called by uvicorn."""
        self.keep_alive = False
        if not self.response_complete:
            self.connection.transport.close()

    async def receive(self) -> Any:
        """Return the next part of the body, or the client's disconnect."""
        message = await super().receive()
        self.connection.update_reading()
        return message

    async def send(self, message: Any) -> None:
        """Write a part of the response; replace plain-text errors with JSON."""
        if message["type"] != "http.response.start":
            await super().send(message)
            return
        status, headers, body = message["status"], list(message.get("headers", [])), None
        named = dict(headers)
        is_text = named.get(b"content-type", b"").startswith(b"text/plain")
        if status >= HTTPStatus.BAD_REQUEST and is_text:
            refusal = self._make_refusal(status, named.get(b"allow", b""))
            headers = [header for header in headers if not header[0].startswith(b"content-")]
            headers += refusal.headers()
            body = refusal.body
        if self.connection.closes_after(self):
            self.keep_alive = False
        elif self.http_version == "1.0":
            # Without a length, only closing the connection marks the end of the response.
            self.keep_alive = b"content-length" in dict(headers)
            if self.keep_alive:
                headers.append((b"connection", b"keep-alive"))
        if CONTEXT.gate.is_recording:
            CONTEXT.gate.record(self._exchange, self.headers, status)
        await super().send({"type": "http.response.start", "status": status, "headers": headers})
        if body is not None:
            await super().send({"type": "http.response.body", "body": body})
            self.disconnect()  # so that uvicorn drops the plain-text body

    def _make_refusal(self, status: int, allow: bytes) -> Response:
        kind, path = PLAIN_TEXT_KINDS.get(status, ErrorKind.INTERNAL), self.scope["path"]
        if path not in CONTEXT.gate.open_paths:
            CONTEXT.handler.metrics.record_refusal(kind)
        words = f"{HTTPStatus(status).phrase}: {self.method} {path[:LONGEST_PATH]}"
        if allow:  # Starlette lists the methods in arbitrary order
            words += f"; allowed: {', '.join(sorted(allow.decode().split(', ')))}"
        return refuse(kind, words)
