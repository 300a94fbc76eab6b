"""Counts the requests and latencies of a generator process, and merges several processes' counts.

Latencies are HDR histograms in microseconds: histograms are added, percentiles never averaged.
Locust's own statistics round to whole milliseconds, which is longer than most answers here take.
"""

import time
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal, TypeVar

import psutil
from hdrh.histogram import HdrHistogram
from pydantic import BaseModel, ConfigDict

LONGEST_US = 120_000_000
SIGNIFICANT_DIGITS = 3
KEPT_WRONG_ANSWERS = 20
MICROSECONDS = 1000  # in a millisecond
REFUSED = "HTTP 429"
# An HDR histogram takes about 150 kB: this bounds the memory, however long a load is.
MOST_WINDOWS = 128
# Fields that are summed when tallies are merged, and those of which the largest is kept.
SUMMED = (
    *("processes", "sent", "in_window", "samples", "hung_up", "hung_up_samples"),
    *("wrong_answers", "no_room", "stragglers"),
)
LARGEST = ("window_s", "window_width_s", "cpu_share")
T = TypeVar("T")
Phase = Literal["warm-up", "window", "over"]


class WrongAnswer(BaseModel):
    """What was wrong, and ``position``, the index of the request among the prepared ones."""

    model_config = ConfigDict(frozen=True)

    complaint: str
    position: int


class Tally(BaseModel):
    """The counts of one generator process, or of several together.

    Attributes:
        window_s: Length of the measured window (after the warm-up), seconds.
        sent: Requests sent in that window.
        samples: Samples in the right answers that came within it.
        hung_up: Requests whose client hung up before the answer; ``sent`` does not include them.
        hung_up_samples: Samples in these requests.
        slow: Outcomes of slow clients' requests, with their counts.
        in_window: Right answers that came within the measured window.
        latency_us, lag_us: Encoded HDR histograms: latencies of right answers, from the moment the
            request was due (sent, in a closed loop); and how much later than due it was sent.
        window_width_s: Width of the windows in the next two fields, seconds.
        windows_us: The latencies of each window of time, as encoded histograms.
        refused_each_window: Number of 429 answers in each window.
        no_room: Requests that were not sent because the limit of requests in flight was reached.
        stragglers: Requests without an answer when the time to wait for them was over.
        cpu_share: CPU use of the busiest process, as a share of one core.
        named: Device and variant that answers named.
        lost_processes: Number of generator processes that never reported their counts.
    """

    model_config = ConfigDict(frozen=True)

    processes: int = 1
    window_s: float
    sent: int
    in_window: int
    samples: int = 0
    hung_up: int = 0
    hung_up_samples: int = 0
    slow: dict[str, int] = {}
    latency_us: str
    lag_us: str
    window_width_s: float = 1.0
    windows_us: list[str]
    refused_each_window: list[int]
    errors: dict[str, int]
    wrong_answers: int
    wrong_examples: list[WrongAnswer]
    no_room: int
    stragglers: int
    cpu_share: float
    named: tuple[str, str] | None
    lost_processes: int = 0


def new_histogram() -> HdrHistogram:
    """An empty histogram of microseconds, up to two minutes, with three significant digits."""
    return HdrHistogram(1, LONGEST_US, SIGNIFICANT_DIGITS)


def decoded(encoded: str) -> HdrHistogram:
    """Decode a histogram from its text."""
    return HdrHistogram.decode(encoded.encode())


def merged(tallies: Sequence[Tally], expected: int = 0) -> Tally:
    """Merge the tallies of several processes; ``expected`` is the number of processes started.

    Raises:
        ValueError: There are no tallies.
    """
    if not tallies:
        raise ValueError("no generator process reported its counts")
    width_s = max(t.window_width_s for t in tallies)
    refused = [_joined(t.refused_each_window, round(width_s / t.window_width_s)) for t in tallies]
    windows = [_joined(t.windows_us, round(width_s / t.window_width_s)) for t in tallies]
    counters = {
        name: dict(sum((Counter(getattr(t, name)) for t in tallies), Counter[str]()))
        for name in ("errors", "slow")
    }
    return Tally(
        **{name: sum(getattr(t, name) for t in tallies) for name in SUMMED},
        **{name: max(getattr(t, name) for t in tallies) for name in LARGEST},
        **{name: _added([getattr(t, name) for t in tallies]) for name in ("latency_us", "lag_us")},
        **counters,
        windows_us=[
            _added([text for group in each for text in group])
            for each in zip_longest(*windows, fillvalue=[])
        ],
        refused_each_window=[
            sum(sum(group) for group in each) for each in zip_longest(*refused, fillvalue=[])
        ],
        wrong_examples=[w for t in tallies for w in t.wrong_examples][:KEPT_WRONG_ANSWERS],
        named=next((t.named for t in tallies if t.named), None),
        lost_processes=max(0, expected - len(tallies)),
    )


class Windows:
    """Latencies and refusals over time, in a bounded number of windows of equal width.

    If there would be too many windows, neighbouring windows are merged in pairs.
    """

    def __init__(self) -> None:
        """Begin with windows of one second."""
        self.width_s = 1.0
        self._latencies: list[HdrHistogram] = []
        self._refused: list[int] = []

    def answered(self, at_s: float, latency_us: int) -> None:
        """Count an answer that came ``at_s`` seconds after the first window's beginning."""
        position = self._window(at_s)  # may merge windows
        self._latencies[position].record_value(latency_us)

    def refused(self, at_s: float) -> None:
        """Count a refusal that came ``at_s`` seconds after the first window's beginning."""
        position = self._window(at_s)
        self._refused[position] += 1

    def whole(self, seconds: float) -> tuple[list[str], list[int]]:
        """The windows that are complete after so many seconds: encoded histograms, and refusals."""
        count = int(seconds / self.width_s)
        if count:
            self._window((count - 0.5) * self.width_s)
            count = int(seconds / self.width_s)
        return [_encoded(each) for each in self._latencies[:count]], self._refused[:count]

    def _window(self, at_s: float) -> int:
        """The index of the window at that moment; missing windows are created."""
        while at_s >= self.width_s * MOST_WINDOWS:
            self._join_pairs()
        position = int(at_s / self.width_s)
        while len(self._refused) <= position:
            self._latencies.append(new_histogram())
            self._refused.append(0)
        return position

    def _join_pairs(self) -> None:
        for first, second in zip(self._latencies[::2], self._latencies[1::2], strict=False):
            first.add(second)
        self._latencies = self._latencies[::2]
        self._refused = [sum(group) for group in _joined(self._refused, 2)]
        self.width_s *= 2


class Recorder:
    """Counts the outcomes of requests from the end of the warm-up."""

    def __init__(self, warmup_s: float, window_s: float = float("inf")) -> None:
        """Start the clock: the warm-up begins now, and the measured window follows it."""
        self._latency, self._lag = new_histogram(), new_histogram()
        self._windows = Windows()
        self._counted: Counter[str] = Counter()  # by field name of Tally
        self._errors: Counter[str] = Counter()
        self._wrong: list[WrongAnswer] = []
        self._slow: Counter[str] = Counter()
        self._process = psutil.Process()
        self._cpu_s: float | None = None
        self._cpu_end_s: float | None = None  # a closed loop continues after the window
        self._start_s = time.perf_counter() + warmup_s
        self._stop_s: float | None = None
        self._end_s = self._start_s + window_s
        self.named: tuple[str, str] | None = None

    def sent(self, late_s: float = 0.0) -> Phase:
        """Record a request that is sent ``late_s`` after it was due; counted only in the window."""
        if not self._counts():
            return "warm-up"
        if not self._open():
            return "over"
        self._counted["sent"] += 1
        self._lag.record_value(max(1, round(late_s * 1e6)))
        return "window"

    def answered(self, latency_s: float, samples: int = 1) -> None:
        """Record a right answer to a request of so many samples that was sent in the window."""
        value = max(1, round(latency_s * 1e6))
        self._latency.record_value(value)
        # Answers that arrive after the window have a latency, but do not count for its rates.
        if self._open():
            self._counted["in_window"] += 1
            self._counted["samples"] += samples
            self._windows.answered(time.perf_counter() - self._start_s, value)

    def failed(self, kind: str, phase: Phase = "window") -> None:
        """Record a request, sent in that phase, that got no answer or was refused."""
        if phase == "over" or (phase == "warm-up" and not self._counts()):
            return  # a warm-up request that fails in the window counts: it has blocked its user
        self._errors[kind] += 1
        if kind == REFUSED and self._open():
            self._windows.refused(time.perf_counter() - self._start_s)

    def wrong(self, complaint: str, position: int) -> None:
        """Record a wrong answer; wrong answers count in the warm-up too."""
        self._counted["wrong_answers"] += 1
        if len(self._wrong) < KEPT_WRONG_ANSWERS:
            self._wrong.append(WrongAnswer(complaint=complaint, position=position))

    def hung_up(self, samples: int) -> None:
        """Record a request of so many samples whose client does not wait for its answer."""
        if self._counts() and self._open():
            self._counted["hung_up"] += 1
            self._counted["hung_up_samples"] += samples

    def slow(self, outcome: str) -> None:
        """Record the outcome of a slow client's request: it was answered, or was closed."""
        self._slow[outcome] += 1

    def no_room(self) -> None:
        """Record a due request that is not sent because too many requests are in flight."""
        self._counted["no_room"] += 1

    def stragglers(self, count: int) -> None:
        """Record so many requests that had no answer when the time to wait was over."""
        self._counted["stragglers"] += count
        if count:
            self._errors["no answer in time"] += count

    def stop(self) -> float:
        """End the measured window now, unless it is over already; return the moment it ended."""
        if self._stop_s is None:
            self._stop_s = min(time.perf_counter(), self._end_s)
            self._open()
        return self._stop_s

    @property
    def is_over(self) -> bool:
        """Whether the measured window is closed, so that the counts are complete."""
        return not self._open()

    def _open(self) -> bool:
        still = self._stop_s is None and time.perf_counter() < self._end_s
        if not still and self._cpu_end_s is None:
            self._cpu_end_s = self._cpu_time()
        return still

    def tally(self) -> Tally:
        """The counts up to now, or up to the end of the window."""
        now_s = min(time.perf_counter(), self._end_s) if self._stop_s is None else self._stop_s
        window_s = max(now_s - self._start_s, 1e-9)
        cpu_end_s = self._cpu_time() if self._cpu_end_s is None else self._cpu_end_s
        cpu_s = cpu_end_s - self._cpu_s if self._cpu_s is not None else 0.0
        windows_us, refused = self._windows.whole(window_s)
        return Tally(
            window_s=window_s,
            **{name: self._counted[name] for name in SUMMED if name != "processes"},
            slow=dict(self._slow),
            latency_us=_encoded(self._latency),
            lag_us=_encoded(self._lag),
            window_width_s=self._windows.width_s,
            windows_us=windows_us,
            refused_each_window=refused,
            errors=dict(self._errors),
            wrong_examples=self._wrong,
            cpu_share=cpu_s / window_s,
            named=self.named,
        )

    def _counts(self) -> bool:
        if time.perf_counter() < self._start_s:
            return False
        if self._cpu_s is None:
            self._cpu_s = self._cpu_time()
        return True

    def _cpu_time(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


def _encoded(histogram: HdrHistogram) -> str:
    return bytes(histogram.encode()).decode()


def _joined(values: Sequence[T], count: int) -> list[Sequence[T]]:
    """Split the values into groups of ``count`` neighbours; the last group may be smaller."""
    return [values[start : start + count] for start in range(0, len(values), count)]


def _added(encoded: Sequence[str]) -> str:
    total = new_histogram()
    for text in encoded:
        total.add(decoded(text))
    return _encoded(total)
