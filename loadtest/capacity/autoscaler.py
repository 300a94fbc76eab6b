"""Simulates how an autoscaler adds replicas after a change of load, and what is refused meanwhile.

This is a fluid model: requests are a continuous amount that flows into replicas and waits there. It
is deterministic and gives no percentiles (``simulation`` does), but it computes a thousand replicas
over minutes at once. The rule is Kubernetes' (HorizontalPodAutoscaler, v2): each metric asks for
``ready * value / target`` replicas, the largest number wins, and a policy limits how many may be
added in a period. Scaling down is not modelled, because it is slow on purpose.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.capacity.points import Points
from loadtest.capacity.simulation import poisson_arrivals, simulate

CURVE = np.linspace(0, 1.1, 23)[1:]  # shares of a replica's limit at which its use is simulated
CURVE_REQUESTS = 5000
TOLERANCE = 0.1  # Kubernetes' default: smaller relative deviations from the target are ignored


@dataclass(frozen=True, kw_only=True)
class Autoscaler:
    """The settings of the autoscaler; the defaults are those of ``service/kubernetes``.

    Attributes:
        least: Minimum number of replicas; ``most`` is the maximum.
        busy_target: Target share of its core that a replica uses.
        waiting_target: Target number of waiting samples in each replica, on average.
        period_s: Time between two decisions.
        window_s: Time over which metrics are averaged.
        growth: Factor by which the number of replicas may grow in ``growth_period_s``.
        growth_replicas: Number of replicas that may always be added in that time.
        start_s: Time from the decision until a new replica is ready.
    """

    least: int
    most: int
    start_s: float
    busy_target: float = 0.7
    waiting_target: float = 64.0
    period_s: float = 15.0
    window_s: float = 30.0
    growth: float = 2.0
    growth_replicas: int = 2
    growth_period_s: float = 30.0

    def wanted(self, ready: int, total: int, busy: float, waiting: float) -> int:
        """The number of replicas that the metrics ask for, without the policy's limit.

        Args:
            ready: Number of replicas that answer.
            total: Number of replicas including those that are starting.
            busy: Mean share of a ready replica's core in use.
            waiting: Number of samples that wait in all replicas together.
        """
        ratios = [busy / self.busy_target, waiting / (ready * self.waiting_target)]
        asked = max(
            math.ceil(ready * ratio - 1e-9) if abs(ratio - 1) > TOLERANCE else ready
            for ratio in ratios
        )
        return min(self.most, max(self.least, total, asked))

    def allowed(self, before: int) -> int:
        """The number of replicas that the policy allows, given that of a growth period ago."""
        return max(math.floor(before * self.growth), before + self.growth_replicas)


@dataclass(frozen=True)
class Step:
    """The state at one moment; rates are in requests/s, over the time step.

    Attributes:
        delay_s: Waiting time of a request that arrives now.
    """

    at_s: float
    arriving_per_s: float
    answered_per_s: float
    refused_per_s: float
    ready: int
    total: int
    waiting_requests: float
    delay_s: float
    busy: float


def follow(
    points: Points,
    autoscaler: Autoscaler,
    load: Callable[[float], float],
    *,
    replicas: int,
    duration_s: float,
    step_s: float = 0.25,
) -> list[Step]:
    """Simulate the autoscaler's reaction to a load.

    Args:
        points: Measured points of a replica.
        autoscaler: Settings of the autoscaler.
        load: Function from a moment (seconds from 0) to the arriving requests/s.
        replicas: Number of replicas at the beginning, all ready.
        duration_s: Duration of the simulation.
        step_s: Length of a time step.
    """
    steps: list[Step] = []
    use = _simulate_use(points)
    ready, waiting = replicas, 0.0
    starting: list[tuple[float, int]] = []  # moment at which they are ready, and their number
    totals = [(-math.inf, replicas)]  # decisions: moment, and number of replicas from then on
    next_s = autoscaler.period_s
    for number in range(round(duration_s / step_s)):
        now_s = number * step_s
        ready += sum(count for at_s, count in starting if at_s <= now_s)
        starting = [(at_s, count) for at_s, count in starting if at_s > now_s]
        step, waiting = _flow(points, use, load(now_s), waiting, ready, now_s, step_s)
        total = ready + sum(count for _, count in starting)
        steps.append(Step(**step, ready=ready, total=total))
        if now_s >= next_s:
            next_s += autoscaler.period_s
            grown = _decide(autoscaler, points, steps, totals, now_s)
            if grown > total:
                starting.append((now_s + autoscaler.start_s, grown - total))
                totals.append((now_s, grown))
    return steps


def _simulate_use(points: Points) -> Callable[[float], float]:
    """The function from a rate to the share of its core that a replica uses, with its batching.

    It is simulated request by request at the rates of ``CURVE``, and interpolated between them.
    """
    rates = CURVE * points.most_per_s
    shares = [
        simulate(
            points,
            poisson_arrivals(rate, CURVE_REQUESTS / rate, seed=0),
            replicas=1,
            policy="round-robin",
            seed=0,
        ).busy_share
        for rate in rates
    ]
    return lambda per_s: float(np.interp(per_s, [0.0, *rates], [0.0, *shares]))


def _flow(
    points: Points,
    use: Callable[[float], float],
    arriving_per_s: float,
    waiting: float,
    ready: int,
    now_s: float,
    step_s: float,
) -> tuple[dict[str, float], float]:
    """Compute one time step: the amounts that are answered, left waiting, and refused."""
    most_per_s = ready * points.most_per_s
    room = ready * points.max_queue_samples / points.samples_per_request
    come = waiting + arriving_per_s * step_s
    answered = min(come, most_per_s * step_s)
    left = come - answered
    refused = max(0.0, left - room)
    left -= refused
    state = {
        "at_s": now_s,
        "arriving_per_s": arriving_per_s,
        "answered_per_s": answered / step_s,
        "refused_per_s": refused / step_s,
        "waiting_requests": left,
        "delay_s": left / most_per_s,
        "busy": use(answered / step_s / ready),
    }
    return state, left


def _decide(
    autoscaler: Autoscaler,
    points: Points,
    steps: Sequence[Step],
    totals: Sequence[tuple[float, int]],
    now_s: float,
) -> int:
    """The number of replicas that the autoscaler sets at this moment."""
    window = [step for step in steps if step.at_s > now_s - autoscaler.window_s]
    busy = sum(step.busy for step in window) / len(window)
    waiting = sum(step.waiting_requests for step in window) / len(window)
    latest = steps[-1]
    wanted = autoscaler.wanted(
        latest.ready, latest.total, busy, waiting * points.samples_per_request
    )
    before = [count for at_s, count in totals if at_s <= now_s - autoscaler.growth_period_s][-1]
    return min(wanted, max(latest.total, autoscaler.allowed(before)))
