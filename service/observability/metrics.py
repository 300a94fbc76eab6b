"""The service's Prometheus metrics; docs/monitoring.md explains each.

BentoML's own metrics are turned off: they use raw paths as labels, so every URL scan adds series.
The metrics here are created in each worker, never at import: the parent process does not have the
folder in which BentoML's workers share their metrics. Observations of requests and batches are
buffered, and added twice a second and before each scrape.
"""

import asyncio
import time
from collections import Counter as Count
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import Counter, Gauge

from service.observability.buffered_histogram import BufferedHistogram
from service.observability.records import BatchTiming
from service.protocol.answers import Identity
from service.protocol.errors import ErrorKind

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
# A request may wait as long as the setting timeout_s allows, 10 s by default.
REQUEST_SECONDS = (*SECONDS[:-1], 2.5, 5, 10)
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FLUSH_INTERVAL_S = 0.5


class Metrics:
    """All metrics, and the methods that record them."""

    def __init__(self) -> None:
        """Register all metrics with the default registry of the process."""
        self._make_request_metrics()
        self._make_model_gauges()
        self._make_golden_metrics()
        self._make_rollout_metrics()
        self._worker_exits = Counter(
            "inference_worker_exits", "Workers that shut themselves down, by reason.", ["reason"]
        )
        self._worker_exits.labels("golden_check")
        self._answers: dict[tuple[str, str], BufferedHistogram] = {}
        self._answered_samples = Count[tuple[str, str]]()
        self._batches: dict[str, list[BufferedHistogram]] = {}
        self._refusals = Count[ErrorKind]()
        self._read_queued: dict[str, Callable[[], int]] = {}
        self._flush_timer: asyncio.TimerHandle | None = None
        for kind in ErrorKind:
            self._refused.labels(kind.label, str(kind.status))

    def _make_request_metrics(self) -> None:
        self._requests = Counter(
            "inference_requests", "Requests answered, by model and endpoint.", ["model", "endpoint"]
        )
        self._duration = BufferedHistogram(
            "inference_request_duration_seconds",
            "Time from a request's receipt to its answer, for requests that were answered.",
            ["model", "endpoint"],
            buckets=REQUEST_SECONDS,
        )
        self._samples = Counter(
            "inference_samples", "Samples answered, by model and endpoint.", ["model", "endpoint"]
        )
        self._refused = Counter(
            "inference_refused_requests",
            "Requests refused or failed, by kind of error and its HTTP status.",
            ["kind", "status"],
        )
        self._batch_samples = BufferedHistogram(
            "inference_batch_samples", "Samples in a batch.", ["model"], buckets=SAMPLES
        )
        self._compute = BufferedHistogram(
            "inference_compute_seconds",
            "Time of a batch in the engine.",
            ["model"],
            buckets=SECONDS,
        )
        self._queue = BufferedHistogram(
            "inference_queue_seconds",
            "Longest time that a request of the batch waited for it.",
            ["model"],
            buckets=SECONDS,
        )

    def _make_model_gauges(self) -> None:
        """Make the gauges; the "live" modes leave out dead workers, see ``exposition``."""
        self._queued = Gauge(
            "inference_queued_samples",
            "Samples that wait for a batch, as of the last half second.",
            ["model"],
            multiprocess_mode="livesum",
        )
        self._queue_limit = Gauge(
            "inference_queue_limit_samples",
            "Samples that may wait for a batch; more are refused.",
            ["model"],
            multiprocess_mode="livesum",
        )
        self._info = Gauge(
            "inference_model_info",
            "1 for each model served, 0 for a version that was replaced: version, variant, device "
            "and the runtime's provider.",
            ["model", "version", "variant", "device", "provider"],
            multiprocess_mode="livemax",
        )

    def _make_golden_metrics(self) -> None:
        self._golden_checks = Counter(
            "inference_golden_checks", "Checks of a model with its golden samples.", ["model"]
        )
        self._golden_failures = Counter(
            "inference_golden_check_failures",
            "Checks in which the model failed its golden samples.",
            ["model"],
        )
        self._golden_skipped = Counter(
            "inference_golden_checks_skipped",
            "Checks that could not run, for example because the queue did not empty in time.",
            ["model"],
        )
        self._golden = Gauge(
            "inference_golden_check_passed",
            "1 if the model passed its golden samples in the last check.",
            ["model"],
            multiprocess_mode="livemin",
        )
        self._golden_time = Gauge(
            "inference_golden_check_timestamp_seconds",
            "Unix time of the last check of golden samples.",
            ["model"],
            multiprocess_mode="livemin",
        )
        self._golden_interval = Gauge(
            "inference_golden_check_interval_seconds",
            "Configured time between checks of golden samples.",
            multiprocess_mode="livemax",
        )
        self._golden_error = Gauge(
            "inference_golden_check_error_ratio",
            "Largest error of the last check divided by its bound; above 1 the check fails.",
            ["model"],
            multiprocess_mode="livemax",
        )

    def _make_rollout_metrics(self) -> None:
        """Make the metrics of models with versions; each served version adds its own series."""
        labels = ["model", "version"]
        self._generation = Gauge(
            "inference_rollout_generation",
            "Generation of the desired state that this model's workers serve; the smallest "
            "of all workers.",
            ["model"],
            multiprocess_mode="livemin",
        )
        self._returns = Counter(
            "inference_rollout_returns",
            "Versions that the service rolled back automatically, by their role.",
            ["model", "role"],
        )
        self._version_duration = BufferedHistogram(
            "inference_version_request_duration_seconds",
            "Time from a request's receipt to its answer, by version, for models with versions.",
            labels,
            buckets=REQUEST_SECONDS,
        )
        self._version_failures = Counter(
            "inference_version_failures",
            "Requests that a version's engine could not compute.",
            labels,
        )
        self._shadow_comparisons = Counter(
            "inference_shadow_comparisons", "Shadow answers that were compared.", labels
        )
        self._shadow_disagreements = Counter(
            "inference_shadow_disagreements",
            "Shadow answers that differed too much from the stable version's.",
            labels,
        )
        self._version_answers = dict[tuple[str, str], BufferedHistogram]()

    def set_rollout(self, model: str, generation: int, versions: Iterable[str]) -> None:
        """Create the series of a model's versions, and set the generation that is served."""
        self._generation.labels(model).set(generation)
        for role in ("canary", "shadow", "stable"):
            self._returns.labels(model, role)
        for version in versions:
            self._version_failures.labels(model, version)
            self._shadow_comparisons.labels(model, version)
            self._shadow_disagreements.labels(model, version)
            key = model, version
            if key not in self._version_answers:
                self._version_answers[key] = self._version_duration.labels(*key)

    def record_version_answer(self, model: str, version: str, seconds: float) -> None:
        """Record an answered request of a model with versions; called in the event loop."""
        self._version_answers[model, version].observe(seconds)

    def record_version_failure(self, model: str, version: str) -> None:
        """Record a request that a version's engine could not compute."""
        self._version_failures.labels(model, version).inc()

    def record_shadow_comparison(self, model: str, version: str, *, is_disagreement: bool) -> None:
        """Record a shadow answer that was compared with the stable version's."""
        self._shadow_comparisons.labels(model, version).inc()
        if is_disagreement:
            self._shadow_disagreements.labels(model, version).inc()

    def record_return(self, model: str, role: str) -> None:
        """Record that the service took a version back."""
        self._returns.labels(model, role).inc()

    def add_version(self, identity: Identity) -> None:
        """List a version of a model as served."""
        self._info.labels(**identity).set(1)

    def remove_version(self, identity: Identity) -> None:
        """List a version as no longer served; its series stays in the workers' shared files."""
        self._info.labels(**identity).set(0)

    def add_model(
        self,
        model: str,
        endpoints: Sequence[str],
        read_queued: Callable[[], int],
        limit: int,
    ) -> None:
        """Create a model's series; ``read_queued`` returns the number of its queued samples."""
        self._golden_failures.labels(model)
        self._golden_skipped.labels(model)
        self._queue_limit.labels(model).set(limit)
        self._queued.labels(model).set(0)
        self._read_queued[model] = read_queued
        if model not in self._batches:
            histograms = (self._batch_samples, self._compute, self._queue)
            self._batches[model] = [histogram.labels(model) for histogram in histograms]
        for endpoint in endpoints:  # a rate needs the value 0 before the first request
            if (model, endpoint) in self._answers:
                continue
            self._requests.labels(model, endpoint)
            self._samples.labels(model, endpoint)
            self._answers[model, endpoint] = self._duration.labels(model, endpoint)

    def set_golden_interval(self, interval_s: float) -> None:
        """Set the time between checks of golden samples, in seconds."""
        self._golden_interval.set(interval_s)

    def record_golden_check(
        self, model: str, *, passed: bool, error: float = 0, bound: float | None = None
    ) -> None:
        """Record a check of a model's golden samples.

        Args:
            model: The model.
            passed: Whether all answers were correct.
            error: The largest scaled error.
            bound: The largest allowed error; None or 0 if the check uses other criteria.
        """
        self._golden_checks.labels(model).inc()
        self._golden.labels(model).set(int(passed))
        self._golden_time.labels(model).set(time.time())
        if bound:
            self._golden_error.labels(model).set(error / bound)
        if not passed:
            self._golden_failures.labels(model).inc()

    def record_skipped_check(self, model: str) -> None:
        """Record a check of golden samples that could not run."""
        self._golden_skipped.labels(model).inc()

    def record_worker_exit(self, reason: str) -> None:
        """Record that this worker ends itself; the parent process starts another one."""
        self._worker_exits.labels(reason).inc()

    def record_answer(self, model: str, endpoint: str, samples: int, seconds: float) -> None:
        """Record an answered request; called in the event loop."""
        key = model, endpoint
        self._answers[key].observe(seconds)
        self._answered_samples[key] += samples
        if self._flush_timer is None:
            self._flush_soon()

    def record_refusal(self, kind: ErrorKind) -> None:
        """Record a refused or failed request; called in the event loop."""
        self._refusals[kind] += 1
        if self._flush_timer is None:
            self._flush_soon()

    def record_batch(self, model: str, batch: BatchTiming) -> None:
        """Record a batch; called in the event loop."""
        samples, compute, queue = self._batches[model]
        samples.observe(batch.batch_samples)
        compute.observe(batch.compute_s)
        queue.observe(batch.queue_s)
        if self._flush_timer is None:
            self._flush_soon()

    def flush(self) -> None:
        """Add all buffered observations to the metrics."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        for key, duration in self._answers.items():
            if requests := duration.flush():
                self._requests.labels(*key).inc(requests)
                self._samples.labels(*key).inc(self._answered_samples[key])
        self._answered_samples.clear()
        for version_duration in self._version_answers.values():
            version_duration.flush()
        for histograms in self._batches.values():
            for histogram in histograms:
                histogram.flush()
        for kind, count in self._refusals.items():
            self._refused.labels(kind.label, str(kind.status)).inc(count)
        self._refusals.clear()
        for model, read_queued in self._read_queued.items():
            self._queued.labels(model).set(read_queued())

    def _flush_soon(self) -> None:
        self._flush_timer = asyncio.get_running_loop().call_later(FLUSH_INTERVAL_S, self.flush)
