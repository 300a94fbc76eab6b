"""Records OpenTelemetry traces, if the setting ``trace_share`` is above 0: a span per request.

A request's span has child spans for its time in the queue and for its computation. All are created
when the response is written, on every transport. BentoML's own tracing is not used: it covers only
the requests that pass through BentoML's middleware.
"""

import time
from collections.abc import Iterable
from http import HTTPStatus

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from service.observability.records import BatchTiming, Exchange
from service.settings import Settings, SettingsError

PARENT_HEADERS = (b"traceparent", b"tracestate")  # W3C Trace Context
NS = 1_000_000_000
LONGEST_FLUSH_MS = 2000
TRACED_SERVICE = "digit_classifier"


def make_tracing(settings: Settings) -> "Tracing | None":
    """Return the object that creates and sends spans, or None if tracing is not configured.

    Raises:
        SettingsError: Tracing is configured, but the package that sends spans is not installed.
    """
    if not settings.trace_share:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError(
            "INFERENCE_TRACE_SHARE is set, but tracing needs another package: pip install "
            "opentelemetry-exporter-otlp-proto-http"
        ) from error
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.trace_share)),
        resource=Resource.create({SERVICE_NAME: TRACED_SERVICE}),
    )
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.trace_endpoint))
    )
    return Tracing(provider)


class Tracing:
    """Creates the spans of answered requests."""

    def __init__(self, provider: TracerProvider) -> None:
        """Use a provider that has a sampler and an exporter."""
        self._provider, self._tracer = provider, provider.get_tracer("service")
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send the spans that are still buffered."""
        self._provider.force_flush(LONGEST_FLUSH_MS)

    def record_request(
        self,
        exchange: Exchange,
        headers: Iterable[tuple[bytes, bytes]],
        status: int,
        seconds: float,
    ) -> SpanContext:
        """Record a request that was just answered, and return the ids of its span.

        Args:
            exchange: The request.
            headers: Its headers, which may name a parent span.
            status: HTTP status of the answer.
            seconds: Time from the end of its head to its response.
        """
        carrier = {
            name.decode(): value.decode("latin-1")
            for name, value in headers
            if name in PARENT_HEADERS
        }
        now_ns = time.time_ns()
        request_id = exchange.request_id.decode("latin-1")
        span = self._tracer.start_span(
            f"{exchange.method} {exchange.path}",
            self._propagator.extract(carrier, Context()),
            SpanKind.SERVER,
            {
                "http.request.method": exchange.method,
                "url.path": exchange.path,
                "http.response.status_code": status,
                "http.response.header.x-request-id": [request_id],
            },
            start_time=now_ns - int(seconds * NS),
        )
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            span.set_status(StatusCode.ERROR)
        timing = exchange.timing
        if timing is not None and exchange.model is not None:
            parent = set_span_in_context(span, Context())
            self._record_batch(exchange.model, timing, parent, now_ns)
        span.end(now_ns)
        return span.get_span_context()

    def _record_batch(self, model: str, timing: BatchTiming, parent: Context, end_ns: int) -> None:
        """Record a request's time in the queue and its computation as child spans of its span."""
        compute_ns = end_ns - int(timing.compute_s * NS)
        queue_ns = compute_ns - int(timing.queue_s * NS)
        self._tracer.start_span("queue", parent, start_time=queue_ns).end(compute_ns)
        attributes: dict[str, AttributeValue] = {
            "model.name": model,
            "batch.size": timing.batch_samples,
        }
        span = self._tracer.start_span(
            "compute", parent, attributes=attributes, start_time=compute_ns
        )
        span.end(end_ns)
