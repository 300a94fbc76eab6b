"""Figures of a run, from the moment the warm-up is over."""

import time

from loadtest.record import Recorder


def test_percentiles_keep_microseconds() -> None:
    """A hundred latencies from 0.1 to 10 ms give percentiles within the histogram's 0.1%."""
    recorder = Recorder(warmup_s=0)
    for i in range(1, 101):
        recorder.answered(i / 10)
    figures = recorder.figures(images_per_request=8)
    latency = figures["latency_ms"]
    assert isinstance(latency, dict)
    assert abs(latency["p50"] - 5.0) < 0.01
    assert abs(latency["p99"] - 9.9) < 0.02
    assert figures["requests"] == 100
    assert isinstance(figures["images_per_s"], float)
    assert isinstance(figures["requests_per_s"], float)
    assert abs(figures["images_per_s"] / figures["requests_per_s"] - 8) < 1e-9


def test_the_warm_up_does_not_count_but_its_wrong_answers_do() -> None:
    """Answers and failures before the warm-up's end are left out; wrong answers never are."""
    recorder = Recorder(warmup_s=0.05)
    recorder.answered(1)
    recorder.failed("HTTP 500")
    recorder.wrong("label 3, expected 5")
    time.sleep(0.06)
    recorder.answered(2)
    recorder.failed("HTTP 429")
    figures = recorder.figures(images_per_request=1)
    assert (figures["requests"], figures["errors"]) == (1, {"HTTP 429": 1})
    assert figures["wrong_answers"] == 1
    assert figures["wrong_answer_examples"] == ["label 3, expected 5"]
