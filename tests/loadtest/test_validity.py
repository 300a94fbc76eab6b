"""Each rule rejects one kind of bad measurement; a bad service is a valid result."""

from typing import Any

import pytest

from loadtest.generator.recorder import Tally, new_histogram
from loadtest.measure.validity import judge, queries_needed
from loadtest.scenarios import load_profile, load_scenario

SERVER = load_scenario("Server", rate_per_s=200.0)
CLOSED = load_scenario("Concurrency")
PROFILE = load_profile("smoke", duration_s=10.0)


def _encoded(*values_us: tuple[int, int]) -> str:
    histogram = new_histogram()
    for value, count in values_us:
        histogram.record_value(value, count)
    return bytes(histogram.encode()).decode()


def _tally(**changes: Any) -> Tally:
    """2,000 answers of 5 ms in ten steady seconds, each sent 50 microseconds late."""
    fields: dict[str, Any] = {
        "window_s": 10.0,
        "sent": 2000,
        "in_window": 2000,
        "latency_us": _encoded((5000, 2000)),
        "lag_us": _encoded((50, 2000)),
        "windows_us": [_encoded((5000, 200))] * 10,
        "refused_each_window": [0] * 10,
        "errors": {},
        "wrong_answers": 0,
        "wrong_examples": [],
        "no_room": 0,
        "stragglers": 0,
        "cpu_share": 0.5,
        "named": ("cpu", "onnx"),
    }
    return Tally(**(fields | changes))


def test_an_honest_point_is_valid() -> None:
    """A good measurement is valid in an open loop and in a closed one."""
    assert judge(_tally(), SERVER, PROFILE).valid
    assert judge(_tally(), CLOSED, PROFILE).valid


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"wrong_answers": 1}, "1 wrong answers"),
        ({"in_window": 0}, "no correct answer"),
        ({"window_s": 8.0}, "measured 8.0 s, expected 10 s"),
        ({"cpu_share": 0.85}, "85% of a core"),
        ({"no_room": 3}, "3 requests were not sent"),
        ({"sent": 1500}, "1500 requests were sent, 2000 were due"),
        ({"lag_us": _encoded((900, 2000))}, "sent late"),
        ({"windows_us": [_encoded((5000, n)) for n in (400,) * 7 + (100,) * 3]}, "not steady"),
        (
            {"latency_us": _encoded((5000, 445), (30_000, 2)), "sent": 447, "window_s": 10.0},
            "are too few to judge p99; 838 are needed",
        ),
    ],
)
def test_each_rule_throws_out_what_it_is_for(changes: dict[str, Any], named: str) -> None:
    """The verdict states the reason."""
    verdict = judge(_tally(**changes), SERVER, PROFILE)
    assert not verdict.valid
    assert any(named in reason for reason in verdict.reasons), verdict.reasons
    assert str(verdict).startswith("INVALID: ")


def test_a_slow_service_is_a_result() -> None:
    """A measurement is valid even if every answer is above the bound."""
    slow = _tally(latency_us=_encoded((50_000, 2000)))
    assert judge(slow, SERVER, PROFILE).valid


def test_a_service_that_refuses_is_a_result() -> None:
    """Refused requests are counted as errors and do not make the measurement invalid."""
    refused = _tally(latency_us=_encoded((5000, 900)), errors={"HTTP 429": 1100})
    assert judge(refused, SERVER, PROFILE).valid


def test_overload_need_not_be_steady_nor_sent_in_full() -> None:
    """In an overload, unsent requests do not make the measurement invalid."""
    overload = SERVER.model_copy(update={"overload": True})
    assert judge(_tally(sent=1500), overload, PROFILE).valid
    assert not judge(_tally(sent=1500), SERVER, PROFILE).valid


def test_early_stopping_needs_what_mlperf_says() -> None:
    """MLPerf Inference needs 459 queries with none over the bound, 662 with 1, 2,010 with 10."""
    assert [queries_needed(over) for over in (0, 1, 10)] == [459, 662, 2010]
