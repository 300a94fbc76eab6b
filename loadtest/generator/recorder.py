"""What one generator process counts while it goes, in a form that several are merged in.

Latencies are HDR histograms of microseconds: histograms are added, percentiles never averaged.
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
# An HDR histogram takes some 150 kB: these bound the memory, however long a load is.
MOST_WINDOWS = 128
# Fields of several tallies that are added, and those of which the largest counts.
SUMMED = (
    *("processes", "sent", "in_window", "samples", "hung_up", "hung_up_samples"),
    *("wrong_answers", "no_room", "stragglers"),
)
LARGEST = ("window_s", "window_width_s", "cpu_share")
T = TypeVar("T")
Phase = Literal["warm-up", "window", "over"]


class WrongAnswer(BaseModel):
    """What was wrong, and the request that got it: ``position`` among the prepared ones."""

    model_config = ConfigDict(frozen=True)

    complaint: str
    position: int


class Tally(BaseModel):
    """The counts of one generator process, or of several together.

    Attributes:
        window_s: Seconds that counted.
        sent: Requests of that window.
        samples: In the right answers that came within it.
        hung_up: Requests whose client hung up before the answer; they are not among those sent.
        hung_up_samples: In these.
        slow: What became of slow clients' requests.
        in_window: Right answers that came within it.
        latency_us, lag_us: Encoded HDR histograms: of right answers, from the moment they were due
            (sent, in a closed loop); of how much later than due a request was sent.
        window_width_s: Of the windows that follow, seconds.
        windows_us: The latencies of each window of time, as histograms.
        refused_each_window: Answers of 429.
        no_room: Requests that found as many in flight as there may be, and were not sent.
        stragglers: Requests without an answer when the time to wait for them was over.
        cpu_share: Of one core, of the busiest process.
        named: Device and variant that answers named.
        lost_processes: Those that sent requests, and whose counts never came.
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
    """An empty histogram of microseconds up to two minutes, to three digits."""
    return HdrHistogram(1, LONGEST_US, SIGNIFICANT_DIGITS)


def decoded(encoded: str) -> HdrHistogram:
    """A histogram from its text."""
    return HdrHistogram.decode(encoded.encode())


def merged(tallies: Sequence[Tally], expected: int = 0) -> Tally:
    """What several processes counted at once, of so many expected, as if one had.

    Raises:
        ValueError: There are none.
    """
    if not tallies:
        raise ValueError("not one generator process told what it counted")
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

    Where there would be too many windows, neighbours are joined in pairs.
    """

    def __init__(self) -> None:
        """Begin with windows of a second."""
        self.width_s = 1.0
        self._latencies: list[HdrHistogram] = []
        self._refused: list[int] = []

    def answered(self, at_s: float, latency_us: int) -> None:
        """Count an answer that came so many seconds after the first window's beginning."""
        position = self._window(at_s)  # may join windows
        self._latencies[position].record_value(latency_us)

    def refused(self, at_s: float) -> None:
        """Count a refusal."""
        position = self._window(at_s)
        self._refused[position] += 1

    def whole(self, seconds: float) -> tuple[list[str], list[int]]:
        """The windows that are over after so many seconds: encoded histograms, and refusals."""
        count = int(seconds / self.width_s)
        if count:
            self._window((count - 0.5) * self.width_s)
            count = int(seconds / self.width_s)
        return [_encoded(each) for each in self._latencies[:count]], self._refused[:count]

    def _window(self, at_s: float) -> int:
        """The window of a moment, made if it is not there yet."""
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
    """Collects from the moment the warm-up is over."""

    def __init__(self, warmup_s: float, window_s: float = float("inf")) -> None:
        """Start the clock: the warm-up begins now, and behind it the window that counts."""
        self._latency, self._lag = new_histogram(), new_histogram()
        self._windows = Windows()
        self._counted: Counter[str] = Counter()  # by the name of a field of Tally
        self._errors: Counter[str] = Counter()
        self._wrong: list[WrongAnswer] = []
        self._slow: Counter[str] = Counter()
        self._process = psutil.Process()
        self._cpu_s: float | None = None
        self._cpu_end_s: float | None = None  # a closed loop goes on behind the window
        self._start_s = time.perf_counter() + warmup_s
        self._stop_s: float | None = None
        self._end_s = self._start_s + window_s
        self.named: tuple[str, str] | None = None

    def sent(self, late_s: float = 0.0) -> Phase:
        """A request is sent, so much later than it was due; only in the window it counts."""
        if not self._counts():
            return "warm-up"
        if not self._open():
            return "over"
        self._counted["sent"] += 1
        self._lag.record_value(max(1, round(late_s * 1e6)))
        return "window"

    def answered(self, latency_s: float, samples: int = 1) -> None:
        """A right answer came to a request of so many samples that counts."""
        value = max(1, round(latency_s * 1e6))
        self._latency.record_value(value)
        # Answers to what was in flight at the stop have a latency, but belong to no second.
        if self._open():
            self._counted["in_window"] += 1
            self._counted["samples"] += samples
            self._windows.answered(time.perf_counter() - self._start_s, value)

    def failed(self, kind: str, phase: Phase = "window") -> None:
        """A request of that phase got no answer, or a refusal."""
        if phase == "over" or (phase == "warm-up" and not self._counts()):
            return  # one of the warm-up that fails only now has kept its user from the window
        self._errors[kind] += 1
        if kind == REFUSED and self._open():
            self._windows.refused(time.perf_counter() - self._start_s)

    def wrong(self, complaint: str, position: int) -> None:
        """A wrong answer came; counted in the warm-up too, for none is excusable."""
        self._counted["wrong_answers"] += 1
        if len(self._wrong) < KEPT_WRONG_ANSWERS:
            self._wrong.append(WrongAnswer(complaint=complaint, position=position))

    def hung_up(self, samples: int) -> None:
        """A client sends a request of so many samples, and will not wait for its answer."""
        if self._counts() and self._open():
            self._counted["hung_up"] += 1
            self._counted["hung_up_samples"] += samples

    def slow(self, outcome: str) -> None:
        """A slow client's request was answered, or its connection closed."""
        self._slow[outcome] += 1

    def no_room(self) -> None:
        """A request was due while as many were in flight as there may be."""
        self._counted["no_room"] += 1

    def stragglers(self, count: int) -> None:
        """So many requests had no answer when the time to wait for them was over."""
        self._counted["stragglers"] += count
        if count:
            self._errors["no answer in time"] += count

    def stop(self) -> float:
        """The load ends now, if it had not: the window of all rates is closed. Returns when."""
        if self._stop_s is None:
            self._stop_s = min(time.perf_counter(), self._end_s)
            self._open()
        return self._stop_s

    @property
    def is_over(self) -> bool:
        """Whether the window of all rates is closed, so that the counts are whole."""
        return not self._open()

    def _open(self) -> bool:
        still = self._stop_s is None and time.perf_counter() < self._end_s
        if not still and self._cpu_end_s is None:
            self._cpu_end_s = self._cpu_time()
        return still

    def tally(self) -> Tally:
        """What was counted up to now, or to the stop."""
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
    """The values in groups of so many neighbours; the last group may be smaller."""
    return [values[start : start + count] for start in range(0, len(values), count)]


def _added(encoded: Sequence[str]) -> str:
    total = new_histogram()
    for text in encoded:
        total.add(decoded(text))
    return _encoded(total)
