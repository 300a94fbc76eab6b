"""What a few interleaved rounds say of a ratio, and how surely."""

from collections.abc import Sequence
from statistics import median

import numpy as np

RESAMPLES = 10_000
SHARE = 0.95


def ratio_interval(
    pairs: Sequence[tuple[float, float]], seed: int = 0
) -> tuple[float, float, float]:
    """The geometric mean of paired ratios, with its 95% percentile bootstrap interval.

    A pair is what two things gave in the same round, so that a busy machine slows both. The
    geometric mean does not care which of the two is called the base: swapped pairs give the
    reciprocals. The interval is of whole rounds drawn with replacement; it knows no more of the
    world than the rounds do, is too narrow where they are few (below five or so), and is the
    estimate itself for a single one.

    Args:
        pairs: A measure and its base in each round, both above 0.
        seed: Of the draws; the same pairs and seed give the same interval.

    Returns:
        The estimate, and the lower and the upper end of its interval.

    Raises:
        ValueError: No pair, or a number that is not finite and above 0.
    """
    values = np.array(pairs, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != 2:  # noqa: PLR2004 - a pair
        raise ValueError(f"expected at least one pair of numbers, got {list(pairs)}")
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"a ratio needs finite numbers above 0, got {list(pairs)}")
    logarithms = np.log(values[:, 0] / values[:, 1])
    count = len(logarithms)
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    outside = 50 * (1 - SHARE)
    low, high = np.percentile(logarithms[drawn].mean(axis=1), (outside, 100 - outside))
    estimate = logarithms.mean()
    return float(np.exp(estimate)), float(np.exp(low)), float(np.exp(high))


def percentile(rounds_s: Sequence[Sequence[float]], share: float) -> float:
    """The median of the rounds' percentiles, seconds (one hiccup decides nothing); NaN of none."""
    found = [float(np.percentile(values_s, share)) for values_s in rounds_s if values_s]
    return median(found) if found else float("nan")
