"""Prometheus metrics, all of them: BentoML's own label raw paths, which any scan can multiply.

Made once in each worker, never at import: in the main process they would miss the folder in which
BentoML's workers collect their figures.
"""

import os
from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from service.waiting import BatchRecord

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics and the calls that feed them."""

    def __init__(self) -> None:
        """Register all metrics with the process's default registry."""
        self.settle: Callable[[], None] = lambda: None  # tells what was answered, but not yet told
        self._requests = Counter(
            "digits_requests", "Requests answered, by model and endpoint.", ["model", "endpoint"]
        )
        self._images = Counter(
            "digits_images", "Images answered, by model and endpoint.", ["model", "endpoint"]
        )
        self._refused = Counter(
            "digits_refused_requests", "Requests refused, by HTTP status.", ["status"]
        )
        self._batch_images = Histogram(
            "digits_batch_images", "Images in a batch.", ["model"], buckets=IMAGES
        )
        self._compute = Histogram(
            "digits_compute_seconds", "Time of a batch in the engine.", ["model"], buckets=SECONDS
        )
        self._queue = Histogram(
            "digits_queue_seconds",
            "Time that the request which waited longest in a batch waited for it.",
            ["model"],
            buckets=SECONDS,
        )
        self._queued = Gauge(
            "digits_queued_images",
            "Images that waited when the last batch was done.",
            ["model"],
            multiprocess_mode="livesum",
        )
        self._info = Gauge(
            "digits_model_info",
            "1 for each model served: version, variant, device and the runtime's provider.",
            ["model", "version", "variant", "device", "provider"],
            multiprocess_mode="max",
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
            multiprocess_mode="min",
        )

    def golden_checked(self, model: str, passed: bool) -> None:
        """A model was asked golden samples again."""
        self._golden.labels(model).set(int(passed))
        if not passed:
            self._golden_failures.labels(model).inc()

    def model_ready(
        self, model: str, version: str, variant: str, device: str, provider: str
    ) -> None:
        """A model passed its golden samples and is served."""
        self._info.labels(model, version, variant, device, provider).set(1)
        self._golden.labels(model).set(1)

    def answered(self, model: str, endpoint: str, images: int, requests: int = 1) -> None:
        """So many requests were answered."""
        self._requests.labels(model, endpoint).inc(requests)
        self._images.labels(model, endpoint).inc(images)

    def refused(self, status: int) -> None:
        """A request was refused or failed."""
        self._refused.labels(str(status)).inc()

    def batch(self, model: str, record: BatchRecord) -> None:
        """A batch ran."""
        self._batch_images.labels(model).observe(record.samples)
        self._compute.labels(model).observe(record.compute_s)
        self._queued.labels(model).set(record.queued_samples)
        # One observation a batch: each takes microseconds, as a request does.
        self._queue.labels(model).observe(record.longest_queue_s)


def exposition() -> tuple[bytes, str]:
    """All workers' figures in Prometheus' text format, and its content type."""
    registry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):  # BentoML gives its workers one
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST
