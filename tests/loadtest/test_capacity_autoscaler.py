"""The autoscaler follows Kubernetes' rule, and the fluid model agrees with the simulation."""

from itertools import pairwise

import pytest

from loadtest.capacity.autoscaler import Autoscaler, Step, follow
from loadtest.capacity.simulation import ANSWERED, REFUSED, poisson_arrivals, simulate
from tests.loadtest.capacity_points import made_points

POINTS = made_points(
    fixed_ms=2.0, sample_ms=10.0, max_batch_samples=64, max_queue_samples=512, start_s=5.0
)


def _autoscaler(most: int = 1000) -> Autoscaler:
    return Autoscaler(least=2, most=most, start_s=POINTS.start_s)


@pytest.mark.parametrize(
    ("ready", "total", "busy", "waiting", "wanted"),
    [
        (10, 10, 0.70, 0, 10),  # exactly at the target
        (10, 10, 0.76, 0, 10),  # within the tolerance of a tenth
        (10, 10, 0.84, 0, 12),  # 10 * 0.84 / 0.7
        (10, 10, 0.84, 10 * 128, 20),  # twice the target of waiting samples: the larger wins
        (10, 14, 0.84, 0, 14),  # four are starting already
        (10, 10, 0.10, 0, 10),  # no replica is removed
        (10, 10, 1.00, 10 * 640, 50),  # limited by the maximum
    ],
)
def test_the_rule_asks_for_what_kubernetes_asks_for(
    ready: int, total: int, busy: float, waiting: float, wanted: int
) -> None:
    """Replicas are ready * value / target, rounded up, for the larger of both metrics."""
    assert _autoscaler(most=50).wanted(ready, total, busy, waiting) == wanted


def test_the_policy_doubles_or_adds_two() -> None:
    """The policy allows the larger of both, relative to the replicas of a period ago."""
    assert [_autoscaler().allowed(before) for before in (1, 2, 3, 100)] == [3, 4, 6, 200]


def _follow(factor: float, replicas: int, seconds: float, most: int = 1000) -> list[Step]:
    rate = 0.6 * replicas * POINTS.most_per_s * factor
    return follow(
        POINTS, _autoscaler(most), lambda at_s: rate, replicas=replicas, duration_s=seconds
    )


def test_a_steady_load_is_left_alone() -> None:
    """Below the target no replica is started and no request is refused or waits."""
    steps = _follow(1.0, 10, 120)
    assert {step.total for step in steps} == {10}
    assert max(step.delay_s for step in steps) == 0


def test_a_step_of_ten_times_is_followed_within_the_policys_bounds() -> None:
    """Replicas at most double every 30 s; in the end none is superfluous and nothing refused."""
    steps = _follow(10.0, 10, 300)
    totals = {step.at_s: step.total for step in steps}
    for at_s, total in totals.items():
        before = totals.get(at_s - 30, 10)
        assert total <= 2 * before
    assert steps[-1].refused_per_s == 0
    assert steps[-1].delay_s == 0
    assert 60 <= steps[-1].total <= 160
    assert any(step.refused_per_s > 0 for step in steps)
    started = next(step.at_s for step in steps if step.total > 10)
    ready = next(step.at_s for step in steps if step.ready > 10)
    assert (started, ready) == (15.25, 20.0)


def test_the_most_replicas_are_a_bound() -> None:
    """If the maximum does not suffice, requests are refused until the end."""
    steps = _follow(10.0, 10, 200, most=30)
    assert max(step.total for step in steps) == 30
    assert steps[-1].refused_per_s > 0


def test_amounts_are_kept() -> None:
    """Every request that arrived was answered or refused, or still waits."""
    steps = _follow(10.0, 10, 100)
    arrived, answered, refused = (
        sum(getattr(step, name) for step in steps) * 0.25
        for name in ("arriving_per_s", "answered_per_s", "refused_per_s")
    )
    assert answered + refused + steps[-1].waiting_requests == pytest.approx(arrived)


def test_the_fluid_model_agrees_with_simulated_requests() -> None:
    """With the same replicas over time, answered and refused shares agree within 3%."""
    steps, seconds = _follow(10.0, 4, 90), 90.0
    joins = [
        (step.at_s, step.ready - before.ready)
        for before, step in pairwise(steps)
        if step.ready > before.ready
    ]
    rate = steps[0].arriving_per_s
    arrived = poisson_arrivals(rate, seconds, seed=1)
    found = simulate(POINTS, arrived, replicas=4, policy="least-loaded", seed=1, joins=joins)
    refused = sum(step.refused_per_s for step in steps) * 0.25
    waiting = steps[-1].waiting_requests
    assert len(joins) >= 3
    assert found.count(REFUSED) == pytest.approx(refused, abs=0.03 * len(arrived))
    answered = sum(step.answered_per_s for step in steps) * 0.25 + waiting
    assert found.count(ANSWERED) == pytest.approx(answered, abs=0.03 * len(arrived))
