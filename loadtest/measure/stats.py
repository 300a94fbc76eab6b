"""What a few runs or interleaved rounds say together, and how surely."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from loadtest.measure.result import Result
from loadtest.scenarios import Scenario

RESAMPLES = 10_000
SHARE = 0.95
FEWEST = 2  # one run says nothing of how much the next would differ


class Interval(NamedTuple):
    """An estimate, and where the truth lies with a probability of 95%."""

    estimate: float
    low: float
    high: float


def ratio_interval(pairs: Sequence[tuple[float, float]], seed: int = 0) -> Interval:
    """The geometric mean of paired ratios, with its 95% percentile bootstrap interval.

    A pair is what two things gave in the same round, so that a busy machine slows both. The
    geometric mean does not care which of the two is called the base: swapped pairs give the
    reciprocals. The interval is of whole rounds drawn with replacement; it knows no more of the
    world than the rounds do, is too narrow where they are few (below five or so), and is the
    estimate itself for a single one.

    Args:
        pairs: A measure and its base in each round, both above 0.
        seed: Of the draws; the same pairs and seed give the same interval.

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
    return Interval(*np.exp([logarithms.mean(), low, high]).tolist())


class Spread(BaseModel):
    """A figure over the valid runs: geometric mean and 95% bootstrap interval of whole runs.

    Of few runs the interval is too narrow: it knows no more of the world than they do.
    """

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """For a sentence."""
        return f"{self.mean:,.2f} ({self.low:,.2f} to {self.high:,.2f})"


class Runs(BaseModel):
    """All runs of one load point, which differ in the seed of their arrivals alone.

    Attributes:
        over_runs: By figure, of the valid runs; empty if there are fewer than two.
    """

    model_config = ConfigDict(frozen=True)

    runs: list[Result]
    over_runs: dict[str, Spread]

    def sentence(self) -> str:
        """The intervals in words; empty if there are none."""
        valid = sum(result.verdict.valid for result in self.runs)
        figures = ", ".join(f"{name} {spread}" for name, spread in self.over_runs.items())
        return f"over {valid} valid runs of {len(self.runs)}: {figures}" if figures else ""


def repeated(scenario: Scenario, runs: int, measure: Callable[[Scenario], Result]) -> Runs:
    """Measure a point so many times, each with a seed of its own, the first the scenario's."""
    results = [
        measure(scenario.model_copy(update={"seed": scenario.seed + number}))
        for number in range(runs)
    ]
    return Runs(runs=results, over_runs=over_runs(results))


def over_runs(results: Sequence[Result]) -> dict[str, Spread]:
    """What the valid ones among some runs of the same point have in common, by figure."""
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
