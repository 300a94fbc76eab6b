"""Traces by OpenTelemetry, if turned on: a span a request, in it its queue and its compute.

On the ordinary way BentoML makes the request's span and this adds what is inside; on the short way
both are made here, when the answer is written. Both ask the same sampler.
"""

import time
from collections.abc import Iterable
from http import HTTPStatus

from bentoml._internal.configuration.containers import BentoMLContainer
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanContext, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from service.exchange import Exchange
from service.settings import Settings, SettingsError
from service.waiting import Ran

PARENT_HEADERS = (b"traceparent", b"tracestate")  # W3C Trace Context
NS = 1_000_000_000
LONGEST_FLUSH_MS = 2000


def bentoml_settings(settings: Settings) -> dict[str, object]:
    """What BentoML's own configuration has to say, so that it makes the provider."""
    if not settings.trace_share:
        return {}
    otlp = {"protocol": "http", "endpoint": settings.trace_endpoint}
    return {"exporter_type": "otlp", "sample_rate": settings.trace_share, "otlp": otlp}


def check_exporter(settings: Settings) -> None:
    """Find out before any worker starts whether traces can be sent.

    Raises:
        SettingsError: They are asked for, and the package that sends them is not there.
    """
    if settings.trace_share:
        try:
            import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401, PLC0415
        except ImportError as error:
            raise SettingsError(
                "DIGITS_TRACE_SHARE asks for traces, which need another package: "
                "pip install opentelemetry-exporter-otlp-proto-http"
            ) from error


def describe(span: Span, request_id: bytes) -> None:
    """Let a request's span be found by the id in its answer's header."""
    if span.is_recording():
        span.set_attribute("http.response.header.x-request-id", [request_id.decode("latin-1")])


class Tracing:
    """Makes the spans."""

    def __init__(self, provider: TracerProvider) -> None:
        """Take the provider, with its sampler and its exporter."""
        self._provider, self._tracer = provider, provider.get_tracer("service")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def of(cls, settings: Settings) -> "Tracing | None":
        """BentoML's provider in this worker, if traces are turned on."""
        return cls(BentoMLContainer.tracer_provider.get()) if settings.trace_share else None

    def close(self) -> None:
        """Send what was not yet sent."""
        self._provider.force_flush(LONGEST_FLUSH_MS)

    def request(
        self,
        exchange: Exchange,
        headers: Iterable[tuple[bytes, bytes]],
        status: int,
        seconds: float,
        ran: Ran | None,
    ) -> SpanContext:
        """A request that was just answered beneath BentoML's middleware.

        Args:
            exchange: The request.
            headers: Its own; they may name a parent.
            status: HTTP's.
            seconds: From the end of its head to its answer.
            ran: How it was computed, if it was.

        Returns:
            By what it is found.
        """
        carrier = {
            name.decode(): value.decode("latin-1")
            for name, value in headers
            if name in PARENT_HEADERS
        }
        now_ns = time.time_ns()
        span = self._tracer.start_span(
            f"{exchange.method} {exchange.path}",
            self._propagator.extract(carrier, Context()),
            SpanKind.SERVER,
            {
                "http.request.method": exchange.method,
                "url.path": exchange.path,
                "http.response.status_code": status,
            },
            start_time=now_ns - int(seconds * NS),
        )
        describe(span, exchange.request_id)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            span.set_status(StatusCode.ERROR)
        if ran is not None and exchange.model is not None:
            within = set_span_in_context(span, Context())
            self.computed(exchange.model, ran, within, now_ns)
        span.end(now_ns)
        return span.get_span_context()

    def computed(
        self, model: str, ran: Ran, within: Context | None = None, end_ns: int | None = None
    ) -> None:
        """What a request waited and what the engine took; within the current span by default."""
        end_ns = end_ns or time.time_ns()
        compute_ns = end_ns - int(ran.compute_s * NS)
        queue_ns = compute_ns - int(ran.queue_s * NS)
        self._tracer.start_span("queue", within, start_time=queue_ns).end(compute_ns)
        attributes: dict[str, AttributeValue] = {
            "model.name": model,
            "batch.size": ran.batch_samples,
        }
        span = self._tracer.start_span(
            "compute", within, attributes=attributes, start_time=compute_ns
        )
        span.end(end_ns)
