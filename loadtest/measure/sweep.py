"""The service's capacity at its SLO, by search; and every point on the way.

An open loop: rates are offered whatever is answered. The capacity is the highest goodput (right
answers within the bound, a second) of a valid point at which 99% of the requests sent were
answered within it, from the moment they were due, as in MLPerf Inference's Server scenario. Of a
closed loop the users are doubled instead, and there is nothing to search.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from loadtest.generator.recorder import Tally
from loadtest.measure.noop import noop_server
from loadtest.measure.result import Result, count_up_to
from loadtest.measure.run import generate, run_scenario
from loadtest.measure.stats import Spread, over_runs
from loadtest.measure.validity import queries_needed
from loadtest.scenarios import Profile, Scenario, load_profile

CAPACITY_USERS = 32
CAPACITY_S = 3.0
LEAST_RATE = 1.0  # requests/s
FIRST_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the capacity: the curve before the search
NEAR_ENOUGH = 0.05  # of the capacity
MOST_STEPS = 6
BETWEEN = (0.5, 0.75, 0.25)  # of the way up; the further ones where the first cannot be judged
ATTEMPTS = 2  # at a point that turns out invalid
LEAST_IN_TIME = 0.99  # of what was sent: answered rightly and within the bound
# Low rates take as long as it needs to say something of p99, with a request or two over the bound.
ENOUGH_REQUESTS = 1.1 * queries_needed(1)
USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Sweep(BaseModel):
    """Every point, by its rate, and the one whose goodput is the capacity.

    Attributes:
        ceiling_per_s: Requests that the generator reaches against a server that does nothing.
        closed_loop_per_s: What a closed loop of 32 users got of the service.
        capacity: Position in ``points`` of the one whose goodput is the capacity; None if no valid
            point kept the bound.
        over_runs: Of that point's runs, if it was measured several times.
    """

    model_config = ConfigDict(frozen=True)

    slo_ms: float
    ceiling_per_s: float
    closed_loop_per_s: float
    points: list[Result]
    capacity: int | None
    over_runs: dict[str, Spread] = {}


def keeps(result: Result, slo_ms: float) -> bool:
    """Is it a valid point at which 99% of the requests sent are answered within the bound?"""
    return result.verdict.valid and not _too_much(result, slo_ms)


def _too_much(result: Result, slo_ms: float) -> bool:
    """Said even by a measurement that is worth nothing else: it only ever makes things worse.

    A request without an answer is one over the bound.
    """
    in_time = count_up_to(result.latency_us, slo_ms)
    return in_time < LEAST_IN_TIME * max(1, result.sent)


def sweep(
    scenario: Scenario,
    url: str,
    bundles: Sequence[Path],
    profile: Profile,
    *,
    processes: int = 1,
    price_per_hour: float = 0.0,
    tell: Callable[[str], None] = lambda words: None,
) -> Sweep:
    """Search the capacity of a running service.

    Args:
        scenario: An open loop with a bound; its rate is searched.
        url: The service.
        bundles: Of the models that are asked.
        profile: Of each point.
        processes: Of the generator.
        price_per_hour: Of the machine that serves; 0 if it is not stated.
        tell: Hears of each point as it is measured.

    Raises:
        LoadTestError: No service is ready there, or locust failed.
    """
    slo_ms = scenario.slo_ms or 20.0
    ceiling = ceiling_per_s(scenario, bundles, processes)
    closed_loop = closed_loop_rate(scenario, url, bundles, processes)
    points: list[Result] = []

    def measured(rate: float) -> Result:
        changed = {"loop": "open", "users": None, "rate_per_s": rate, "slo_ms": slo_ms}
        changed["seed"] = scenario.seed + sum(point.offered_per_s == rate for point in points)
        point = run_scenario(
            scenario.model_copy(update=changed),
            url,
            bundles,
            _long_enough(profile, rate),
            processes=processes,
            ceiling_per_s=ceiling,
            price_per_hour=price_per_hour,
        )
        tell(f"{rate:,.0f}/s: p99 {point.latency_ms['p99']:.2f} ms, {point.verdict}")
        points.append(point)
        return point

    _search(lambda rate: _kept(measured, rate, slo_ms), closed_loop)
    best = _confirmed(points, measured, slo_ms, profile.runs)
    points.sort(key=lambda point: point.offered_per_s or 0.0)
    return Sweep(
        slo_ms=slo_ms,
        ceiling_per_s=ceiling,
        closed_loop_per_s=closed_loop,
        points=points,
        capacity=None if best is None else points.index(best),
        over_runs={} if best is None else over_runs(_same_rate(points, best)),
    )


def _long_enough(profile: Profile, rate: float) -> Profile:
    seconds = max(profile.duration_s, ENOUGH_REQUESTS / rate)
    return profile.model_copy(update={"duration_s": seconds})


def _kept(measured: Callable[[float], Result], rate: float, slo_ms: float) -> bool | None:
    """Whether a rate keeps the bound; None if its measurement says nothing, a second time too."""
    for _ in range(ATTEMPTS):
        point = measured(rate)
        if point.verdict.valid or _too_much(point, slo_ms):
            return keeps(point, slo_ms)
    return None


def concurrency(users: Sequence[int], measure: Callable[[int], Result]) -> list[Result]:
    """A closed loop of ever more users; stops where not one request is answered."""
    points: list[Result] = []
    for count in users:
        points.append(measure(count))
        if not points[-1].requests:
            break
    return points


def _confirmed(
    points: list[Result], measured: Callable[[float], Result], slo_ms: float, runs: int
) -> Result | None:
    """The point of most goodput that keeps the bound in most of its runs, or None."""
    for point in sorted(points, key=_goodput_and_rate, reverse=True):
        if not keeps(point, slo_ms):
            continue
        for _ in range(runs - len(_same_rate(points, point))):
            measured(point.offered_per_s or 0.0)
        same = [other for other in _same_rate(points, point) if other.verdict.valid]
        right = [other for other in same if keeps(other, slo_ms)]
        if 2 * len(right) > len(same):
            return sorted(right, key=lambda other: other.latency_ms["p99"])[len(right) // 2]
    return None


def _goodput_and_rate(point: Result) -> tuple[float, float]:
    return point.goodput_per_s or 0.0, point.offered_per_s or 0.0


def _same_rate(points: Sequence[Result], point: Result) -> list[Result]:
    return [other for other in points if other.offered_per_s == point.offered_per_s]


def _search(kept: Callable[[float], bool | None], capacity: float) -> None:
    """Offer shares of a rate until one is too much, then halve the way to the capacity.

    Args:
        kept: Offers a rate and says whether the bound was kept; None if it could not be told.
        capacity: Requests a second that a closed loop got.
    """
    low, high = 0.0, 1.5 * capacity
    for share in FIRST_SHARES:
        found = kept(share * capacity)
        if found is False:
            high = share * capacity
            break
        if found:
            low = share * capacity
    for _ in range(MOST_STEPS):
        if not low or high - low <= NEAR_ENOUGH * low:
            return
        for share in BETWEEN:
            rate = low + share * (high - low)
            if (found := kept(rate)) is not None:
                low, high = (rate, high) if found else (low, rate)
                break
        else:
            return  # nothing between the two can be judged


def closed_loop_rate(
    scenario: Scenario, url: str, bundles: Sequence[Path], processes: int
) -> float:
    """Right answers a second that a closed loop of many users gets of a running service."""
    return _rate(_closed(scenario, url, bundles, processes))


def with_capacity(
    scenario: Scenario, url: str, bundles: Sequence[Path], processes: int = 1
) -> Scenario:
    """The scenario; if its rate is a multiple of the capacity, with the rate that this means."""
    if scenario.of_capacity is None:
        return scenario
    rate = scenario.of_capacity * closed_loop_rate(scenario, url, bundles, processes)
    return scenario.model_copy(update={"rate_per_s": max(rate, LEAST_RATE)})


def ceiling_per_s(scenario: Scenario, bundles: Sequence[Path], processes: int) -> float:
    """Requests a second that the generator reaches against a server that does nothing."""
    with noop_server() as url:
        return _rate(_closed(scenario, url, bundles, processes, ceiling=True))


def _closed(
    scenario: Scenario, url: str, bundles: Sequence[Path], processes: int, *, ceiling: bool = False
) -> Tally:
    changed = {"loop": "closed", "users": CAPACITY_USERS, "rate_per_s": None, "slo_ms": None}
    changed |= {"ramp_to_per_s": None, "hang_up_share": 0.0, "slow_clients": 0}
    return generate(
        scenario.model_copy(update=changed),
        url,
        bundles,
        load_profile("smoke", duration_s=CAPACITY_S, warmup_s=1),
        processes=processes,
        ceiling=ceiling,
    )


def _rate(tally: Tally) -> float:
    return tally.in_window / tally.window_s
