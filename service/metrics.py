"""Prometheus metrics, all of them: BentoML's own label raw paths, which any scan can multiply.

Made once in each worker, never at import: in the main process they would miss the folder in which
BentoML's workers collect their figures. What happens at every request or batch is tallied, and told
twice a second and before each scrape. docs/monitoring.md explains each metric.
"""

import asyncio
import time
from collections import Counter as Count
from collections.abc import Callable, Sequence
from typing import NamedTuple

from prometheus_client import Counter, Gauge

from service.errors import ErrorKind
from service.tally import BulkHistogram, Tally
from service.waiting import BatchRecord

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
# Of a whole request, which may wait as long as `timeout_s` says, 10 s.
REQUEST_SECONDS = (*SECONDS[:-1], 2.5, 5, 10)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SETTLED_EVERY_S = 0.5


class ModelInfo(NamedTuple):
    """What is served, as labels."""

    model: str
    version: str
    variant: str
    device: str
    provider: str


class GoldenCheck(NamedTuple):
    """What came of asking a model its golden samples.

    Attributes:
        passed: All answers were right.
        error: The largest scaled error.
        allowed: What it may be; None or 0 where there is nothing to compare it with.
    """

    passed: bool
    error: float
    allowed: float | None


class _Batches(NamedTuple):
    images: Tally
    compute: Tally
    queue: Tally


class Metrics:
    """The metrics and the calls that feed them."""

    def __init__(self) -> None:
        """Register all metrics with the process's default registry."""
        self._requests = Counter(
            "digits_requests", "Requests answered, by model and endpoint.", ["model", "endpoint"]
        )
        self._duration = BulkHistogram(
            "digits_request_duration_seconds",
            "From the end of a request's head to its answer, of the requests that got one.",
            ["model", "endpoint"],
            buckets=REQUEST_SECONDS,
        )
        self._images = Counter(
            "digits_images", "Images answered, by model and endpoint.", ["model", "endpoint"]
        )
        self._refused = Counter(
            "digits_refused_requests",
            "Requests refused or failed, by kind of error and its HTTP status.",
            ["kind", "status"],
        )
        self._batch_images = BulkHistogram(
            "digits_batch_images", "Images in a batch.", ["model"], buckets=IMAGES
        )
        self._compute = BulkHistogram(
            "digits_compute_seconds", "Time of a batch in the engine.", ["model"], buckets=SECONDS
        )
        self._queue = BulkHistogram(
            "digits_queue_seconds",
            "Time that the request which waited longest in a batch waited for it.",
            ["model"],
            buckets=SECONDS,
        )
        self._make_gauges()
        self._answers: dict[tuple[str, str], Tally] = {}
        self._answered_images = Count[tuple[str, str]]()
        self._batches: dict[str, _Batches] = {}
        self._refusals = Count[ErrorKind]()
        self._waiting: dict[str, Callable[[], int]] = {}
        self._due: asyncio.TimerHandle | None = None
        for kind in ErrorKind:
            self._refused.labels(kind.label, str(kind.status))

    def _make_gauges(self) -> None:
        """Those of workers that died are left out ("live"); see ``exposition``."""
        self._queued = Gauge(
            "digits_queued_images",
            "Images that wait for a batch, as of the last half second.",
            ["model"],
            multiprocess_mode="livesum",
        )
        self._queue_limit = Gauge(
            "digits_queue_limit_images",
            "Images that may wait for a batch; more are refused.",
            ["model"],
            multiprocess_mode="livesum",
        )
        self._info = Gauge(
            "digits_model_info",
            "1 for each model served: version, variant, device and the runtime's provider.",
            ModelInfo._fields,
            multiprocess_mode="livemax",
        )
        self._golden_checks = Counter(
            "digits_golden_checks", "Checks of a model by its golden samples.", ["model"]
        )
        self._golden_failures = Counter(
            "digits_golden_check_failures",
            "Checks in which the model answered its golden samples wrongly.",
            ["model"],
        )
        self._golden = Gauge(
            "digits_golden_check_passed",
            "1 if the model answered its golden samples rightly when it was last asked.",
            ["model"],
            multiprocess_mode="livemin",
        )
        self._golden_time = Gauge(
            "digits_golden_check_timestamp_seconds",
            "When the model was last asked its golden samples, in Unix time.",
            ["model"],
            multiprocess_mode="livemin",
        )
        self._golden_interval = Gauge(
            "digits_golden_check_interval_seconds",
            "Time between checks of golden samples, as set.",
            multiprocess_mode="livemax",
        )
        self._golden_error = Gauge(
            "digits_golden_check_error_ratio",
            "Largest error of the last check over what is allowed; above 1 the check fails.",
            ["model"],
            multiprocess_mode="livemax",
        )

    def model_ready(
        self,
        info: ModelInfo,
        golden: GoldenCheck,
        endpoints: Sequence[str],
        waiting: Callable[[], int],
        limit: int,
    ) -> None:
        """A model passed its golden samples and is served.

        Args:
            info: What it is.
            golden: How it passed.
            endpoints: Where it can be asked.
            waiting: How many images wait for it.
            limit: How many may.
        """
        model = info.model
        self._info.labels(*info).set(1)
        self._golden_failures.labels(model)
        self.golden_checked(model, golden)
        self._queue_limit.labels(model).set(limit)
        self._queued.labels(model).set(0)
        self._waiting[model] = waiting
        self._batches[model] = _Batches(
            Tally(self._batch_images.labels(model), IMAGES),
            Tally(self._compute.labels(model), SECONDS),
            Tally(self._queue.labels(model), SECONDS),
        )
        for endpoint in endpoints:  # known from the start: a rate needs the zero before the one
            self._requests.labels(model, endpoint)
            self._images.labels(model, endpoint)
            series = self._duration.labels(model, endpoint)
            self._answers[model, endpoint] = Tally(series, REQUEST_SECONDS)

    def golden_checked_every(self, interval_s: float) -> None:
        """How often models are going to be asked golden samples."""
        self._golden_interval.set(interval_s)

    def golden_checked(self, model: str, check: GoldenCheck) -> None:
        """A model was asked golden samples."""
        self._golden_checks.labels(model).inc()
        self._golden.labels(model).set(int(check.passed))
        self._golden_time.labels(model).set(time.time())
        if check.allowed:
            self._golden_error.labels(model).set(check.error / check.allowed)
        if not check.passed:
            self._golden_failures.labels(model).inc()

    def answered(self, model: str, endpoint: str, images: int, seconds: float) -> None:
        """A request was answered; in the event loop."""
        self._answers[model, endpoint].observe(seconds)
        self._answered_images[model, endpoint] += images
        self._settle_soon()

    def refused(self, kind: ErrorKind) -> None:
        """A request was refused or failed; in the event loop."""
        self._refusals[kind] += 1
        self._settle_soon()

    def batch(self, model: str, record: BatchRecord) -> None:
        """A batch ran; in the event loop."""
        tallies = self._batches[model]
        tallies.images.observe(record.samples)
        tallies.compute.observe(record.compute_s)
        tallies.queue.observe(record.longest_queue_s)
        self._settle_soon()

    def settle(self) -> None:
        """Tell what was tallied."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        for (model, endpoint), tally in self._answers.items():
            if requests := tally.settle():
                self._requests.labels(model, endpoint).inc(requests)
                self._images.labels(model, endpoint).inc(self._answered_images[model, endpoint])
        self._answered_images.clear()
        for tallies in self._batches.values():
            for tally in tallies:
                tally.settle()
        for kind, count in self._refusals.items():
            self._refused.labels(kind.label, str(kind.status)).inc(count)
        self._refusals.clear()
        for model, waiting in self._waiting.items():
            self._queued.labels(model).set(waiting())

    def _settle_soon(self) -> None:
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(SETTLED_EVERY_S, self.settle)
