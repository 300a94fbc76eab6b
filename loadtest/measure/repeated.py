"""A load point measured several times over, and what its runs say together."""

from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict

from loadtest.measure.result import Result
from loadtest.measure.stats import ratio_interval
from loadtest.scenarios import Scenario

FEWEST = 2  # one run says nothing of how much the next would differ


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
    """Measure a point so many times.

    Args:
        scenario: What is offered; each run has a seed of its own, the first the scenario's.
        runs: How many.
        measure: Takes one.
    """
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
