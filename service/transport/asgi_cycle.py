"""Runs one request as a task of BentoML's ASGI app, and writes its response into its slot.

uvicorn's own ``RequestResponseCycle`` does the work. This adds what every response of the service
has: a request id, security headers, and errors as JSON.
"""

import asyncio
import logging
import urllib.parse
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.core.messages import encode_error
from service.protocol.errors import ErrorKind
from service.transport.context import CONTEXT, SECURITY_HEADERS
from service.transport.slots import ResponseSlot

logger = logging.getLogger("uvicorn.error")

# Refusals of BentoML and Starlette that come in plain text; other plain text is a fault.
PLAIN_TEXT_KINDS = {404: ErrorKind.UNKNOWN_PATH, 405: ErrorKind.WRONG_METHOD}
LONGEST_PATH = 200


class Flow(FlowControl):
    """Flow control whose reading side the connection decides, for all its requests together."""

    def set_reading_paused(self, should_pause: bool) -> None:
        """Pause or resume reading."""
        if should_pause:
            super().pause_reading()
        else:
            super().resume_reading()

    def pause_reading(self) -> None:
        """Do nothing: called by uvicorn for one request."""

    def resume_reading(self) -> None:
        """Do nothing: called by uvicorn for one request."""


class _SlotTransport:
    """A response slot in the place of the transport that uvicorn writes to."""

    def __init__(self, cycle: "AsgiCycle", slot: ResponseSlot) -> None:
        self._cycle, self._slot = cycle, slot

    def write(self, data: bytes) -> None:
        self._slot.write(data)

    def is_closing(self) -> bool:
        return not self._slot.is_connected()

    def close(self) -> None:
        """Close the connection after the response, or now if it broke off."""
        self._slot.keep_alive = False
        if not self._cycle.response_complete:
            self._slot.connection.transport.close()


class AsgiCycle(RequestResponseCycle):
    """One request and its response, by an ASGI task."""

    def __init__(
        self,
        slot: ResponseSlot,
        scope: dict[str, Any],
        url: Any,
        flow: Flow,
        default_headers: list[tuple[bytes, bytes]],
    ) -> None:
        """Prepare the task.

        Args:
            slot: The place of its response.
            scope: The ASGI scope, without what the URL says.
            url: The parsed URL.
            flow: The connection's flow control.
            default_headers: uvicorn's headers of every response.
        """
        path = url.path.decode("ascii")
        scope["path"] = scope["root_path"] + urllib.parse.unquote(path)
        scope["raw_path"] = scope["root_path"].encode("ascii") + url.path
        scope["query_string"] = url.query or b""
        self._slot, self._exchange = slot, slot.make_exchange()
        self._exchange.path = scope["raw_path"].decode("latin-1")
        scope["exchange"] = self._exchange
        self._task: asyncio.Task[None] | None = None
        self._is_replaced = False
        expect = dict(slot.headers).get(b"expect", b"")
        super().__init__(
            scope=scope,  # type: ignore[arg-type] # an HTTPScope
            transport=_SlotTransport(self, slot),  # type: ignore[arg-type] # what uvicorn calls
            flow=flow,
            logger=logger,
            access_logger=logger,
            access_log=False,
            default_headers=default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=expect.lower() == b"100-continue",
            keep_alive=slot.keep_alive,
            on_response=slot.complete,
        )

    @property
    def is_body_full(self) -> bool:
        """Whether more of the body came than the task has read, so that reading should pause."""
        return len(self.body) > HIGH_WATER_LIMIT and not self.response_complete

    def start(self, app: Any, tasks: "set[asyncio.Task[None]]") -> None:
        """Run the task, unless it runs already."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self.run_asgi(app))
            self._task.add_done_callback(tasks.discard)
            tasks.add(self._task)

    def receive_body(self, data: bytes) -> None:
        """Take a part of the body."""
        self.body += data
        self.message_event.set()

    def end_body(self) -> None:
        """End the body."""
        self.more_body = False
        self.message_event.set()

    def disconnect(self) -> None:
        """Tell the task that the client has gone."""
        self.disconnected = True
        self.message_event.set()

    async def receive(self) -> Any:
        """Return the next part of the body, or that the client has gone."""
        message = await super().receive()
        self._slot.connection.update_reading()
        return message

    async def send(self, message: Any) -> None:
        """Write a part of the response; replace errors in plain text by JSON."""
        if message["type"] == "http.response.start":
            await self._send_start(message["status"], list(message.get("headers", [])))
        elif not self._is_replaced:
            await super().send(message)

    async def _send_start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        body, named = b"", dict(headers)
        is_text = named.get(b"content-type", b"").startswith(b"text/plain")
        self._is_replaced = status >= HTTPStatus.BAD_REQUEST and is_text
        if self._is_replaced:
            self._record_refusal(status)
            body = encode_error(self._describe_refusal(status, named.get(b"allow", b"")))
            headers = [header for header in headers if not header[0].startswith(b"content-")]
            headers.append((b"content-type", b"application/json"))
            headers.append((b"content-length", str(len(body)).encode()))
        slot = self._slot
        if slot.connection.closes_after(slot):
            self.keep_alive = slot.keep_alive = False
        elif slot.http_version == "1.0":
            # Without a length the end of the connection ends the response.
            self.keep_alive = slot.keep_alive = b"content-length" in dict(headers)
            if slot.keep_alive:
                headers.append((b"connection", b"keep-alive"))
        headers += [*SECURITY_HEADERS, (b"x-request-id", slot.request_id)]
        if CONTEXT.gate is not None and CONTEXT.gate.is_recording:
            CONTEXT.gate.record(self._exchange, slot.headers, status)
        await super().send({"type": "http.response.start", "status": status, "headers": headers})
        if self._is_replaced:
            await super().send({"type": "http.response.body", "body": body})

    def _record_refusal(self, status: int) -> None:
        is_health = CONTEXT.gate is not None and self.scope["path"] in CONTEXT.gate.open_paths
        if CONTEXT.metrics is not None and not is_health:
            CONTEXT.metrics.record_refusal(PLAIN_TEXT_KINDS.get(status, ErrorKind.INTERNAL))

    def _describe_refusal(self, status: int, allow: bytes) -> str:
        words = f"{HTTPStatus(status).phrase}: {self.scope['method']} "
        words += self.scope["path"][:LONGEST_PATH]
        if allow:  # Starlette lists the methods in any order
            words += f"; allowed: {', '.join(sorted(allow.decode().split(', ')))}"
        return words
