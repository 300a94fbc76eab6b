"""Checks host and API key, assigns request ids, and logs and traces requests, on all transports."""

import hmac
import os
from collections.abc import Collection, Iterable
from itertools import count
from time import perf_counter

from opentelemetry.trace import INVALID_SPAN_CONTEXT

from service.observability.logs import AccessLog
from service.observability.records import Exchange
from service.observability.tracing import Tracing
from service.protocol.errors import InvalidInputError, UnauthorizedError
from service.settings import Settings

REQUEST_ID = b"x-request-id"
LONGEST_ID = 128
BEARER = b"bearer "
# Health endpoints need no key; they return only the status.
HEALTH_PATHS = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}

Headers = Iterable[tuple[bytes, bytes]]


class RequestGate:
    """Makes the checks and records that all requests have in common."""

    def __init__(
        self,
        settings: Settings,
        open_paths: Collection[str] = (),
        tracing: Tracing | None = None,
    ) -> None:
        """Make a gate; ``open_paths`` and the health endpoints need no key."""
        key = settings.api_key
        self._key = None if key is None else key.get_secret_value().encode()
        self.open_paths = frozenset({*HEALTH_PATHS, *open_paths})
        self._log, self._tracing = AccessLog(settings.access_log_share), tracing
        # Whether answered requests are logged or traced.
        self.is_recording = self._log.is_enabled or tracing is not None
        self._prefix, self._numbers = os.urandom(4).hex().encode(), count(1)

    def check_key(self, headers: Headers) -> None:
        """Raise UnauthorizedError unless the request carries the configured API key."""
        if self._key is None:
            return
        given = b""
        for name, value in headers:
            if name == b"x-api-key":
                given = value
            elif name == b"authorization" and value[: len(BEARER)].lower() == BEARER:
                given = value[len(BEARER) :].strip()
        if not hmac.compare_digest(given, self._key):
            what = "the API key is wrong" if given else "the API key is missing"
            raise UnauthorizedError(
                f"{what}; send the service's key as Authorization: Bearer KEY, or as X-Api-Key: KEY"
            )

    def choose_request_id(self, given: bytes | None) -> bytes:
        """Return the client's own id if it is at most ``LONGEST_ID`` bytes long, else a new one."""
        if given and len(given) <= LONGEST_ID:
            return given
        return b"%b-%x" % (self._prefix, next(self._numbers))

    def record(self, exchange: Exchange, headers: Headers, status: int) -> None:
        """Log and trace an answered request, as configured."""
        seconds = perf_counter() - exchange.started_s
        span = INVALID_SPAN_CONTEXT
        if self._tracing is not None:
            span = self._tracing.record_request(exchange, headers, status, seconds)
        if self._log.is_enabled:
            self._log.log(exchange, status, seconds, span)


def check_host(headers: Headers, http_version: str) -> None:
    """Check that an HTTP/1.1 request names exactly one host (RFC 9112, 3.2).

    Raises:
        InvalidInputError: It names no host, several, or an invalid one.
    """
    hosts = [value for name, value in headers if name == b"host"]
    if http_version == "1.0" and not hosts:
        return
    if len(hosts) != 1 or b" " in hosts[0]:
        raise InvalidInputError("expected exactly one Host header, which names one host")
