"""Formats the log as JSON if the setting ``log_format`` says so, and writes the access log.

BentoML installs each process's log handlers before it loads the service. ``configure`` replaces
their formatter and keeps their streams and levels. Text lines keep BentoML's own format.
"""

import logging
import sys
from types import TracebackType

from opentelemetry.trace import SpanContext, get_current_span
from pythonjsonlogger.core import RESERVED_ATTRS, LogData
from pythonjsonlogger.json import JsonFormatter

from service.observability.records import Exchange
from service.settings import Settings

# BentoML shows only its own loggers.
logger = logging.getLogger("bentoml.service")
access_logger = logging.getLogger("bentoml.access")

LONGEST_PATH = 200

# BentoML's filter adds these to each record; they would replace the request's own id.
BENTOML_ATTRIBUTES = ("levelname_bracketed", "component", "trace_msg", "service_name")


def trace_fields(span: SpanContext | None) -> dict[str, str]:
    """Return the ids of a sampled span as fields of a log record; none for other spans."""
    if span is None or not (span.is_valid and span.trace_flags.sampled):
        return {}
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}


class JsonLines(JsonFormatter):
    """Formats a record as JSON: time (RFC 3339), level, logger, pid, message, further fields."""

    def __init__(self) -> None:
        """Set the names and the order of the fields."""
        super().__init__(
            ["levelname", "name", "process", "message"],
            rename_fields={
                "levelname": "level",
                "name": "logger",
                "process": "pid",
                "exc_info": "exception",
            },
            reserved_attrs=[*RESERVED_ATTRS, *BENTOML_ATTRIBUTES],
            timestamp="time",
        )

    def process_log_record(self, log_data: LogData) -> LogData:
        """Put the time first; add the current span's ids unless the record already has ids."""
        traced = {}
        if "trace_id" not in log_data:
            traced = trace_fields(get_current_span().get_span_context())
        return {"time": log_data.pop("time")} | log_data | traced


class AccessLog:
    """Logs the configured share of the requests, one line each; JSON lines have separate fields.

    Attributes:
        is_enabled: Whether any line is written.
    """

    def __init__(self, share: float) -> None:
        """Log this share of the requests, 0 to 1."""
        self.is_enabled = share > 0
        self._share, self._due = share, 0.0

    def log(self, exchange: Exchange, status: int, seconds: float, span: SpanContext) -> None:
        """Log a request and its duration in seconds, if the request is in the logged share."""
        self._due += self._share
        if self._due < 1:
            return
        self._due -= 1
        client, path = exchange.client, exchange.path[:LONGEST_PATH]
        fields: dict[str, object] = {
            "client": f"{client[0]}:{client[1]}" if client else "-",
            "method": exchange.method,
            "path": path,
            "status": status,
            "duration_s": round(seconds, 6),
            "request_id": exchange.request_id.decode("latin-1"),
        }
        if exchange.model is not None and exchange.timing is not None:
            samples = exchange.timing.batch_samples
            # batch_images is the name before this release.
            fields |= {"model": exchange.model, "batch_samples": samples, "batch_images": samples}
        access_logger.info(
            '%s "%s %s" %d %.3f ms %s',
            fields["client"],
            exchange.method,
            path,
            status,
            1000 * seconds,
            fields["request_id"],
            extra=fields | trace_fields(span),
        )


def configure(settings: Settings) -> None:
    """Format everything that this process logs as JSON, if the settings say so."""
    if settings.log_format == "text":
        return
    loggers = [logging.getLogger(name) for name in (None, *logging.root.manager.loggerDict)]
    for handler in {handler for each in loggers for handler in each.handlers}:
        handler.filters.clear()
        handler.setFormatter(JsonLines())
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught


def end_process(settings: Settings, error: str) -> SystemExit:
    """Return an exception that ends the process; the error is reported as a single line."""
    if settings.log_format == "text":
        return SystemExit(f"error: {error}")
    logger.critical("%s", error)
    return SystemExit(1)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    logger.critical("ended by %s", kind.__name__, exc_info=(kind, error, traceback))
