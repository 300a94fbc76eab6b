"""Figures over seeds and over test images: spreads and intervals."""

import statistics
from collections.abc import Sequence

from pydantic import BaseModel

CONFIDENCE = 0.95


class Interval(BaseModel, frozen=True, extra="forbid"):
    """A 95% interval: its ends, in the unit of the figure it belongs to."""

    low: float
    high: float


class Spread(BaseModel, frozen=True, extra="forbid"):
    """A figure over seeds: mean, sample standard deviation (None: one seed), least, greatest."""

    mean: float
    deviation: float | None
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Mean, sample standard deviation (n - 1) and range of one value or more."""
    return Spread(
        mean=statistics.fmean(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        low=min(values),
        high=max(values),
    )


def wilson(correct: int, images: int) -> Interval:
    """95% score interval of a share, 0..1 (E. B. Wilson 1927, JASA 22, 209-212).

    Args:
        correct: Images classified correctly, 0..images.
        images: At least 1.

    Raises:
        ValueError: The numbers are not of such a share.
    """
    from scipy import stats  # noqa: PLC0415 - a second to import

    found = stats.binomtest(correct, images).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(low=float(found.low), high=float(found.high))
