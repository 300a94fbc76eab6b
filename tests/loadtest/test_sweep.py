"""The search for the capacity: which rates it offers, and when it ends."""

import pytest

from loadtest.measure.result import Result
from loadtest.measure.stats import over_runs
from loadtest.measure.sweep import FIRST_SHARES, MOST_STEPS, _confirmed, _search, concurrency, keeps
from tests.loadtest.points import point


@pytest.mark.parametrize("limit", [25.0, 62.0, 88.0, 120.0])
def test_the_search_closes_in_on_the_limit(limit: float) -> None:
    """The last kept and the first failed rate are within 5%, or six steps were made."""
    offered: list[float] = []

    def kept(rate: float) -> bool:
        offered.append(rate)
        return rate <= limit

    _search(kept, 100.0)
    best = max(rate for rate in offered if rate <= limit)
    above = min((rate for rate in offered if rate > limit), default=150.0)
    assert best <= limit < above
    assert above - best <= max(0.05 * best, (150 - 90) / 2**MOST_STEPS)
    assert len(offered) <= len(FIRST_SHARES) + MOST_STEPS


def test_points_that_say_nothing_do_not_end_the_search() -> None:
    """If low rates cannot be judged, higher ones are offered anyway."""
    offered: list[float] = []

    def kept(rate: float) -> bool | None:
        offered.append(rate)
        return None if rate < 40 else rate <= 75

    _search(kept, 100.0)
    assert max(rate for rate in offered if rate <= 75) > 70


def test_a_service_that_keeps_no_bound_is_asked_once() -> None:
    """If the lowest rate is too high, no higher rate is offered."""
    offered: list[float] = []

    def kept(rate: float) -> bool:
        offered.append(rate)
        return False

    _search(kept, 100.0)
    assert offered == [10.0]


SLO_MS = 20.0


def test_a_point_keeps_the_bound_if_it_is_valid_in_time_and_answers_all() -> None:
    """Refusing requests does not make a point keep the bound."""
    assert keeps(point(), SLO_MS)
    assert not keeps(point(invalid=["too short"]), SLO_MS)
    assert not keeps(point(latencies_ms=(5, 30)), SLO_MS)
    assert not keeps(point(sent=1000), SLO_MS)


def test_what_is_not_answered_is_late() -> None:
    """99% of the sent requests must keep the bound: 1.5% unanswered ones are too many."""
    assert not keeps(point(latencies_ms=[5.0] * 100, tally={"in_window": 400, "sent": 406}), SLO_MS)
    assert keeps(point(latencies_ms=[5.0] * 100, tally={"in_window": 400, "sent": 402}), SLO_MS)


def test_a_midpoint_that_says_nothing_does_not_lower_the_capacity() -> None:
    """If the midpoint of 70 and 90 cannot be judged, rates beside it are offered instead."""
    offered: list[float] = []

    def kept(rate: float) -> bool | None:
        offered.append(rate)
        return None if 79 < rate < 81 else rate <= 85

    _search(kept, 100.0)
    assert max(rate for rate in offered if rate <= 85) >= 0.95 * 85


def test_the_capacity_must_hold_in_most_of_its_runs() -> None:
    """A rate that is too high but lucky once is not the capacity; the next lower one is."""
    lucky, lower = point(rate=200), point(rate=100)
    points, asked = [lower, lucky], []

    def measured(rate: float) -> Result:
        asked.append(rate)
        points.append(point(rate=rate, latencies_ms=(5, 30) if rate == 200 else (5, 6)))
        return points[-1]

    knee = _confirmed(points, measured, SLO_MS, runs=3)
    assert asked == [200, 200, 100, 100]
    assert knee is not None
    assert knee.offered_per_s == 100
    assert knee.latency_ms["p99"] == pytest.approx(6, rel=0.01)
    assert _confirmed(points[1:2] + points[2:4], measured, SLO_MS, runs=3) is None


def test_runs_are_summed_up_by_an_interval() -> None:
    """The interval is over the valid runs; a single run has none."""
    runs = [point(latencies_ms=(p99,)) for p99 in (4, 8, 16)]
    spread = over_runs([*runs, point(latencies_ms=(500,), invalid=["noise"])])["p99 ms"]
    assert spread.mean == pytest.approx(8, rel=0.01)
    assert spread.low == pytest.approx(4, rel=0.01)
    assert spread.high == pytest.approx(16, rel=0.01)
    assert over_runs(runs[:1]) == {}


def test_users_are_added_until_nothing_is_answered() -> None:
    """After a point without any answer, no more users are added."""
    answered = point()
    gone = answered.model_copy(update={"requests": 0})
    points = concurrency((1, 2, 4, 8), lambda users: gone if users == 4 else answered)
    assert points == [answered, answered, gone]
