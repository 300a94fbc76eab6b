"""The interval of a ratio has the stated coverage and is reproducible."""

import math

import numpy as np
import pytest

from loadtest.measure.stats import ratio_interval


def test_an_interval_holds_its_estimate_and_is_the_same_again() -> None:
    """Swapped pairs give reciprocals; one pair or equal ratios give an interval of width 0."""
    pairs = [(2.0, 1.0), (6.0, 2.0), (8.0, 4.0), (5.0, 2.0), (9.0, 4.0)]
    estimate, low, high = ratio_interval(pairs, seed=3)
    assert estimate == pytest.approx(math.prod(own / base for own, base in pairs) ** (1 / 5))
    assert 2 <= low < estimate < high <= 3
    assert ratio_interval(pairs, seed=3) == (estimate, low, high)
    swapped = ratio_interval([(base, own) for own, base in pairs], seed=3)
    assert swapped == pytest.approx((1 / estimate, 1 / high, 1 / low))
    assert ratio_interval([(3.0, 2.0)]) == pytest.approx((1.5, 1.5, 1.5))
    assert ratio_interval([(4.0, 2.0), (2.0, 1.0)]) == pytest.approx((2.0, 2.0, 2.0))


def test_an_interval_of_many_rounds_holds_the_truth_as_often_as_it_says() -> None:
    """About 95% of 200 simulated comparisons of 20 rounds contain the true ratio."""
    chance = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        noise = np.exp(chance.normal(0, 0.1, (20, 2)))
        _, low, high = ratio_interval([(1.3 * a, b) for a, b in noise], seed)
        held += low <= 1.3 <= high
    assert 176 <= held <= 199


@pytest.mark.parametrize("pairs", [[], [(1.0, 0.0)], [(-1.0, 1.0)], [(float("nan"), 1.0)]])
def test_what_has_no_ratio_is_refused(pairs: list[tuple[float, float]]) -> None:
    """An empty list, zeros, negative numbers and NaN are errors."""
    with pytest.raises(ValueError, match=r"expected|above 0"):
        ratio_interval(pairs)
