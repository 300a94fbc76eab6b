"""The log as JSON, if set: one object a line, of this service, BentoML, uvicorn and the arbiter.

BentoML gives each process its handlers before it loads the service; here they get another formatter
and keep their streams and levels. Lines of text stay as BentoML writes them.
"""

import logging
import sys
from types import TracebackType

from opentelemetry.trace import SpanContext, get_current_span
from pythonjsonlogger.core import RESERVED_ATTRS, LogData
from pythonjsonlogger.json import JsonFormatter

from service.settings import Settings

logger = logging.getLogger("bentoml.service")

# BentoML's filter adds them to each record, in place of the request's own id.
BENTOML_ATTRIBUTES = ("levelname_bracketed", "component", "trace_msg", "service_name")


def trace_fields(span: SpanContext | None) -> dict[str, str]:
    """By what a traced request is found where traces are kept; nothing of one that is not."""
    if span is None or not (span.is_valid and span.trace_flags.sampled):
        return {}
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}


class JsonLines(JsonFormatter):
    """A record as JSON: time (RFC 3339), level, logger, pid, message, and what else it carries."""

    def __init__(self) -> None:
        """Name the fields."""
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
        """Put the time first, and add the trace in which the line was written, if there is one."""
        traced = trace_fields(get_current_span().get_span_context())
        return {"time": log_data.pop("time")} | log_data | traced


def configure(settings: Settings) -> None:
    """Let all that this process logs be JSON, if it is set."""
    if settings.log_format == "text":
        return
    loggers = [logging.getLogger(name) for name in (None, *logging.root.manager.loggerDict)]
    for handler in {handler for each in loggers for handler in each.handlers}:
        handler.filters.clear()
        handler.setFormatter(JsonLines())
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught


def ended(settings: Settings, error: Exception) -> SystemExit:
    """What ends the process with one line that says why."""
    if settings.log_format == "text":
        return SystemExit(f"error: {error}")
    logger.critical("%s", error)
    return SystemExit(1)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    logger.critical("ended by %s", kind.__name__, exc_info=(kind, error, traceback))
