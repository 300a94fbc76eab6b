"""Both transports send traces to a collector, and the log names them."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from loadtest.server import running_service
from service.observability.tracing import make_tracing
from service.settings import Settings
from tests.tiny import SERVED_BUNDLES

trace_service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
    reason="needs the package opentelemetry-exporter-otlp-proto-http",
)

URL = "/v2/models/cnn/infer"
RAW = {"inference-header-content-length": "0"}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
UNSAMPLED = "1af7651916cd43dd8448eb211c80319c"


@contextmanager
def _collector() -> Iterator[tuple[str, list[bytes]]]:
    """An OpenTelemetry collector's HTTP endpoint, and the bodies that it received."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Told:
    """The results of four requests: spans under the client's traces, and lines of the log."""

    spans: list[Any]
    unsampled: list[Any]
    lines: list[dict[str, Any]]


@pytest.fixture(scope="module", params=[True, False], ids=["short", "ordinary"])
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The real service's results on either transport: an answer, two refusals, one not sampled."""
    log = tmp_path_factory.mktemp("traced") / "service.log"
    with _collector() as (endpoint, bodies):
        settings = {
            "INFERENCE_BUNDLES": str(SERVED_BUNDLES),
            "INFERENCE_FAST_PATH": str(request.param),
            "INFERENCE_TRACE_SHARE": "1",
            "INFERENCE_TRACE_ENDPOINT": endpoint,
            "INFERENCE_LOG_FORMAT": "json",
            "INFERENCE_ACCESS_LOG_SHARE": "1",
        }
        with running_service(log, settings=settings) as url:
            for name, path, body, trace, sampled, status in (
                ("right", URL, bytes(784 * 3), TRACE, "01", 200),
                ("wrong", URL, b"x", TRACE, "01", 400),
                ("nowhere", "/nowhere", b"x", TRACE, "01", 404),
                ("silent", URL, bytes(784), UNSAMPLED, "00", 200),
            ):
                headers = RAW | {
                    "traceparent": f"00-{trace}-{PARENT}-{sampled}",
                    "x-request-id": name,
                }
                answer = httpx.post(url + path, content=body, headers=headers)
                assert (answer.status_code, answer.headers["x-request-id"]) == (status, name)
        # The service sends the remaining spans when it ends.
        spans = [
            span
            for body in bodies
            for part in trace_service.ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in part.scope_spans
            for span in scope.spans
        ]
    return Told(
        [span for span in spans if span.trace_id.hex() == TRACE],
        [span for span in spans if span.trace_id.hex() == UNSAMPLED],
        [json.loads(line) for line in log.read_text().splitlines()],
    )


def _attributes(span: Any) -> dict[str, Any]:
    return {attribute.key: attribute.value for attribute in span.attributes}


def test_a_request_is_traced_into_its_batch(told: Told) -> None:
    """The client's trace contains request, queueing and computation, with the batch."""
    by_name = {span.name: span for span in told.spans}
    requests = {span.span_id: span for span in told.spans if span.parent_span_id.hex() == PARENT}
    assert len(requests) == 3
    statuses = [
        value.int_value
        for span in requests.values()
        for key, value in _attributes(span).items()
        if key in ("http.response.status_code", "http.status_code")
    ]
    assert sorted(statuses) == [200, 400, 404]
    compute, queue = by_name["compute"], by_name["queue"]
    assert _attributes(compute)["batch.size"].int_value == 3
    assert _attributes(compute)["model.name"].string_value == "cnn"
    assert queue.end_time_unix_nano == compute.start_time_unix_nano
    assert queue.start_time_unix_nano <= queue.end_time_unix_nano < compute.end_time_unix_nano
    assert compute.parent_span_id == queue.parent_span_id
    request = requests[compute.parent_span_id]
    assert request.start_time_unix_nano <= queue.start_time_unix_nano
    assert compute.end_time_unix_nano <= request.end_time_unix_nano


def test_a_request_is_found_by_its_id_in_traces_and_log(told: Told) -> None:
    """The span has the answer's id, and the log's line has that id and the span's id."""
    requests = {
        _attributes(span)["http.response.header.x-request-id"]
        .array_value.values[0]
        .string_value: span
        for span in told.spans
        if span.parent_span_id.hex() == PARENT
    }
    assert set(requests) == {"right", "wrong", "nowhere"}
    access = {line["request_id"]: line for line in told.lines if line["logger"] == "bentoml.access"}
    for name, span in requests.items():
        line = access[name]
        assert (line["trace_id"], line["span_id"]) == (TRACE, span.span_id.hex())
    right, nowhere = access["right"], access["nowhere"]
    assert {"method": "POST", "path": URL, "status": 200, "model": "cnn"}.items() <= right.items()
    assert right["batch_samples"] == right["batch_images"] == 3
    assert 0 < right["duration_s"] < 10
    assert re.fullmatch(r"127\.0\.0\.1:\d+", right["client"])
    assert (nowhere["status"], nowhere["path"]) == (404, "/nowhere")
    assert not {"model", "batch_samples", "batch_images"} & set(nowhere)


def test_the_client_decides_whether_its_trace_is_sampled(told: Told) -> None:
    """If its `traceparent` is not sampled, no span is sent and the line names none."""
    assert told.unsampled == []
    (silent,) = [line for line in told.lines if line.get("request_id") == "silent"]
    assert "trace_id" not in silent


def test_every_line_is_an_object(told: Told) -> None:
    """All lines of the service, BentoML and the arbiter are JSON objects with the basic fields."""
    basics = {"time", "level", "logger", "pid", "message"}
    assert all(basics <= set(line) for line in told.lines)
    assert {"bentoml.serve", "bentoml.service", "bentoml.access"} <= {
        line["logger"] for line in told.lines
    }


def test_without_a_share_nothing_is_set_up() -> None:
    """Tracing is off by default."""
    assert make_tracing(Settings()) is None
