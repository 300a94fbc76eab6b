"""Decides from a candidate's figures whether it is rolled back, with stated error rates.

Rates are judged by Wald's likelihood ratio of "the rate is at the bound" against "the rate is
beyond it". The ratio may be evaluated after every request: while the true rate is at most the
bound, the probability that the ratio ever exceeds 1 / ALPHA is at most ALPHA (Ville's inequality;
Wald, "Sequential Tests of Statistical Hypotheses", 1945).
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np

from service.versions.state import DesiredState, VersionFigures

# The largest probability that a version whose rate is at the bound is ever rolled back for it.
ALPHA = 0.001
# Ten buckets in each factor of ten, from 10 microseconds to 100 seconds.
BUCKETS_S = tuple(10 ** (exponent / 10 - 5) for exponent in range(71))
# With fewer answers, the stable version's percentiles are not reliable.
LEAST_FOR_PERCENTILE = 300
# For each percentile, the share of slow answers under the alternative hypothesis.
CLEARLY_SLOW = {0.99: 0.05, 0.5: 0.75}
MAX_ERROR_SHARE = 0.01


def is_beyond(events: int, trials: int, bound: float, beyond: float | None = None) -> bool:
    """Whether events are significantly more frequent than the bound.

    At a true rate of ``beyond`` this takes about ln(1 / ALPHA) / KL(beyond, bound) trials: 900 for
    a bound of 0.02 and a rate of 0.04, 20 for a rate of a half.

    Args:
        events: The number of trials that were events.
        trials: The number of trials.
        bound: The allowed rate, 0 to 1.
        beyond: The rate under the alternative hypothesis; by default twice the bound.
    """
    high = min(2 * bound, 0.9) if beyond is None else beyond
    ratio = events * math.log(high / bound)
    ratio += (trials - events) * math.log((1 - high) / (1 - bound))
    return ratio >= math.log(1 / ALPHA)


def bucket_of(seconds: float) -> int:
    """Return the index of the bucket that counts a time."""
    return bisect_left(BUCKETS_S, seconds)


def find_percentile(counts: Sequence[int], share: float) -> float:
    """Return the upper bound of the bucket that contains a percentile, in seconds."""
    totals = np.cumsum(counts)
    index = int(np.searchsorted(totals, share * totals[-1]))
    return BUCKETS_S[min(index, len(BUCKETS_S) - 1)]


def is_slower(
    candidate: Sequence[int], stable: Sequence[int], ratio: float, share: float = 0.99
) -> float | None:
    """Test whether a candidate's percentile is clearly above ``ratio`` times the stable version's.

    It is, if significantly more than ``1 - share`` of the candidate's times are longer than that.

    Args:
        candidate: The candidate's times, counted in ``BUCKETS_S``.
        stable: The stable version's times in the same period, likewise.
        ratio: At least 1.
        share: The percentile: 0.99 or 0.5.

    Returns:
        The stable version's percentile in seconds if the candidate is slower, otherwise None.
    """
    if not candidate or sum(stable) < LEAST_FOR_PERCENTILE:
        return None
    percentile_s = find_percentile(stable, share)
    slow = sum(candidate[bucket_of(percentile_s * ratio) + 1 :])
    if is_beyond(slow, sum(candidate), 1 - share, CLEARLY_SLOW[share]):
        return percentile_s
    return None


def add_figures(parts: Iterable[VersionFigures]) -> VersionFigures:
    """Add the figures of one version from several workers."""
    figures = list(parts)
    worst = max(figures, key=lambda part: part.worst)
    return VersionFigures(
        requests=sum(part.requests for part in figures),
        engine_errors=sum(part.engine_errors for part in figures),
        durations=_add_counts(part.durations for part in figures),
        compute=_add_counts(part.compute for part in figures),
        compared=sum(part.compared for part in figures),
        disagreed=sum(part.disagreed for part in figures),
        skipped=sum(part.skipped for part in figures),
        worst=worst.worst,
        worst_words=worst.worst_words,
        same_weights=any(part.same_weights for part in figures),
    )


def _add_counts(parts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    columns = [part for part in parts if part]
    return tuple(sum(column) for column in zip(*columns, strict=True))


def judge(state: DesiredState, figures: dict[str, VersionFigures]) -> tuple[str, str] | None:
    """Find a candidate that has to be rolled back.

    Args:
        state: The live state.
        figures: The figures by version, of all workers since the state went live.

    Returns:
        The candidate's role, "canary" or "shadow", and the reason with the figure; None if no
        candidate has to be rolled back.
    """
    stable = figures.get(state.stable, VersionFigures())
    if state.canary is not None:
        canary = figures.get(state.canary.version, VersionFigures())
        reason = _judge_canary(state, canary, stable)
        if reason:
            return "canary", reason
    if state.shadow is not None:
        reason = _judge_shadow(state, figures.get(state.shadow.version, VersionFigures()))
        if reason:
            return "shadow", reason
    return None


def judge_promoted(figures: VersionFigures) -> str | None:
    """Return why a version that was just promoted has to be replaced by the previous one."""
    errors, trials = figures.engine_errors, figures.requests + figures.engine_errors
    if is_beyond(errors, trials, MAX_ERROR_SHARE, 5 * MAX_ERROR_SHARE):
        return f"{errors} of {trials} requests failed in its engine"
    return None


def _judge_canary(
    state: DesiredState, canary: VersionFigures, stable: VersionFigures
) -> str | None:
    if canary.engine_errors:
        return (
            f"its engine failed for {canary.engine_errors} requests that the stable version "
            "answered"
        )
    ratio = state.limits.max_p99_ratio
    p99_s = is_slower(canary.durations, stable.durations, ratio)
    if p99_s is not None:
        return _describe_slower(
            "99th percentile of its requests", canary.durations, 0.99, p99_s, ratio
        )
    # Other processes cause the tail of such short times; the median reflects the model.
    median_s = is_slower(canary.compute, stable.compute, ratio, 0.5)
    if median_s is not None:
        return _describe_slower("median time in its engine", canary.compute, 0.5, median_s, ratio)
    return None


def _describe_slower(
    what: str, counts: Sequence[int], share: float, stable_s: float, ratio: float
) -> str:
    found_ms = 1000 * find_percentile(counts, share)
    bound = f"{ratio:g} x the stable version's {1000 * stable_s:.3g} ms"
    return f"the {what} is {found_ms:.3g} ms > {bound}"


def _judge_shadow(state: DesiredState, shadow: VersionFigures) -> str | None:
    if shadow.engine_errors:
        return (
            f"its engine failed for {shadow.engine_errors} requests that the stable version "
            "answered"
        )
    if shadow.same_weights:
        if shadow.disagreed:
            return (
                f"{shadow.disagreed} of {shadow.compared} answers differ by more than its "
                f"tolerance: {shadow.worst_words}"
            )
        return None
    bound = state.limits.max_disagreement
    if is_beyond(shadow.disagreed, shadow.compared, bound):
        return (
            f"{shadow.disagreed} of {shadow.compared} answers disagree with the stable version's "
            f"({shadow.disagreed / shadow.compared:.1%} > {bound:.1%}, error rate {ALPHA:g}): "
            f"{shadow.worst_words}"
        )
    return None
