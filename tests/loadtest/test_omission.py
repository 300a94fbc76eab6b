"""An open loop measures the latencies of a stall; a closed loop omits them."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from loadtest.generator.recorder import decoded
from loadtest.measure.result import percentiles_ms
from loadtest.measure.run import generate
from loadtest.measure.validity import judge
from loadtest.scenarios import Profile, Scenario, load_scenario
from tests.loadtest.slow_server import slow_server
from tests.tiny import SERVED_BUNDLES

RATE, SECONDS, STALL_S, SERVICE_S, STALL_AT_S = 40.0, 8.0, 1.5, 0.005, 3.0
PROFILE = Profile(name="toy", duration_s=SECONDS, warmup_s=0, runs=1)
BUNDLE = SERVED_BUNDLES / "cnn"
OPEN = load_scenario("Server", rate_per_s=RATE)


def _loaded(scenario: Scenario, tmp_path: Path) -> dict[str, float]:
    with slow_server(stall_at_s=STALL_AT_S, stall_s=STALL_S, service_s=SERVICE_S) as url:
        tally = generate(scenario, url, [BUNDLE], PROFILE, ceiling=True, request_timeout_s=5)
    assert tally.errors == {}
    assert decoded(tally.latency_us).get_total_count() == tally.sent
    (tmp_path / "verdict.json").write_text(json.dumps(judge(tally, scenario, PROFILE).reasons))
    return percentiles_ms(tally.latency_us)


def _expected_p99_ms() -> float:
    """Compute p99 from the schedule: one server, 5 ms per request, no answers in the stall."""
    chance = random.Random(OPEN.seed * 1000)  # noqa: S311 - the generator's own
    due_s, free_s, first_s, latencies_s = 0.0, 0.0, None, []
    while due_s < SECONDS:
        due_s += chance.gammavariate(OPEN.shape, 1 / (RATE * OPEN.shape))
        first_s = due_s if first_s is None else first_s
        done_s = max(due_s, free_s) + SERVICE_S
        if first_s + STALL_AT_S <= done_s < first_s + STALL_AT_S + STALL_S:
            done_s = first_s + STALL_AT_S + STALL_S
        free_s = done_s
        latencies_s.append(done_s - due_s)
    return float(np.percentile(latencies_s, 99) * 1000)


def test_the_open_loop_shows_the_stall_as_the_schedule_says(tmp_path: Path) -> None:
    """At 40/s with a stall of 1.5 s, p99 is within 20% of the value computed by hand."""
    expected = _expected_p99_ms()
    assert expected > 1000
    assert _loaded(OPEN, tmp_path)["p99"] == pytest.approx(expected, rel=0.2)


def test_a_closed_loop_leaves_it_out(tmp_path: Path) -> None:
    """A single closed-loop user sends one request into the stall, so p99 does not show it."""
    closed = load_scenario("SingleStream")
    found = _loaded(closed, tmp_path)
    assert found["p99"] < _expected_p99_ms() / 5
