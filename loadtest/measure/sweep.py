"""Searches for the service's capacity at its SLO and keeps every measured point.

The load is an open loop: requests are sent at a given rate, independently of answers. The capacity
is the highest goodput (right answers per second within the bound) of a valid point at which 99% of
the requests sent were answered within the bound. Latency counts from the moment a request was due,
as in MLPerf Inference's Server scenario. A closed loop needs no search: its users are doubled.
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
FIRST_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the closed loop's rate, offered before the search
NEAR_ENOUGH = 0.05  # relative width of the interval at which the search ends
MOST_STEPS = 6
BETWEEN = (0.5, 0.75, 0.25)  # share of the interval; later ones only if the first is invalid
ATTEMPTS = 2  # measurements of a point whose first one is invalid
LEAST_IN_TIME = 0.99  # share of the sent requests answered rightly and within the bound
# Low rates are measured for long enough that p99 can be judged with a request or two over it.
ENOUGH_REQUESTS = 1.1 * queries_needed(1)
USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Sweep(BaseModel):
    """Every point, sorted by its rate, and the one whose goodput is the capacity.

    Attributes:
        ceiling_per_s: Requests per second of the generator against a server that does nothing.
        closed_loop_per_s: Right answers per second to a closed loop of 32 users.
        capacity: Index in ``points`` of the one whose goodput is the capacity; None if no valid
            point kept the bound.
        over_runs: Spread of that point's figures over its runs, if it was measured several times.
    """

    model_config = ConfigDict(frozen=True)

    slo_ms: float
    ceiling_per_s: float
    closed_loop_per_s: float
    points: list[Result]
    capacity: int | None
    over_runs: dict[str, Spread] = {}


def keeps(result: Result, slo_ms: float) -> bool:
    """Whether the point is valid and 99% of its requests were answered within the bound."""
    return result.verdict.valid and not _too_much(result, slo_ms)


def _too_much(result: Result, slo_ms: float) -> bool:
    """Whether too many requests missed the bound; a request without an answer misses it.

    An invalid measurement can show this too: its faults only ever increase latencies.
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
    """Search for the capacity of a running service.

    Args:
        scenario: An open loop with a latency bound (20 ms if it has none); its rate is searched.
        url: The service's URL.
        bundles: Bundles of the models that are loaded.
        profile: Durations of each point, and runs of the best one.
        processes: Number of generator processes.
        price_per_hour: Price of the serving machine; 0 if it is not stated.
        tell: Called with a line of text after each measured point.

    Raises:
        LoadTestError: No service is ready at the URL, or locust failed.
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
    """Whether the bound is kept at a rate; None if both attempts at measuring it are invalid."""
    for _ in range(ATTEMPTS):
        point = measured(rate)
        if point.verdict.valid or _too_much(point, slo_ms):
            return keeps(point, slo_ms)
    return None


def concurrency(users: Sequence[int], measure: Callable[[int], Result]) -> list[Result]:
    """Measure a closed loop with each number of users; stop once no request is answered."""
    points: list[Result] = []
    for count in users:
        points.append(measure(count))
        if not points[-1].requests:
            break
    return points


def _confirmed(
    points: list[Result], measured: Callable[[float], Result], slo_ms: float, runs: int
) -> Result | None:
    """The point with the highest goodput that keeps the bound in most of its runs, or None."""
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
    """Offer shares of a rate until one exceeds the bound, then bisect towards the capacity.

    Args:
        kept: Offers a rate and returns whether the bound was kept; None if that is unknown.
        capacity: Requests per second that a closed loop reached.
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
            return  # no rate between the two can be judged


def closed_loop_rate(
    scenario: Scenario, url: str, bundles: Sequence[Path], processes: int
) -> float:
    """Right answers per second that a running service gives to a closed loop of many users."""
    return _rate(_closed(scenario, url, bundles, processes))


def with_capacity(
    scenario: Scenario, url: str, bundles: Sequence[Path], processes: int = 1
) -> Scenario:
    """The scenario; a rate that is a multiple of the capacity is replaced by the measured rate."""
    if scenario.of_capacity is None:
        return scenario
    rate = scenario.of_capacity * closed_loop_rate(scenario, url, bundles, processes)
    return scenario.model_copy(update={"rate_per_s": max(rate, LEAST_RATE)})


def ceiling_per_s(scenario: Scenario, bundles: Sequence[Path], processes: int) -> float:
    """Requests per second that the generator reaches against a server that does nothing."""
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
