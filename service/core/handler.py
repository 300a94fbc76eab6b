"""Handles an inference request from its bytes to its response; all transports call ``handle``."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from time import perf_counter

from export.bundle.metrics import Arrays
from service.core.endpoints import Endpoints, answer_lines
from service.core.messages import Job, Request, Response, describe_failure
from service.engine.batcher import EngineError
from service.models.health import HealthMonitor
from service.models.registry import ModelRegistry
from service.observability.metrics import Metrics
from service.observability.records import BatchTiming
from service.protocol.errors import DeadlineError, ErrorKind, ServiceError
from service.settings import Settings

# Each thread may hold a decoded image of the largest size, or the values of the largest JSON body.
DECODER_THREADS = 2
# Server Timing (W3C) counts in milliseconds.
TIMING_LINES = b"x-batch-size: %d\r\nserver-timing: queue;dur=%.3f, compute;dur=%.3f\r\n"

Respond = Callable[[Response], None]


class Handler:
    """Decodes requests, queues them for their model's next batch, and responds exactly once."""

    def __init__(
        self, models: ModelRegistry, settings: Settings, health: HealthMonitor, metrics: Metrics
    ) -> None:
        """Serve these models; refuse requests for one that fails its golden check in ``health``."""
        self.models, self.health, self.metrics = models, health, metrics
        self.endpoints = Endpoints(models, settings)
        self.has_answer_headers = settings.answer_headers
        self._decoders = ThreadPoolExecutor(DECODER_THREADS, thread_name_prefix="decoder")

    def handle(self, request: Request, respond: Respond) -> None:
        """Handle a request in the event loop without blocking.

        ``respond`` is called exactly once, in the event loop, possibly before this method returns.
        """
        inflight = InflightRequest(self, request, respond)
        if self.endpoints.is_quick(request):
            try:
                job = self.endpoints.decode(request)
            except Exception as error:  # noqa: BLE001 - the client must be answered
                inflight.fail(error)
            else:
                inflight.enqueue(job)
        else:
            future = asyncio.get_running_loop().run_in_executor(
                self._decoders, self.endpoints.decode, request
            )
            future.add_done_callback(inflight.receive_job)

    def refuse(self, error: Exception, where: str, request_id: bytes) -> Response:
        """Return the response for an exception, and record it."""
        response = describe_failure(error, where, request_id)
        if response.kind is not None:
            self.metrics.record_refusal(response.kind)
        return response

    def record_client_gone(self) -> None:
        """Record a request whose client disconnected before the response."""
        self.metrics.record_refusal(ErrorKind.CLIENT_GONE)

    def close(self) -> None:
        """End the decoder threads."""
        self._decoders.shutdown(wait=False, cancel_futures=True)


class InflightRequest:
    """An in-flight request; the batcher delivers its result here (``ResultSink``)."""

    __slots__ = ("_failure", "_handler", "_is_done", "_job", "_request", "_respond")

    def __init__(self, handler: Handler, request: Request, respond: Respond) -> None:
        self._handler, self._request, self._respond = handler, request, respond
        self._job: Job | None = None
        self._failure: tuple[str, EngineError] | None = None
        self._is_done = False

    def receive_job(self, future: "asyncio.Future[Job]") -> None:
        """Receive the job that a thread decoded; the future is cancelled when the service stops."""
        try:
            job = future.result()
        except BaseException as error:  # noqa: BLE001 - the client must be answered
            self.fail(error)
        else:
            self.enqueue(job)

    def enqueue(self, job: Job) -> None:
        """Queue the decoded request for its model's next batch."""
        self._job = job
        health = self._handler.health
        try:
            if health.failures:
                health.require_right_answers(job.model)
            job.batcher.enqueue(job.inputs, job.samples, self)
        except Exception as error:  # noqa: BLE001 - the client must be answered
            self.fail(error)

    def is_waiting(self) -> bool:
        """Return False once the request was answered or its client disconnected."""
        return not self._is_done and self._request.is_connected()

    def succeed(self, outputs: Arrays, timing: BatchTiming) -> None:
        """Encode the outputs and respond."""
        job, request, handler = self._job, self._request, self._handler
        if job is None or self._is_done:
            return
        try:
            body, json_length = job.encode(outputs)
            lines = answer_lines(job.identity_lines, len(body), json_length)
            if handler.has_answer_headers:
                lines += TIMING_LINES % (
                    timing.batch_samples,
                    1000 * timing.queue_s,
                    1000 * timing.compute_s,
                )
        except Exception as error:  # noqa: BLE001 - the client must be answered
            self.fail(error)
            return
        self._is_done = True
        self._respond(Response(HTTPStatus.OK, lines, body, None, job.model, timing))
        seconds = perf_counter() - request.started_s
        handler.metrics.record_answer(job.model, request.target.endpoint, job.samples, seconds)
        observer = handler.models.observer(job.model)
        if observer is not None and request.target.endpoint != "features":
            if self._failure is not None:
                observer.record_failure(*self._failure)
            observer.record_answer(job.version, job.inputs, outputs, timing, seconds)

    def fail(self, error: BaseException) -> None:
        """Respond with an error, unless the stable version can answer for a failed canary."""
        if self._is_done or (isinstance(error, EngineError) and self._ask_stable(error)):
            return
        self._is_done = True
        if isinstance(error, DeadlineError):
            self._record_timeout()
        target = self._request.target
        model = self._job.model if self._job else target.model
        where = f"{target.endpoint} of {model}" if model else target.endpoint
        failure = error if isinstance(error, Exception) else RuntimeError(repr(error))
        self._respond(self._handler.refuse(failure, where, self._request.request_id))

    def _record_timeout(self) -> None:
        job = self._job
        observer = None if job is None else self._handler.models.observer(job.model)
        if job is not None and observer is not None:
            observer.record_timeout(job.version, perf_counter() - self._request.started_s)

    def _ask_stable(self, error: EngineError) -> bool:
        """Queue the request for the stable version if a canary's engine failed on it.

        If the stable version answers, the failure is recorded as the canary's. A request that names
        a version is never answered by another one. Returns whether this method handled the failure.
        """
        job, request, models = self._job, self._request, self._handler.models
        if job is None or request.is_stable_only or request.target.version is not None:
            return False
        if job.version == models.get(job.model).manifest.version:
            return False
        self._failure = job.version, error
        request.is_stable_only = True
        try:
            self.enqueue(self._handler.endpoints.decode(request))
        except ServiceError as refusal:
            self.fail(refusal)
        return True
