"""Statistics of networks on test images, and over seeds."""

import itertools
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from training.evaluation.statistics import CONFIDENCE, Interval

SIGNIFICANT = 0.05


def mcnemar(first_right: Tensor, second_right: Tensor) -> tuple[int, int, float]:
    """McNemar's exact test of two networks on the same images.

    Of the images that one network alone reads rightly, each network would have half by chance if
    both were equally good: a binomial test with 1/2 (Q. McNemar 1947, Psychometrika 12, 153-157;
    for classifiers T. Dietterich 1998, Neural Computation 10, 1895-1923).

    Args:
        first_right: bool [N], which images the first network reads rightly.
        second_right: The same of the second.

    Returns:
        Images that the first alone reads rightly, that the second alone does, and the two-sided
        p value, which is 1 if there are none of either.
    """
    from scipy import stats  # noqa: PLC0415 - a second to import

    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    either = only_first + only_second
    p_value = float(stats.binomtest(only_first, either, 0.5).pvalue) if either else 1.0
    return only_first, only_second, p_value


class Welch(NamedTuple):
    """A difference of two means: its 95% interval, and the p value of no difference."""

    interval: Interval
    p_value: float


def welch(base: Sequence[float], other: Sequence[float]) -> Welch | None:
    """Welch's t-test of mean(other) - mean(base), of seeds drawn independently.

    Student's t with unequal variances (B. L. Welch 1947, Biometrika 34, 28-35). None where the
    spread over seeds is not known: a group has a single seed, or the seeds of both groups agree
    exactly (few test images), whose estimated variance of 0 would make any difference certain.
    """
    from scipy import stats  # noqa: PLC0415 - a second to import

    if min(len(base), len(other)) < 2 or len(set(base)) == len(set(other)) == 1:  # noqa: PLR2004
        return None
    with warnings.catch_warnings():
        # SciPy warns where the seeds of one group agree: what its variance loses is nothing then.
        warnings.simplefilter("ignore", RuntimeWarning)
        found = stats.ttest_ind(list(other), list(base), equal_var=False)
    interval = found.confidence_interval(CONFIDENCE)
    return Welch(Interval(low=float(interval.low), high=float(interval.high)), float(found.pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for being several (S. Holm 1979, Scand. J. Statist. 6, 65-70).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none gets smaller than the
    one before it. With all of them compared to 0.05, one false finding or more among true null
    hypotheses has a probability of at most 0.05.

    Args:
        p_values: One for each comparison; None where there is none, which stays None.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        corrected[place] = least
    return corrected


def falls_below(
    levels: Sequence[float], values: Sequence[float], neutral: float, bound: float
) -> tuple[float | None, float | None]:
    """The nearest levels below and above the neutral one at which values fall below a bound.

    Args:
        levels: Ascending, the neutral one among them.
        values: One a level.
        neutral: The level to start from.
        bound: Of the values.

    Returns:
        Levels, between two measured ones by a straight line; None where the bound is held. Both
        are the neutral level if its own value is below the bound.
    """
    start = levels.index(neutral)
    points = list(zip(levels, values, strict=True))
    down, up = points[start::-1], points[start:]
    return _first_below(down, bound), _first_below(up, bound)


def _first_below(points: Sequence[tuple[float, float]], bound: float) -> float | None:
    if points[0][1] < bound:
        return points[0][0]
    for (near, high), (far, low) in itertools.pairwise(points):
        if low < bound:
            return near + (far - near) * (high - bound) / (high - low)
    return None
