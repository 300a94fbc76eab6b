"""The highest rate that the service keeps its bound at, by search; and every point on the way.

An open loop: rates are offered whatever is answered. The knee is the highest valid point whose p99,
from the moment a request was due, is under the scenario's bound.
"""

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from loadtest.noop import noop_server
from loadtest.record import Tally
from loadtest.result import Result
from loadtest.run import generate, run_scenario
from loadtest.scenarios import Profile, Scenario, load_profile

CAPACITY_USERS = 32
CAPACITY_S = 3.0
FIRST_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the capacity: the curve before the search
NEAR_ENOUGH = 0.05  # of the knee
MOST_STEPS = 6
ATTEMPTS = 2  # at a point that turns out invalid


class Sweep(BaseModel):
    """Every point, by its rate, and the knee among them.

    Attributes:
        ceiling_per_s: Requests that the generator reaches against a server that does nothing.
        capacity_per_s: What a closed loop of 32 users got of the service.
        knee: Position of the knee in ``points``; None if no valid point kept the bound.
    """

    model_config = ConfigDict(frozen=True)

    slo_ms: float
    ceiling_per_s: float
    capacity_per_s: float
    points: list[Result]
    knee: int | None

    def table(self) -> str:
        """The points for a terminal, and what was found."""
        lines = [
            f"bound: p99 < {self.slo_ms:g} ms; the generator alone reaches "
            f"{self.ceiling_per_s:,.0f} requests/s, a closed loop of {CAPACITY_USERS} users got "
            f"{self.capacity_per_s:,.0f}",
            "",
            "| offered/s | answered/s | p50 ms | p99 ms | sent late, p99 | generator | verdict |",
            "|---|---|---|---|---|---|---|",
        ]
        for i, point in enumerate(self.points):
            mark = " **knee**" if i == self.knee else ""
            lines.append(
                f"| {point.offered_per_s:,.0f}{mark} | {point.requests_per_s:,.0f} | "
                f"{point.latency_ms['p50']:.2f} | {point.latency_ms['p99']:.2f} | "
                f"{point.lag_ms['p99']:.2f} | {100 * point.generator_cpu_share:.0f}% | "
                f"{point.verdict} |"
            )
        if self.knee is None:
            lines += ["", "no valid point kept the bound: there is no knee to report"]
        else:
            knee = self.points[self.knee]
            lines += ["", f"knee: {knee.offered_per_s:,.0f} requests/s"]
        return "\n".join(lines)


def keeps(result: Result, slo_ms: float) -> bool:
    """Is it a valid point whose p99 is under the bound?"""
    return result.verdict.valid and result.latency_ms["p99"] < slo_ms


def sweep(
    scenario: Scenario,
    url: str,
    bundle: Path,
    profile: Profile,
    *,
    processes: int = 1,
    tell: Callable[[str], None] = lambda words: None,
) -> Sweep:
    """Search the knee of a running service.

    Args:
        scenario: An open loop with a bound; its rate is searched.
        url: The service.
        bundle: Of the model that is asked.
        profile: Of each point.
        processes: Of the generator.
        tell: Hears of each point as it is measured.

    Raises:
        LoadTestError: No service is ready there, or locust failed.
    """
    slo_ms = scenario.slo_ms or 20.0
    ceiling = ceiling_per_s(scenario, bundle, processes)
    capacity = _rate(_closed(scenario, url, bundle, processes))
    points: list[Result] = []

    def measured(rate: float) -> Result:
        changed = {"loop": "open", "users": None, "rate_per_s": rate, "slo_ms": slo_ms}
        point = run_scenario(
            scenario.model_copy(update=changed),
            url,
            bundle,
            profile,
            processes=processes,
            ceiling_per_s=ceiling,
        )
        tell(f"{rate:,.0f}/s: p99 {point.latency_ms['p99']:.2f} ms, {point.verdict}")
        points.append(point)
        return point

    def kept(rate: float) -> bool | None:
        """None if the measurement says nothing, a second time too."""
        for _ in range(ATTEMPTS):
            point = measured(rate)
            if point.verdict.valid or point.latency_ms["p99"] >= slo_ms:
                return keeps(point, slo_ms)
        return None

    _search(kept, capacity)
    points.sort(key=lambda point: point.offered_per_s or 0.0)
    right = [i for i, point in enumerate(points) if keeps(point, slo_ms)]
    return Sweep(
        slo_ms=slo_ms,
        ceiling_per_s=ceiling,
        capacity_per_s=capacity,
        points=points,
        knee=right[-1] if right else None,
    )


def _search(kept: Callable[[float], bool | None], capacity: float) -> None:
    """Offer shares of the capacity until one is too much, then halve the way to the knee.

    Args:
        kept: Offers a rate and says whether the bound was kept; None if it could not be told.
        capacity: Requests a second.
    """
    low, high = 0.0, 1.5 * capacity
    for share in FIRST_SHARES:
        found = kept(share * capacity)
        if found is False:
            high = share * capacity
            break
        if found:
            low = share * capacity
    steps = 0
    while low and high - low > NEAR_ENOUGH * low and steps < MOST_STEPS:
        steps, middle = steps + 1, (low + high) / 2
        low, high = (middle, high) if kept(middle) else (low, middle)


def ceiling_per_s(scenario: Scenario, bundle: Path, processes: int) -> float:
    """Requests a second that the generator reaches against a server that does nothing."""
    with noop_server() as url:
        return _rate(_closed(scenario, url, bundle, processes, ceiling=True))


def _closed(
    scenario: Scenario, url: str, bundle: Path, processes: int, *, ceiling: bool = False
) -> Tally:
    changed = {"loop": "closed", "users": CAPACITY_USERS, "rate_per_s": None, "slo_ms": None}
    return generate(
        scenario.model_copy(update=changed),
        url,
        bundle,
        load_profile("smoke", duration_s=CAPACITY_S, warmup_s=1),
        processes=processes,
        ceiling=ceiling,
    )


def _rate(tally: Tally) -> float:
    return tally.in_window / tally.window_s
