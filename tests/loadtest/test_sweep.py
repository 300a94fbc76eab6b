"""The search for the knee: what it offers, and where it ends."""

import pytest

from loadtest.sweep import FIRST_SHARES, MOST_STEPS, _search


@pytest.mark.parametrize("limit", [25.0, 62.0, 88.0, 120.0])
def test_the_search_closes_in_on_the_limit(limit: float) -> None:
    """Between the last rate that was kept and the first that was not, less than 5% or six steps."""
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
    """Where low rates cannot be judged, higher ones are offered all the same."""
    offered: list[float] = []

    def kept(rate: float) -> bool | None:
        offered.append(rate)
        return None if rate < 40 else rate <= 75

    _search(kept, 100.0)
    assert max(rate for rate in offered if rate <= 75) > 70


def test_a_service_that_keeps_no_bound_is_asked_once() -> None:
    """The lowest rate was too much: nothing above it is offered."""
    offered: list[float] = []

    def kept(rate: float) -> bool:
        offered.append(rate)
        return False

    _search(kept, 100.0)
    assert offered == [10.0]
