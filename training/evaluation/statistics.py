"""Statistics over seeds and over test images: spreads and confidence intervals."""

import statistics
from collections.abc import Sequence

from pydantic import BaseModel

CONFIDENCE = 0.95


class Interval(BaseModel, frozen=True, extra="forbid"):
    """The ends of a 95% interval, in the unit of the figure that it belongs to."""

    low: float
    high: float


class Spread(BaseModel, frozen=True, extra="forbid"):
    """Mean, sample standard deviation (None for one seed), minimum and maximum over seeds."""

    mean: float
    deviation: float | None
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Mean, sample standard deviation (n - 1) and range of one or more values."""
    return Spread(
        mean=statistics.fmean(values),
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        low=min(values),
        high=max(values),
    )


def wilson(correct: int, images: int) -> Interval:
    """95% score interval of a share, 0..1 (E. B. Wilson 1927, JASA 22, 209-212).

    Args:
        correct: Number of images classified correctly, 0..images.
        images: Number of images, at least 1.

    Raises:
        ValueError: One of the numbers is out of its range.
    """
    from scipy import stats  # noqa: PLC0415 - the import takes a second

    found = stats.binomtest(correct, images).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(low=float(found.low), high=float(found.high))
