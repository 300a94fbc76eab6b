"""The counts of a generator process after the warm-up, and the merging of several."""

import time

import numpy as np
import pytest

from loadtest.generator.recorder import Recorder, Tally, decoded, merged
from loadtest.measure.result import percentiles_ms


def test_percentiles_keep_microseconds() -> None:
    """Percentiles of 100 latencies from 0.1 to 10 ms are exact within the histogram's 0.1%."""
    recorder = Recorder(warmup_s=0)
    for i in range(1, 101):
        assert recorder.sent() == "window"
        recorder.answered(i / 10_000)
    tally = recorder.tally()
    latency = percentiles_ms(tally.latency_us)
    assert abs(latency["p50"] - 5.0) < 0.01
    assert abs(latency["p99"] - 9.9) < 0.02
    assert (tally.sent, tally.in_window) == (100, 100)


def test_the_warm_up_does_not_count_but_its_wrong_answers_do() -> None:
    """Requests sent before the end of the warm-up do not count, but wrong answers always do."""
    recorder = Recorder(warmup_s=0.05)
    assert recorder.sent() == "warm-up"
    recorder.failed("HTTP 500", "warm-up")
    recorder.wrong("label 3, expected 5", 7)
    time.sleep(0.06)
    assert recorder.sent(0.002) == "window"
    recorder.answered(0.002)
    assert recorder.sent() == "window"
    recorder.failed("HTTP 429")
    tally = recorder.tally()
    assert (tally.sent, tally.errors) == (2, {"HTTP 429": 1})
    assert abs(percentiles_ms(tally.lag_us)["p99"] - 2.0) < 0.01
    assert tally.wrong_answers == 1
    assert [(w.complaint, w.position) for w in tally.wrong_examples] == [("label 3, expected 5", 7)]


def test_what_is_answered_after_the_stop_has_a_latency_but_belongs_to_no_second() -> None:
    """After the window is closed, new requests do not count."""
    recorder = Recorder(warmup_s=0)
    assert recorder.sent() == "window"
    recorder.stop()
    recorder.answered(0.5)
    assert recorder.sent() == "over"
    recorder.failed("HTTP 500", "over")
    tally = recorder.tally()
    assert (tally.sent, tally.in_window) == (1, 0)
    assert decoded(tally.latency_us).get_total_count() == 1


def _tally(latencies_s: np.ndarray) -> Tally:
    recorder = Recorder(warmup_s=0)
    for latency_s in latencies_s:
        recorder.sent()
        recorder.answered(float(latency_s))
    recorder.failed("HTTP 500")
    return recorder.tally()


def test_histograms_are_merged_and_percentiles_never_averaged() -> None:
    """The p99 of a fast and a slow process is that of both together, not a mean."""
    fast, slow = np.full(990, 0.001), np.full(110, 0.1)
    both = merged([_tally(fast), _tally(slow)])
    together = percentiles_ms(both.latency_us, [50, 89, 99])
    expected = np.percentile(np.concatenate([fast, slow]) * 1000, [50, 89, 99])
    assert list(together.values()) == pytest.approx(expected.tolist(), rel=1e-3)
    assert (both.processes, both.sent, both.errors) == (2, 1100, {"HTTP 500": 2})


def test_nothing_merges_to_an_error() -> None:
    """If no process reported its counts, there is no result."""
    with pytest.raises(ValueError, match="no generator process reported"):
        merged([])


def test_the_generators_share_of_a_core_is_that_of_the_window() -> None:
    """CPU time after the window (users continue, the report is written) is not counted."""
    recorder = Recorder(warmup_s=0, window_s=0.05)
    assert recorder.sent() == "window"
    time.sleep(0.06)
    assert recorder.sent() == "over"
    until_s = time.process_time() + 0.3
    while time.process_time() < until_s:
        pass
    assert recorder.tally().cpu_share < 3


def test_an_hour_needs_no_more_memory_than_two_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """If there are too many windows, they are merged in pairs and all counts are kept."""
    now_s = [1000.0]
    monkeypatch.setattr("loadtest.generator.recorder.time.perf_counter", lambda: now_s[0])
    recorder = Recorder(warmup_s=0)
    for second in range(3600):
        now_s[0] = 1000.5 + second
        recorder.sent()
        recorder.answered(0.001)
    now_s[0] = 4600.0
    tally = recorder.tally()
    counts = [decoded(text).get_total_count() for text in tally.windows_us]
    assert len(counts) <= 128
    assert tally.window_width_s * len(counts) <= 3600
    assert sum(counts) >= 3600 - tally.window_width_s
    assert set(counts) == {tally.window_width_s}


def test_windows_of_different_width_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tallies whose windows were merged to different widths get the larger width."""
    now_s = [1000.0]
    monkeypatch.setattr("loadtest.generator.recorder.time.perf_counter", lambda: now_s[0])
    tallies = []
    for seconds in (120, 130):
        now_s[0] = 1000.0
        recorder = Recorder(warmup_s=0)
        for second in range(seconds):
            now_s[0] = 1000.5 + second
            recorder.sent()
            recorder.answered(0.001)
            recorder.failed("HTTP 429")
        now_s[0] = 1000.0 + seconds
        tallies.append(recorder.tally())
    both = merged(tallies)
    counts = [decoded(text).get_total_count() for text in both.windows_us]
    assert both.window_width_s == max(tally.window_width_s for tally in tallies)
    assert counts == both.refused_each_window
    assert counts[0] == 2 * both.window_width_s
    assert counts[-1] == both.window_width_s
