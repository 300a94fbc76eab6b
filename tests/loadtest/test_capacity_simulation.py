"""The simulation agrees with closed-form results, loses no request, and is reproducible."""

from itertools import pairwise

import numpy as np
import pytest

from loadtest.capacity.simulation import (
    ANSWERED,
    LOST,
    POLICIES,
    REFUSED,
    Loss,
    Policy,
    SimulationError,
    poisson_arrivals,
    simulate,
)
from tests.loadtest.capacity_points import made_points

EXPONENTIAL = [float(-np.log(1 - (i + 0.5) / 20_000)) for i in range(20_000)]
BATCHING = {"fixed_ms": 2.0, "sample_ms": 1.0, "request_ms": 0.5, "max_batch_samples": 8}


@pytest.mark.parametrize("busy", [0.3, 0.7, 0.9])
def test_a_replica_of_fixed_times_waits_as_an_m_d_1_queue_does(busy: float) -> None:
    """The mean latency is s + s * busy / (2 (1 - busy)) within 3%; busy is as offered."""
    arrived = poisson_arrivals(1000 * busy, 400, seed=1)
    found = simulate(made_points(), arrived, replicas=1, policy="round-robin", seed=1)
    expected = 1 + busy / (2 * (1 - busy))
    assert np.mean(found.latency_ms) == pytest.approx(expected, rel=0.03)
    assert found.busy_share == pytest.approx(busy, rel=0.01)


@pytest.mark.parametrize("busy", [0.3, 0.7])
def test_exponential_times_give_the_latencies_of_an_m_m_1_queue(busy: float) -> None:
    """The mean is s / (1 - busy) and p99 is ln 100 times the mean, both within 4%."""
    points = made_points(scatter={1: EXPONENTIAL})
    arrived = poisson_arrivals(1000 * busy, 800, seed=2)
    found = simulate(points, arrived, replicas=1, policy="least-loaded", seed=2)
    mean = 1 / (1 - busy)
    assert np.mean(found.latency_ms) == pytest.approx(mean, rel=0.04)
    assert found.percentile_ms(99) == pytest.approx(mean * np.log(100), rel=0.04)


def test_two_replicas_and_the_least_loaded_one_are_nearly_an_m_m_2_queue() -> None:
    """Two queues are slightly slower than a shared one, as requests cannot change queues."""
    busy = 0.7
    points = made_points(scatter={1: EXPONENTIAL})
    arrived = poisson_arrivals(2000 * busy, 400, seed=3)
    found = simulate(points, arrived, replicas=2, policy="least-loaded", seed=3)
    one_queue = 1 / (1 - busy**2)
    assert one_queue < np.mean(found.latency_ms) < 1.15 * one_queue


def test_a_batch_takes_all_that_came_while_the_one_before_ran() -> None:
    """Computed by hand: batches of one, of two, of the maximum of eight, and of two."""
    points = made_points(**BATCHING, path_ms=[0.25])
    arrived = np.array([0.0, 1.0, 2.0, *[4.0] * 10]) / 1000
    found = simulate(points, arrived, replicas=1, policy="round-robin", seed=0)
    # 3.5 ms for the first; 5 for two, until 8.5; 14 for eight, until 22.5; 5 for the last two.
    ends = np.array([3.5, 8.5, 8.5, *[22.5] * 8, *[27.5] * 2])
    assert found.latency_ms == pytest.approx(ends - arrived * 1000 + 0.25)
    assert found.batch_requests == pytest.approx((1 + 2 * 2 + 8 * 8 + 2 * 2) / 13)


def test_requests_of_several_samples_fill_batches_and_queues_by_samples() -> None:
    """With a queue of 8 samples and requests of 4, one runs, two wait and three are refused."""
    points = made_points(**BATCHING | {"max_queue_samples": 8}, samples_per_request=4)
    found = simulate(points, np.zeros(6), replicas=1, policy="round-robin", seed=0)
    assert found.fate.tolist() == [ANSWERED] * 3 + [REFUSED] * 3
    assert found.latency_ms[:3] == pytest.approx([6.5, 17.5, 17.5])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("proxies", [1, 3])
@pytest.mark.parametrize("share", [0.5, 0.95, 1.5])
def test_every_request_is_answered_or_refused(policy: Policy, proxies: int, share: float) -> None:
    """Latencies lie between those of a batch of one request and of a full queue."""
    points = made_points(**BATCHING, max_queue_samples=32)
    arrived = poisson_arrivals(share * 5 * points.most_per_s, 20, seed=4)
    found = simulate(points, arrived, replicas=5, policy=policy, seed=4, proxies=proxies)
    assert found.count(ANSWERED) + found.count(REFUSED) == len(arrived)
    assert np.all(np.isnan(found.latency_ms) == (found.fate != ANSWERED))
    assert np.nanmin(found.latency_ms) >= 3.5 - 1e-9
    assert np.nanmax(found.latency_ms) <= (1 + 32 / 8) * 14 + 1e-9
    answered_per_s = found.count(ANSWERED) / 20
    if share > 1:
        assert answered_per_s == pytest.approx(5 * points.most_per_s, rel=0.02)
    else:
        assert found.count(REFUSED) <= 0.002 * len(arrived)


@pytest.mark.parametrize("policy", POLICIES)
def test_more_replicas_never_slow_the_tail(policy: Policy) -> None:
    """The tail latency does not grow for the same arrivals, within 2%."""
    points = made_points(**BATCHING)
    arrived = poisson_arrivals(0.9 * points.most_per_s, 60, seed=5)
    tails = [
        simulate(points, arrived, replicas=count, policy=policy, seed=5).percentile_ms(99)
        for count in (1, 2, 3, 4, 8, 16)
    ]
    assert all(more <= 1.02 * fewer for fewer, more in pairwise(tails)), tails
    assert tails[-1] < tails[0] / 2


def test_the_least_loaded_replica_has_the_shorter_tail() -> None:
    """If batch times vary, balancing by load has a clearly shorter tail."""
    points = made_points(scatter={1: EXPONENTIAL})
    arrived = poisson_arrivals(8 * 700, 60, seed=6)
    tails = {
        policy: simulate(points, arrived, replicas=8, policy=policy, seed=6).percentile_ms(99)
        for policy in POLICIES
    }
    assert tails["least-loaded"] < 0.8 * tails["round-robin"]


def test_a_seed_gives_the_same_outcome_again() -> None:
    """The same seed gives the same outcome, and another seed another one."""
    points = made_points(scatter={1: EXPONENTIAL}, path_ms=[0.0, 1.0])
    arrived = poisson_arrivals(1500, 5, seed=7)
    assert np.array_equal(arrived, poisson_arrivals(1500, 5, seed=7))
    first, again, other = (
        simulate(points, arrived, replicas=2, policy="least-loaded", seed=seed)
        for seed in (7, 7, 8)
    )
    assert np.array_equal(first.latency_ms, again.latency_ms)
    assert not np.array_equal(first.latency_ms, other.latency_ms)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_lost_replica_loses_what_it_had_and_delays_what_is_sent_to_it(policy: Policy) -> None:
    """Requests are delayed until the loss is detected; after that none is lost or delayed."""
    points = made_points(**BATCHING)
    arrived = poisson_arrivals(0.5 * 4 * points.most_per_s, 20, seed=9)
    loss = Loss(at_s=10, replicas=1, detect_s=1.5, connect_s=1.0)
    found = simulate(points, arrived, replicas=4, policy=policy, seed=9, losses=[loss])
    assert 0 < found.count(LOST) <= 2 * 8
    assert found.count(LOST) + found.count(ANSWERED) == len(arrived)
    assert found.percentile_ms(99, 0, 9.9) < 50
    assert found.percentile_ms(100, 10, 11.5) > 1000
    # A proxy that counts unanswered requests sends few to a replica that does not answer.
    assert (found.percentile_ms(99, 10, 11.5) > 1000) == (policy == "round-robin")
    assert found.percentile_ms(99, 12.6) < 50
    lost = found.arrived_s[found.fate == LOST]
    assert lost.min() > 9.9
    assert lost.max() <= 10


def test_at_least_one_replica_stays() -> None:
    """A simulation without remaining replicas, which would never end, is refused."""
    loss = Loss(at_s=1, replicas=2, detect_s=1, connect_s=1)
    with pytest.raises(SimulationError, match="the losses leave none of 2 replicas"):
        simulate(
            made_points(), np.zeros(1), replicas=2, policy="round-robin", seed=0, losses=[loss]
        )


@pytest.mark.parametrize("policy", POLICIES)
def test_replicas_that_join_take_their_share(policy: Policy) -> None:
    """An overloaded replica refuses; after two more join and the queue drains, none does."""
    points = made_points(**BATCHING, max_queue_samples=64)
    arrived = poisson_arrivals(1.5 * points.most_per_s, 20, seed=10)
    found = simulate(points, arrived, replicas=1, policy=policy, seed=10, joins=[(10, 2)])
    refused = found.arrived_s[found.fate == REFUSED]
    assert len(refused) == pytest.approx(10 * 0.5 * points.most_per_s, rel=0.1)
    assert refused.max() < 11
    assert found.percentile_ms(99, 12) < 30
