"""Traces go to a collector, from the short way and from the ordinary one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from loadtest.server import running_service
from service.settings import Settings
from service.tracing import bentoml_settings
from tests.tiny import SERVED_BUNDLES

trace_service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
    reason="needs the package opentelemetry-exporter-otlp-proto-http",
)

URL = "/v2/models/cnn/infer"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def _collector() -> Iterator[tuple[str, list[bytes]]]:
    """An OpenTelemetry collector's HTTP endpoint, and the bodies that it got."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("fast", [True, False])
def test_a_request_is_traced_into_its_batch(fast: bool, tmp_path: Path) -> None:
    """Under the client's own trace: the request, its queueing and its computing, with the batch."""
    with _collector() as (endpoint, bodies):
        settings = {
            "DIGITS_BUNDLES": str(SERVED_BUNDLES),
            "DIGITS_FAST_PATH": str(fast),
            "DIGITS_TRACE_SHARE": "1",
            "DIGITS_TRACE_ENDPOINT": endpoint,
        }
        with running_service(tmp_path / "service.log", settings=settings) as url:
            headers = {
                "inference-header-content-length": "0",
                "traceparent": f"00-{TRACE}-{PARENT}-01",
            }
            answer = httpx.post(url + URL, content=bytes(784 * 3), headers=headers)
            assert answer.status_code == 200
            refused = httpx.post(url + URL, content=b"x", headers=headers)
            assert refused.status_code == 400
        # The service sends what is left when it ends.
        spans = [
            span
            for body in bodies
            for part in trace_service.ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in part.scope_spans
            for span in scope.spans
            if span.trace_id.hex() == TRACE
        ]
    by_name = {span.name: span for span in spans}
    requests = [span for span in spans if span.parent_span_id.hex() == PARENT]
    assert len(requests) == 2
    statuses = [
        attribute.value.int_value
        for span in requests
        for attribute in span.attributes
        if attribute.key in ("http.response.status_code", "http.status_code")
    ]
    assert sorted(statuses) == [200, 400]
    compute, queue = by_name["compute"], by_name["queue"]
    (size,) = [a.value.int_value for a in compute.attributes if a.key == "batch.size"]
    assert size == 3
    assert queue.end_time_unix_nano == compute.start_time_unix_nano
    assert queue.start_time_unix_nano <= queue.end_time_unix_nano < compute.end_time_unix_nano
    assert {compute.parent_span_id, queue.parent_span_id} <= {span.span_id for span in requests}


def test_without_a_share_nothing_is_set_up() -> None:
    """Off is the default."""
    assert bentoml_settings(Settings()) == {}
