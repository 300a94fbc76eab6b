"""The error rates of the sequential test are as stated."""

import numpy as np
import pytest

from service.versions.evidence import (
    ALPHA,
    BUCKETS_S,
    LEAST_FOR_PERCENTILE,
    bucket_of,
    find_percentile,
    is_beyond,
    is_slower,
    judge,
)
from service.versions.state import DesiredState, VersionFigures

BOUND = 0.02


def _is_ever_beyond(rate: float, trials: int, generator: np.random.Generator) -> bool:
    """Whether a version with this rate is rolled back at any of this many checks."""
    events = np.cumsum(generator.random(trials) < rate)
    counts = np.arange(1, trials + 1)
    ratio = np.log(2) * events + np.log((1 - 2 * BOUND) / (1 - BOUND)) * (counts - events)
    crossed = np.flatnonzero(ratio >= np.log(1 / ALPHA))
    if len(crossed) == 0:
        return False
    first = int(crossed[0])
    assert is_beyond(int(events[first]), first + 1, BOUND)  # the same rule, vectorised
    return True


def test_a_version_at_the_bound_is_hardly_ever_taken_back() -> None:
    """At the bound, checked after each of 5,000 answers, at most ALPHA of runs are rolled back."""
    generator = np.random.default_rng(0)
    wrong = sum(_is_ever_beyond(BOUND, 5_000, generator) for _ in range(3_000))
    assert wrong <= 3_000 * ALPHA + 3 * (3_000 * ALPHA) ** 0.5


@pytest.mark.parametrize(("rate", "within"), [(2 * BOUND, 5_000), (0.1, 400), (0.5, 60)])
def test_a_version_beyond_the_bound_is_taken_back(rate: float, within: int) -> None:
    """The more frequent the disagreements, the fewer answers are needed."""
    generator = np.random.default_rng(1)
    found = sum(_is_ever_beyond(rate, within, generator) for _ in range(500))
    assert found >= 495


def test_no_events_are_no_evidence() -> None:
    """Neither zero answers nor many right answers cause a rollback."""
    assert not is_beyond(0, 0, BOUND)
    assert not is_beyond(0, 1_000_000, BOUND)


def _counts(seconds: list[float]) -> tuple[int, ...]:
    counts = [0] * (len(BUCKETS_S) + 1)
    for value in seconds:
        counts[bucket_of(value)] += 1
    return tuple(counts)


def _times(scale: float, count: int, seed: int) -> list[float]:
    return list(scale * np.random.default_rng(seed).lognormal(0, 0.5, count))


def test_a_percentile_is_found_within_its_bucket() -> None:
    """Buckets are 26% wide, and the percentile lies within its bucket."""
    times = _times(0.001, 10_000, 0)
    found, true = find_percentile(_counts(times), 0.99), float(np.quantile(times, 0.99))
    assert found / 1.26 <= true <= found


def test_a_slower_version_is_found_and_an_equal_one_is_not() -> None:
    """Ten times the latency exceeds the factor of two; equal latency does not, in 200 runs."""
    stable = _counts(_times(0.001, 2_000, 1))
    assert is_slower(_counts(_times(0.010, 100, 2)), stable, 2.0)
    false = sum(
        is_slower(_counts(_times(0.001, 2_000, 10 + i)), stable, 2.0) is not None
        for i in range(200)
    )
    assert false == 0


def test_the_median_finds_what_the_noise_of_the_tail_hides() -> None:
    """If one request in fifty is slowed by other processes, the median shows what p99 does not."""
    generator = np.random.default_rng(3)

    def noisy(scale: float, seed: int) -> tuple[int, ...]:
        times = np.array(_times(scale, 2_000, seed))
        times[generator.random(2_000) < 0.02] += 0.01
        return _counts(list(times))

    stable, slow = noisy(0.0001, 1), noisy(0.0005, 2)
    assert is_slower(slow, stable, 2.0) is None
    assert is_slower(slow, stable, 2.0, 0.5)
    assert is_slower(noisy(0.0001, 4), stable, 2.0, 0.5) is None


def test_too_few_answers_of_the_stable_version_say_nothing() -> None:
    """With too few answers its 99th percentile is unknown."""
    few = _counts(_times(0.001, LEAST_FOR_PERCENTILE - 1, 1))
    assert is_slower(_counts(_times(1.0, 1_000, 2)), few, 2.0) is None


def _state(**fields: object) -> DesiredState:
    return DesiredState.model_validate(
        {"generation": 1, "stable": "a", "reason": "test", "changed_s": 0.0, **fields}
    )


def test_a_shadow_of_the_same_weights_may_not_disagree_once() -> None:
    """Equal weights are held to the tolerance, retrained ones to the share of disagreements."""
    state = _state(shadow={"version": "b", "share": 1})
    once = VersionFigures(compared=1_000, disagreed=1, worst_words="logits", same_weights=True)
    assert judge(state, {"b": once}) == (
        "shadow",
        "1 of 1000 answers differ by more than its tolerance: logits",
    )
    retrained = once.model_copy(update={"same_weights": False})
    assert judge(state, {"b": retrained}) is None
    often = retrained.model_copy(update={"disagreed": 100})
    found = judge(state, {"b": often})
    assert found is not None
    assert found[0] == "shadow"
    assert "100 of 1000 answers disagree" in found[1]
    assert "10.0% > 2.0%" in found[1]
