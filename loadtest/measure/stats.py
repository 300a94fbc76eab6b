"""Statistics over repeated runs and interleaved rounds: means and confidence intervals."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from loadtest.measure.result import Result
from loadtest.scenarios import Scenario

RESAMPLES = 10_000
SHARE = 0.95
FEWEST = 2  # one run says nothing about the variation between runs


class Interval(NamedTuple):
    """An estimate and its 95% confidence interval."""

    estimate: float
    low: float
    high: float


def ratio_interval(pairs: Sequence[tuple[float, float]], seed: int = 0) -> Interval:
    """The geometric mean of paired ratios, with its 95% percentile bootstrap interval.

    A pair holds the figures of two subjects in the same round, so that a busy machine slows both.
    The geometric mean is symmetric: swapped pairs give the reciprocals. The bootstrap resamples
    whole rounds with replacement. It reflects only the variation among these rounds: the interval
    is too narrow for few rounds (below about five), and for one round it is the estimate itself.

    Args:
        pairs: A figure and its base in each round, both above 0.
        seed: Seed of the resampling; the same pairs and seed give the same interval.

    Raises:
        ValueError: There is no pair, or a number is not finite or not above 0.
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
    return Interval(*np.exp([logarithms.mean(), low, high]).tolist())


class Spread(BaseModel):
    """A figure over the valid runs: geometric mean and 95% bootstrap interval over whole runs.

    For few runs the interval is too narrow: it reflects only the variation among these runs.
    """

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """The mean and interval as text for a sentence."""
        return f"{self.mean:,.2f} ({self.low:,.2f} to {self.high:,.2f})"


class Runs(BaseModel):
    """All runs of one load point, which differ only in the seed of their arrivals.

    Attributes:
        over_runs: The spread of each figure over the valid runs; empty with fewer than two.
    """

    model_config = ConfigDict(frozen=True)

    runs: list[Result]
    over_runs: dict[str, Spread]

    def sentence(self) -> str:
        """The intervals as text; empty if there are none."""
        valid = sum(result.verdict.valid for result in self.runs)
        figures = ", ".join(f"{name} {spread}" for name, spread in self.over_runs.items())
        return f"over {valid} valid runs of {len(self.runs)}: {figures}" if figures else ""


def repeated(scenario: Scenario, runs: int, measure: Callable[[Scenario], Result]) -> Runs:
    """Measure a point ``runs`` times; the seed starts at the scenario's and grows by 1 per run."""
    results = [
        measure(scenario.model_copy(update={"seed": scenario.seed + number}))
        for number in range(runs)
    ]
    return Runs(runs=results, over_runs=over_runs(results))


def over_runs(results: Sequence[Result]) -> dict[str, Spread]:
    """The spread of each figure over the valid runs of the same point."""
    valid = [result for result in results if result.verdict.valid]
    if len(valid) < FEWEST:
        return {}
    figures: dict[str, Callable[[Result], float | None]] = {
        "requests/s": lambda result: result.requests_per_s,
        "p50 ms": lambda result: result.latency_ms["p50"],
        "p99 ms": lambda result: result.latency_ms["p99"],
        "goodput/s": lambda result: result.goodput_per_s,
    }
    found = {}
    for name, figure in figures.items():
        values = [value for result in valid if (value := figure(result))]
        if len(values) == len(valid):
            mean, low, high = ratio_interval([(value, 1.0) for value in values])
            found[name] = Spread(mean=mean, low=low, high=high)
    return found
