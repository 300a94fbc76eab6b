"""With `log_format` json every line is a JSON object; with text the format is BentoML's."""

import json
import logging
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from service.observability.logs import JsonLines, configure, trace_fields
from service.settings import ROOT, Settings


def _line(message: str, *values: object, **further: Any) -> dict[str, Any]:
    """The JSON object of a formatted log record."""
    record = logging.getLogger("bentoml.test").makeRecord(
        "bentoml.test", logging.WARNING, __file__, 1, message, values, **further
    )
    said = JsonLines().format(record)
    assert "\n" not in said
    found: dict[str, Any] = json.loads(said)
    return found


def test_a_record_is_one_line_with_its_fields() -> None:
    """A line has time, level, logger, process, message, extra fields and any exception."""
    fields = {"model": "cnn", "batch_images": 3}
    warned = _line("zwei\nZeilen: %s", "ü", exc_info=None, extra=fields)
    assert list(warned) == ["time", "level", "logger", "pid", "message", *fields]
    moment = datetime.fromisoformat(warned["time"])
    assert moment.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)
    assert (warned["level"], warned["logger"], warned["pid"]) == (
        *("WARNING", "bentoml.test"),
        os.getpid(),
    )
    assert warned["message"] == "zwei\nZeilen: ü"
    assert {name: warned[name] for name in fields} == fields
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        failed = _line("failed", exc_info=sys.exc_info())
    assert list(failed) == ["time", "level", "logger", "pid", "message", "exception"]
    assert failed["exception"].endswith("ZeroDivisionError: division by zero")


def test_a_line_within_a_trace_names_it() -> None:
    """A line names the trace only while a sampled span is current."""
    with TracerProvider().get_tracer("test").start_as_current_span("request") as span:
        within = _line("within", exc_info=None)
    context = span.get_span_context()
    assert within["trace_id"] == f"{context.trace_id:032x}"
    assert within["span_id"] == f"{context.span_id:016x}"
    assert "trace_id" not in _line("without", exc_info=None)
    with TracerProvider(sampler=ALWAYS_OFF).get_tracer("test").start_as_current_span("no"):
        assert "trace_id" not in _line("not sampled", exc_info=None)
    assert trace_fields(None) == {}


def test_text_is_left_as_it_is() -> None:
    """Without the setting no handler is changed."""
    before = [(handler, handler.formatter) for handler in logging.getLogger().handlers]
    hook = sys.excepthook
    configure(Settings())
    assert [(handler, handler.formatter) for handler in logging.getLogger().handlers] == before
    assert sys.excepthook is hook


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_start_that_fails_says_why_in_the_format(log_format: str, tmp_path: Path) -> None:
    """The reason is one line, JSON or text, without a traceback."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "INFERENCE_LOG_FORMAT": log_format,
        "INFERENCE_BUNDLES": str(tmp_path),
        "BENTOML_HOME": str(tmp_path / "home"),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    command = [sys.executable, "-m", "bentoml", "serve", "service.app:DigitClassifier"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 1
    (line,) = (ran.stdout + ran.stderr).splitlines()
    if log_format == "json":
        said = json.loads(line)
        assert (said["level"], said["logger"]) == ("CRITICAL", "bentoml.service")
        assert said["message"].startswith(f"no bundle in {tmp_path}")
    else:
        assert line.startswith(f"error: no bundle in {tmp_path}")


def test_what_others_log_is_an_object_too() -> None:
    """Logs of uvicorn and the arbiter, warnings and a fatal exception are JSON, too."""
    program = """
import logging, warnings
from bentoml._internal.log import configure_server_logging
configure_server_logging()  # as BentoML's worker does, before it loads the service
from service.observability.logs import configure
from service.settings import Settings
configure(Settings(log_format="json"))
logging.getLogger("uvicorn.error").error("uvicorn's")
logging.getLogger("circus").error("the arbiter's")
logging.getLogger("bentoml.service").info("the service's", extra={"request_id": "mine"})
warnings.warn("Python's")
raise ValueError("at last")
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (1, "")
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    said = {line["logger"]: line["message"] for line in lines}
    assert {"uvicorn.error": "uvicorn's", "circus": "the arbiter's"}.items() <= said.items()
    assert "UserWarning: Python's" in said["py.warnings"]
    assert [line["request_id"] for line in lines if "request_id" in line] == ["mine"]
    assert lines[-1]["message"] == "ended by ValueError"
    assert lines[-1]["exception"].endswith("ValueError: at last")
