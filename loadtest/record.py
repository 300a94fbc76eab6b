"""What is kept of a run while it goes: latencies in an HDR histogram, errors by kind, a time line.

Locust's own statistics round to whole milliseconds, which is longer than most answers here take.
"""

import time
from collections import Counter

import psutil
from hdrh.histogram import HdrHistogram
from pydantic import BaseModel, ConfigDict

LONGEST_US = 120_000_000
SIGNIFICANT_DIGITS = 3
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
SPECTRUM = (*range(0, 91, 5), 92.5, 95, 97.5, 98, 99, 99.5, 99.9, 99.99, 100)
KEPT_WRONG_ANSWERS = 20
MICROSECONDS = 1000  # in a millisecond


class Result(BaseModel):
    """One run's figures; latencies in milliseconds, as the client saw them."""

    model_config = ConfigDict(frozen=True)

    scenario: str
    model: str
    version: str
    endpoint: str
    users: int
    images_per_request: int
    url: str
    duration_s: float
    warmup_s: float
    requests: int
    requests_per_s: float
    images_per_s: float
    latency_ms: dict[str, float]
    latency_spectrum_ms: list[tuple[float, float]]
    errors: dict[str, int]
    wrong_answers: int
    wrong_answer_examples: list[str]
    requests_each_second: list[int]
    generator_cpu_share: float


class Recorder:
    """Collects answers from the moment the warm-up is over."""

    def __init__(self, warmup_s: float) -> None:
        """Start the clock: the warm-up begins now."""
        self._histogram = HdrHistogram(1, LONGEST_US, SIGNIFICANT_DIGITS)
        self._errors: Counter[str] = Counter()
        self._wrong: list[str] = []
        self._wrong_answers = 0
        self._each_second: Counter[int] = Counter()
        self._process = psutil.Process()
        self._cpu_s: float | None = None
        self._warmup_s = warmup_s
        self._start_s = time.perf_counter() + warmup_s
        self._stop_s: float | None = None
        self._in_window = 0

    def answered(self, latency_ms: float) -> None:
        """A right answer came."""
        if not self._counts():
            return
        self._histogram.record_value(max(1, round(latency_ms * MICROSECONDS)))
        # Answers to what was in flight at the stop have a latency, but belong to no second.
        if self._stop_s is None:
            self._in_window += 1
            self._each_second[int(time.perf_counter() - self._start_s)] += 1

    def stop(self) -> float:
        """The load ends now, if it had not: the window of all rates is closed. Returns when."""
        if self._stop_s is None:
            self._stop_s = time.perf_counter()
        return self._stop_s

    def failed(self, kind: str) -> None:
        """A request got no answer, or a refusal."""
        if self._counts():
            self._errors[kind] += 1

    def wrong(self, what: str) -> None:
        """A wrong answer came; counted in the warm-up too, for none is excusable."""
        self._wrong_answers += 1
        if len(self._wrong) < KEPT_WRONG_ANSWERS:
            self._wrong.append(what)

    def _counts(self) -> bool:
        if time.perf_counter() < self._start_s:
            return False
        if self._cpu_s is None:
            self._cpu_s = self._cpu_time()
        return True

    def _cpu_time(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def figures(self, images_per_request: int) -> dict[str, object]:
        """The measured fields of ``Result``."""
        elapsed = max(self.stop() - self._start_s, 1e-9)
        requests = self._histogram.get_total_count()
        cpu = self._cpu_time() - self._cpu_s if self._cpu_s is not None else 0.0
        whole_seconds = int(elapsed)
        return {
            "duration_s": elapsed,
            "warmup_s": self._warmup_s,
            "requests": requests,
            "requests_per_s": self._in_window / elapsed,
            "images_per_s": self._in_window * images_per_request / elapsed,
            "latency_ms": {f"p{share:g}": self._at(share) for share in PERCENTILES},
            "latency_spectrum_ms": [(float(share), self._at(share)) for share in SPECTRUM],
            "errors": dict(self._errors),
            "wrong_answers": self._wrong_answers,
            "wrong_answer_examples": self._wrong,
            "requests_each_second": [self._each_second[s] for s in range(whole_seconds)],
            "generator_cpu_share": cpu / elapsed,
        }

    def _at(self, percentile: float) -> float:
        return float(self._histogram.get_value_at_percentile(percentile)) / MICROSECONDS
