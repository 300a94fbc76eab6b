"""The service's own counters in Prometheus' text format, and what came between two scrapes."""

import math
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

MS = 1000  # in a second
OURS = "inference_"
REQUESTS, IMAGES = "inference_requests_total", "inference_samples_total"
REFUSED, QUEUED = "inference_refused_requests_total", "inference_queued_samples"
BATCH, QUEUE, COMPUTE = (
    "inference_batch_samples",
    "inference_queue_seconds",
    "inference_compute_seconds",
)
TIMES = tuple(f"{name}_{part}" for name in (QUEUE, COMPUTE) for part in ("sum", "count"))
BUCKET = f"{BATCH}_bucket"
WANTED = (REQUESTS, IMAGES, REFUSED, QUEUED, f"{BATCH}_", *TIMES)

Figures = Mapping[tuple[str, str], float]
"""Sums over models and endpoints, by a figure's name and its bucket's bound or its status."""


def read(text: str) -> Figures:
    """The figures that are wanted of Prometheus' text format; the other lines are not parsed.

    Raises:
        ValueError: None of the service's metrics is there, or the text has another format.
        LookupError: A bucket has no bound.
    """
    lines = text.splitlines()
    if not any(line.startswith(OURS) for line in lines):
        raise ValueError(f"it has no metrics of the service's (none is called {OURS}*)")
    figures: dict[tuple[str, str], float] = defaultdict(float)
    wanted = "".join(f"{line}\n" for line in lines if line.startswith(WANTED))
    for family in text_string_to_metric_families(wanted):
        for name, labels, value, *_ in family.samples:
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}")
            bound = _bound(float(labels["le"])) if name == BUCKET else ""
            figures[name, bound or labels.get("status", "")] += value
    return figures


def between(before: Figures, after: Figures, seconds: float) -> dict[str, Any]:
    """The fields of a ``ServerSample`` that come of counters, from two readings.

    Args:
        before: The earlier reading.
        after: The later one; if a count is smaller there, the server began anew, and it counts
            from zero.
        seconds: From the one to the other.
    """
    whole = [key for key in before if key[0].endswith(("_total", "_count"))]
    if any(after.get(key, 0) < before[key] for key in whole):
        before = {}
    more = {key: value - before.get(key, 0) for key, value in after.items()}

    def one(name: str) -> float:
        return more.get((name, ""), 0.0)

    def mean(name: str, scale: float = 1) -> float | None:
        count = one(f"{name}_count")
        return scale * one(f"{name}_sum") / count if count else None

    refused = {status: n / seconds for (name, status), n in more.items() if name == REFUSED and n}
    up_to = {float(le): n for (name, le), n in more.items() if name == BUCKET}
    bounds = sorted(up_to)
    sizes = {bound: up_to[bound] - up_to.get(below, 0) for below, bound in pairwise([0, *bounds])}
    return {
        "samples_per_s": one(IMAGES) / seconds,
        "computed_per_s": one(f"{BATCH}_sum") / seconds,
        "requests_per_s": one(REQUESTS) / seconds,
        "refused_per_s": refused,
        "batches_per_s": one(f"{BATCH}_count") / seconds,
        "samples_per_batch": mean(BATCH),
        "batch_sizes": {_bound(bound): round(count) for bound, count in sizes.items()},
        "queue_ms": mean(QUEUE, MS),
        "compute_ms": mean(COMPUTE, MS),
        "queued_samples": round(after.get((QUEUED, ""), 0)),
    }


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else f"{bound:g}"
