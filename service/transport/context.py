"""State that all connections of a worker share."""

from service.core.handler import Handler
from service.core.messages import Response, describe_failure
from service.settings import Settings
from service.transport.direct_router import DirectHead, DirectRouter
from service.transport.gate import RequestGate

LARGEST_REMEMBERED_HEAD, MOST_REMEMBERED_HEADS = 2048, 1024
# A browser must not guess another content type for any answer.
SECURITY_HEADERS = [(b"x-content-type-options", b"nosniff")]


class ServerContext:
    """State that all connections of a worker share.

    Attributes:
        settings: The settings; the defaults until the models are verified.
        accepted: The number of connections accepted so far.
        is_draining: Whether each response closes its connection.
        is_sweeping: Whether the timeouts of connections are being checked periodically.
        remembered: Parsed heads by their bytes, so that they are not parsed again.
    """

    def __init__(self) -> None:
        self.settings = Settings()
        self.gate, self.router = RequestGate(self.settings), DirectRouter([])
        self._handler: Handler | None = None
        self.accepted = 0
        self.is_draining = self.is_sweeping = False
        self.remembered: dict[bytes, DirectHead] = {}
        self._default_headers: list[tuple[bytes, bytes]] = []
        self._default_lines = b""

    def serve(self, gate: RequestGate, handler: Handler, settings: Settings) -> None:
        """Start to answer with the handler's verified models."""
        self.gate, self._handler, self.settings = gate, handler, settings

    def route(self, router: DirectRouter) -> None:
        """Let these URLs bypass ASGI from now on, and no others."""
        self.router = router
        self.remembered.clear()

    @property
    def is_ready(self) -> bool:
        """Whether the models are verified."""
        return self._handler is not None

    @property
    def handler(self) -> Handler:
        """The core's handler; no endpoint is called before it is set."""
        if self._handler is None:
            raise RuntimeError("a request arrived before the models were verified")
        return self._handler

    def refuse(self, error: Exception, where: str, request_id: bytes) -> Response:
        """Return the response for an exception; record it if metrics exist already."""
        if self._handler is None:
            return describe_failure(error, where, request_id)
        return self._handler.refuse(error, where, request_id)

    def default_lines(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return uvicorn's default headers as lines; uvicorn makes a new list each second."""
        if headers is not self._default_headers:
            self._default_headers = headers
            lines = [b"%b: %b\r\n" % header for header in [*headers, *SECURITY_HEADERS]]
            self._default_lines = b"".join(lines)
        return self._default_lines

    def remember(self, head: bytes, parsed: DirectHead) -> None:
        """Cache the parsed head of a plain request by its bytes."""
        if len(head) > LARGEST_REMEMBERED_HEAD:
            return
        if len(self.remembered) >= MOST_REMEMBERED_HEADS:
            self.remembered.clear()
        self.remembered[head] = parsed


CONTEXT = ServerContext()
