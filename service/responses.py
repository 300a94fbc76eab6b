"""What answers have in common: the one shape of an error, and the headers that say who answered.

An error is ``{"error": "what came, what was expected, what to do"}``, as the Open Inference
Protocol has it.
"""

import json
import logging
from dataclasses import dataclass, field
from http import HTTPStatus

from service.errors import ErrorKind, ServiceError
from service.models import ServedModel
from service.waiting import EngineError, Ran

logger = logging.getLogger("bentoml.service")


def error_body(message: str) -> bytes:
    """JSON of an error; what a client sent may hold half characters, which UTF-8 cannot say."""
    sayable = message.encode("utf-8", "backslashreplace").decode()
    return json.dumps({"error": sayable}, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Refusal:
    """What a client is told in place of an answer."""

    kind: ErrorKind
    message: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> HTTPStatus:
        """HTTP's."""
        return HTTPStatus(self.kind.status)


def refusal(error: Exception, where: str, request_id: bytes) -> Refusal:
    """What a client is told of an error: its own words, or of a fault here an id to ask by.

    Args:
        error: What was raised.
        where: What was asked; for the log, which alone tells of a fault.
        request_id: As in the answer's header.
    """
    if isinstance(error, ServiceError):
        return Refusal(error.kind, str(error), error.headers)
    named = request_id.decode("latin-1")
    further = {"request_id": named}
    logger.error("request %s failed at %s", named, where, exc_info=error, extra=further)
    return Refusal(
        ErrorKind.ENGINE if isinstance(error, EngineError) else ErrorKind.INTERNAL,
        f"the service failed, not the request; its log tells more of request {named}",
    )


def identity_headers(model: ServedModel) -> dict[str, str]:
    """Who answers, as the headers of an answer."""
    return {
        "x-model": model.manifest.name,
        "x-model-version": model.manifest.version,
        "x-model-variant": model.proven.variant,
        "x-provider": model.proven.engine.provider,
    }


# Server Timing (W3C) counts in milliseconds.
TIMING_LINES = b"x-batch-size: %d\r\nserver-timing: queue;dur=%.3f, compute;dur=%.3f\r\n"


def timing_lines(ran: Ran) -> bytes:
    """In which batch and how fast a request was answered, as lines of an answer's head."""
    return TIMING_LINES % (ran.batch_samples, 1000 * ran.queue_s, 1000 * ran.compute_s)


def timing_headers(ran: Ran) -> dict[str, str]:
    """The same as headers."""
    return dict(line.split(": ", 1) for line in timing_lines(ran).decode().splitlines())
