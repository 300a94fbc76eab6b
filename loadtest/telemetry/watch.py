"""Samples a server once a second during a load: its metrics, its processes and the GPUs.

Watching is cheap. One scrape of the service's /metrics is 4 to 8 kB. It takes 1.5 to 2.2 ms of CPU
time in a worker (two models; more workers take longer) and 0.9 ms in this process: at one scrape a
second, 0.2% and 0.1% of a core. An answer may be delayed by these milliseconds. The processes are
searched for once, before the load (40 to 70 ms among a hundred processes); reading their usage
takes 0.1 ms each second. nvidia-smi is started once and keeps printing readings.
"""

import http.client
import math
import os
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from types import TracebackType
from typing import Any, Self

import psutil
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict

from loadtest.scenarios import API_KEY_VARIABLE
from loadtest.telemetry.usage import Gpus, Processes

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
"""Sums over models and endpoints, by the metric's name and its bucket's bound or its status."""
SCRAPE_TIMEOUT_S = 5.0
MOST_READINGS = 1_000  # above this, every other reading is dropped and the interval doubled
SECONDS_PER_HOUR = 3600
FEWEST_A_MEDIAN = 3
BY_SECONDS = (
    *("samples_per_s", "computed_per_s", "requests_per_s", "batches_per_s", "queued_samples"),
    *("cpu_cores", "rss_bytes", "open_files", "gpu_percent", "gpu_bytes"),
)
BY_BATCHES = ("samples_per_batch", "queue_ms", "compute_ms")


class ServerSample(BaseModel):
    """One interval; unknown fields are None (``ServerWatch.reasons`` says why).

    Attributes:
        at_s: End of the interval, in seconds since the watch began.
        seconds: Length of the interval; the rates are means over it.
        samples_per_s: Samples answered.
        computed_per_s: Samples that ran in batches, including the service's own golden checks.
        requests_per_s: Requests answered, without the refused ones.
        refused_per_s: Requests refused, by status; only statuses that occurred.
        batches_per_s: Batches that ran.
        samples_per_batch: Mean size of the batches; None also if none ran.
        batch_sizes: For each bucket's upper bound ("1", "2" ... "+Inf"), the number of batches
            above the previous bound and up to this one.
        queue_ms: Mean over the batches of the longest waiting time of a request in the batch.
        compute_ms: Mean time of a batch in the engine.
        queued_samples: Samples that were waiting when the last batch was done.
        cpu_cores: CPU use of the service's processes, in cores.
        rss_bytes: Resident memory of these processes; shared memory is counted in each.
        open_files: File descriptors of these processes, including connections.
        gpu_percent: Utilisation of the machine's busiest GPU.
        gpu_bytes: Memory in use on all of the machine's GPUs, by any process.
    """

    model_config = ConfigDict(frozen=True)

    at_s: float
    seconds: float
    samples_per_s: float | None = None
    computed_per_s: float | None = None
    requests_per_s: float | None = None
    refused_per_s: dict[str, float] | None = None
    batches_per_s: float | None = None
    samples_per_batch: float | None = None
    batch_sizes: dict[str, int] | None = None
    queue_ms: float | None = None
    compute_ms: float | None = None
    queued_samples: int | None = None
    cpu_cores: float | None = None
    rss_bytes: int | None = None
    open_files: int | None = None
    gpu_percent: float | None = None
    gpu_bytes: int | None = None


@dataclass(frozen=True)
class _Reading:
    """All readings at one moment (``time.perf_counter``); None: not known."""

    at_s: float
    figures: Figures | None
    cpu_s: Mapping[int, float] | None
    rss_bytes: int | None
    open_files: int | None
    gpu_percent: float | None
    gpu_bytes: int | None


class ServerWatch:
    """Samples a server from a daemon thread for the duration of a ``with`` block; never raises.

    A remainder of less than half an interval at the end is added to the last sample. If a scrape
    fails, the samples before and after it have no counters. If the server restarted between two
    scrapes, its counters are taken to start from zero.

    Attributes:
        reasons: The first reason why something is unknown, by "metrics", "processes" or "gpu".
    """

    def __init__(self, url: str, interval_s: float = 1.0) -> None:
        """Prepare the watch; sampling starts on entering the context.

        Args:
            url: The server's URL, e.g. http://127.0.0.1:3000. If the environment variable
                LOADTEST_API_KEY is set, it is sent as X-Api-Key.
            interval_s: Time from one scrape to the next, in seconds.
        """
        self.reasons: dict[str, str] = {}
        self._request_url, self._interval_s = f"{url.rstrip('/')}/metrics", interval_s
        self._processes = Processes(url)
        self._gpus = Gpus(self.reasons)
        self._readings: list[_Reading] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="server watch", daemon=True)

    def __enter__(self) -> Self:
        """Take the first reading, from which all samples are counted, and start the thread."""
        self._read()
        if self._processes.here:
            self._gpus.start(self._interval_s)
        else:
            self.reasons["gpu"] = "the server is not known to run on this machine"
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the thread, which takes a last reading."""
        self._stop.set()
        self._thread.join(2 * SCRAPE_TIMEOUT_S)
        self._gpus.stop()
        if self._readings[2:]:
            before, last = self._readings[-2:]
            short = last.at_s - before.at_s < self._interval_s / 2
            if short and (last.figures is not None or before.figures is None):
                del self._readings[-2]

    @property
    def samples(self) -> list[ServerSample]:
        """All samples so far."""
        readings = list(self._readings)
        return [_sample(a, b, readings[0].at_s) for a, b in pairwise(readings)]

    @property
    def processes(self) -> dict[int, str]:
        """Names of the service's processes on this machine, by process id."""
        return self._processes.names

    def _watch(self) -> None:
        due_s, stopped = time.perf_counter(), False
        while not stopped:
            due_s = max(due_s + self._interval_s, time.perf_counter())
            stopped = self._stop.wait(due_s - time.perf_counter())
            self._read()

    def _read(self) -> None:
        figures, cpu_s, rss_bytes, open_files = None, None, None, None
        try:
            figures = read(self._scrape())
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            self.reasons.setdefault("metrics", f"{self._request_url}: {error or repr(error)}")
        at_s = time.perf_counter()
        try:
            cpu_s, rss_bytes, open_files = self._processes.used()
        except (psutil.Error, OSError, ValueError, LookupError) as error:
            self.reasons.setdefault("processes", str(error))
        used = (cpu_s, rss_bytes, open_files)
        self._readings.append(_Reading(at_s, figures, *used, *self._gpus.now()))
        if len(self._readings) > MOST_READINGS:
            self._readings[1::2] = []
            self._interval_s *= 2

    def _scrape(self) -> str:
        request = urllib.request.Request(self._request_url)  # noqa: S310 - the server under test
        if key := os.environ.get(API_KEY_VARIABLE, "").strip():
            request.add_unredirected_header("X-Api-Key", key)  # not sent to a redirect's target
        with urllib.request.urlopen(request, timeout=SCRAPE_TIMEOUT_S) as answer:  # noqa: S310
            return str(answer.read().decode())


def _sample(before: _Reading, after: _Reading, start_s: float) -> ServerSample:
    seconds = after.at_s - before.at_s
    counted: dict[str, Any] = {}
    if before.figures is not None and after.figures is not None:
        counted = between(before.figures, after.figures, seconds)
    cores = None
    if before.cpu_s is not None and after.cpu_s is not None:
        both = before.cpu_s.keys() & after.cpu_s.keys()
        cores = sum(after.cpu_s[pid] - before.cpu_s[pid] for pid in both) / seconds
    return ServerSample(
        at_s=after.at_s - start_s,
        seconds=seconds,
        cpu_cores=cores,
        rss_bytes=after.rss_bytes,
        open_files=after.open_files,
        gpu_percent=after.gpu_percent,
        gpu_bytes=after.gpu_bytes,
        **counted,
    )


def summary(samples: Sequence[ServerSample]) -> dict[str, Any]:
    """Means over the samples, under the names of a sample's fields; JSON-serializable.

    Rates, levels and shares are weighted by the samples' lengths; figures of a batch
    (``samples_per_batch``, ``queue_ms``, ``compute_ms``) by the samples' batches. ``batch_sizes``
    and ``seconds`` are sums, ``samples`` is the number of samples and ``samples_with_metrics`` of
    those with counters. ``samples_in_vain`` were computed but not answered: their client had hung
    up, or they were golden checks. ``rss_growth_bytes_per_h`` and ``open_files_growth_per_h`` show
    leaks in a long load. Values are None if no sample has them.
    """
    known = [sample for sample in samples if sample.samples_per_s is not None]
    lengths_s = [sample.seconds for sample in samples]
    batches = [sample.seconds * (sample.batches_per_s or 0) for sample in samples]
    found: dict[str, Any] = {
        "samples": len(samples),
        "samples_with_metrics": len(known),
        "seconds": sum(lengths_s),
        "refused_per_s": None,
        "batch_sizes": None,
        "samples_in_vain": None,
        "rss_growth_bytes_per_h": _growth_per_h(samples, "rss_bytes"),
        "open_files_growth_per_h": _growth_per_h(samples, "open_files"),
    }
    for name in (*BY_SECONDS, *BY_BATCHES):
        weights = batches if name in BY_BATCHES else lengths_s
        found[name] = _mean([getattr(sample, name) for sample in samples], weights)
    if known:
        refused: dict[str, float] = defaultdict(float)
        sizes: Counter[str] = Counter()
        known_s = sum(sample.seconds for sample in known)
        for sample in known:
            sizes.update(sample.batch_sizes or {})
            for status, rate in (sample.refused_per_s or {}).items():
                refused[status] += rate * sample.seconds / known_s
        found["refused_per_s"] = dict(refused)
        found["batch_sizes"] = dict(sizes)
        computed = sum((s.computed_per_s or 0) * s.seconds for s in known)
        answered = sum((s.samples_per_s or 0) * s.seconds for s in known)
        found["samples_in_vain"] = max(0, round(computed - answered))
    return found


def _growth_per_h(samples: Sequence[ServerSample], name: str) -> float | None:
    """Growth of a level per hour, from the median of the second quarter to that of the last one.

    The first quarter is ignored, because caches fill then. None if a quarter has too few samples.
    """
    known = [(s.at_s, getattr(s, name)) for s in samples if getattr(s, name) is not None]
    size = len(known) // 4
    if size < FEWEST_A_MEDIAN:
        return None
    (first_s, first), (last_s, last) = (
        (median(at_s for at_s, _ in part), median(value for _, value in part))
        for part in (known[size : 2 * size], known[-size:])
    )
    return float((last - first) / (last_s - first_s) * SECONDS_PER_HOUR)


def _mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    pairs = [(v, weight) for v, weight in zip(values, weights, strict=True) if v is not None]
    total = sum(weight for _, weight in pairs)
    return sum(v * weight for v, weight in pairs) / total if total else None


def read(text: str) -> Figures:
    """Parse the needed metrics from Prometheus' text format; the other lines are not parsed.

    Raises:
        ValueError: The text has none of the service's metrics, or has another format.
        LookupError: A bucket has no bound.
    """
    lines = text.splitlines()
    if not any(line.startswith(OURS) for line in lines):
        raise ValueError(f"it has none of the service's metrics (their names begin with {OURS})")
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
    """The fields of a ``ServerSample`` that are computed from the counters of two readings.

    Args:
        before: The earlier reading.
        after: The later reading; if one of its counts is smaller, the server has restarted, and
            all of its counts start from zero.
        seconds: Time between the two readings.
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
