"""What the server says of itself during a load, once a second: its counters, processes and GPU.

Watching is cheap. One scrape of the service's /metrics is 4 to 8 kB, for which a worker of it takes
1.5 to 2.2 ms of CPU time (two models; more workers take longer) and this process 0.9 ms: of a watch
of once a second, 0.2% of a core there and 0.1% here. In these milliseconds an answer may wait. The
processes are looked for once, before the load (40 to 70 ms among a hundred); reading what they used
takes 0.1 ms each second. nvidia-smi is started once and goes on telling.
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
"""Sums over models and endpoints, by a figure's name and its bucket's bound or its status."""
SCRAPE_TIMEOUT_S = 5.0
MOST_READINGS = 1_000  # of a load of hours every other one is left out
SECONDS_PER_HOUR = 3600
FEWEST_A_MEDIAN = 3
BY_SECONDS = (
    *("samples_per_s", "computed_per_s", "requests_per_s", "batches_per_s", "queued_samples"),
    *("cpu_cores", "rss_bytes", "open_files", "gpu_percent", "gpu_bytes"),
)
BY_BATCHES = ("samples_per_batch", "queue_ms", "compute_ms")


class ServerSample(BaseModel):
    """One interval; a field is None where it could not be known (``ServerWatch.reasons``).

    Attributes:
        at_s: The interval's end, in seconds since the watch began.
        seconds: Its length; the rates are means over it.
        samples_per_s: Images answered.
        computed_per_s: Samples that ran in batches, the service's own golden checks among them.
        requests_per_s: Requests answered; refused ones are not among them.
        refused_per_s: Requests refused, by status; only those that occurred.
        batches_per_s: Batches that ran.
        samples_per_batch: Their mean size; None too if none ran.
        batch_sizes: Bucket's upper bound ("1", "2" ... "+Inf") to batches above the bound before
            and up to this one.
        queue_ms: Mean over the batches of what the request waited that had waited longest.
        compute_ms: Mean time of a batch in the engine.
        queued_samples: That waited when the last batch was done.
        cpu_cores: What the service's processes used of the CPU, in cores.
        rss_bytes: Resident memory of these; what they share is counted in each.
        open_files: File descriptors of these processes, connections among them.
        gpu_percent: Utilisation of the machine's busiest GPU.
        gpu_bytes: Memory used of all its GPUs, by whomever.
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
    """What was known at one moment (``time.perf_counter``)."""

    at_s: float
    figures: Figures | None
    cpu_s: Mapping[int, float] | None
    rss_bytes: int | None
    open_files: int | None
    gpu_percent: float | None
    gpu_bytes: int | None


class ServerWatch:
    """Samples a server from a daemon thread as long as the block runs; it never raises.

    A rest of less than half an interval at the end is added to the last sample. Where a scrape
    fails, the samples before and after it know no counters; a server that began anew between two
    scrapes is counted from zero.

    Attributes:
        reasons: Why something is not known, the first time: by "metrics", "processes", "gpu".
    """

    def __init__(self, url: str, interval_s: float = 1.0) -> None:
        """Nothing is asked yet.

        Args:
            url: The server's, e.g. http://127.0.0.1:3000. If it wants a key, the environment's
                LOADTEST_API_KEY is sent as X-Api-Key.
            interval_s: From one scrape to the next, in seconds.
        """
        self.reasons: dict[str, str] = {}
        self._request_url, self._interval_s = f"{url.rstrip('/')}/metrics", interval_s
        self._processes = Processes(url)
        self._gpus = Gpus(self.reasons)
        self._readings: list[_Reading] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="server watch", daemon=True)

    def __enter__(self) -> Self:
        """Take the first reading, from which on everything is counted."""
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
        """Take the last reading."""
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
        """All until now."""
        readings = list(self._readings)
        return [_sample(a, b, readings[0].at_s) for a, b in pairwise(readings)]

    @property
    def processes(self) -> dict[int, str]:
        """The service's processes on this machine: names by id."""
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
            request.add_unredirected_header("X-Api-Key", key)  # not to whom it may send us
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
    """Means over the samples, under the names of a sample's fields; all of it can be JSON.

    Rates, levels and shares are weighted by the samples' lengths; what is said of a batch
    (``samples_per_batch``, ``queue_ms``, ``compute_ms``) by their batches. ``batch_sizes`` is their
    sum, ``seconds`` their length, ``samples`` their number and ``samples_with_metrics`` the number
    of those with counters. ``samples_in_vain`` were computed and not answered, because their client
    had hung up. ``rss_growth_bytes_per_h`` and ``open_files_growth_per_h`` say what a long load
    leaks. None where no sample knows.
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
    """How much a level grows in an hour: from the median of the second quarter to the last one's.

    In the first quarter caches fill. None for fewer samples than a median of each needs.
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
