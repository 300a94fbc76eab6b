"""How many replicas an autoscaler starts after a change of load, and what is refused meanwhile.

A fluid model: requests are an amount that flows into replicas and waits there, step by step. It has
no chance in it and says nothing of percentiles, which ``simulation`` does; in exchange a thousand
replicas over minutes take a moment. The rule is Kubernetes' (HorizontalPodAutoscaler, v2): each
metric asks for ``ready * value / target`` replicas, the largest wins, and a policy limits how many
may be added in a period. Replicas are not taken away here: that is slow on purpose.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.capacity.points import Points
from loadtest.capacity.simulation import poisson_arrivals, simulate

CURVE = np.linspace(0, 1.1, 23)[1:]  # shares of a replica's limit at which its use is simulated
CURVE_REQUESTS = 5000
TOLERANCE = 0.1  # Kubernetes' own: closer to the target than this, nothing is changed


@dataclass(frozen=True, kw_only=True)
class Autoscaler:
    """The settings of the autoscaler; the defaults are those of ``service/kubernetes``.

    Attributes:
        least: Replicas at least; ``most`` at most.
        busy_target: Share of its core that a replica should use.
        waiting_target: Samples that should wait in each replica on average.
        period_s: Between two decisions.
        window_s: Over which metrics are averaged.
        growth: Factor by which replicas may grow in ``growth_period_s``.
        growth_replicas: How many may be added in that time in any case.
        start_s: From the decision until a new replica is ready.
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
        """Replicas that the metrics ask for, without the policy's limit.

        Args:
            ready: Replicas that answer.
            total: With those that are starting.
            busy: Mean share of a ready replica's core in use.
            waiting: Samples that wait in all replicas.
        """
        ratios = [busy / self.busy_target, waiting / (ready * self.waiting_target)]
        asked = max(
            math.ceil(ready * ratio - 1e-9) if abs(ratio - 1) > TOLERANCE else ready
            for ratio in ratios
        )
        return min(self.most, max(self.least, total, asked))

    def allowed(self, before: int) -> int:
        """Replicas that the policy allows, of those that there were a growth period before."""
        return max(math.floor(before * self.growth), before + self.growth_replicas)


@dataclass(frozen=True)
class Step:
    """The state at a moment; rates in requests/s, over the time since the step before.

    Attributes:
        delay_s: How long a request that arrives now waits.
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
    """Let the autoscaler react to a load.

    Args:
        points: What a replica does.
        autoscaler: Its settings.
        load: Requests/s that arrive at a moment (seconds from 0).
        replicas: At the beginning, all ready.
        duration_s: Of the simulation.
        step_s: Of the calculation.
    """
    steps: list[Step] = []
    use = _simulate_use(points)
    ready, waiting = replicas, 0.0
    starting: list[tuple[float, int]] = []  # when ready, how many
    totals = [(-math.inf, replicas)]  # decisions: when, and how many there were from then on
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
    """The share of its core that a replica uses at a rate, with the batches of that load.

    Simulated request by request at some rates, and interpolated between them.
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
    """One step of the amounts: what is answered, what waits, what finds the queue full."""
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
    """How many replicas there shall be from now on."""
    window = [step for step in steps if step.at_s > now_s - autoscaler.window_s]
    busy = sum(step.busy for step in window) / len(window)
    waiting = sum(step.waiting_requests for step in window) / len(window)
    latest = steps[-1]
    wanted = autoscaler.wanted(
        latest.ready, latest.total, busy, waiting * points.samples_per_request
    )
    before = [count for at_s, count in totals if at_s <= now_s - autoscaler.growth_period_s][-1]
    return min(wanted, max(latest.total, autoscaler.allowed(before)))
