"""Holds the simulation against two real replicas behind the compose file's proxy.

The simulation gets the moments at which requests were really sent, and points that were measured
just before through the same proxy by the same client. What it then says of the median and the 99th
percentile is divided by what was measured.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtest.capacity.client import Timing, send_at
from loadtest.capacity.measure import SETTINGS
from loadtest.capacity.points import Points
from loadtest.capacity.proxy import running_proxy
from loadtest.capacity.simulation import (
    POLICIES,
    Policy,
    poisson_arrivals,
    simulate,
)
from loadtest.generator.expectations import Expectations
from loadtest.machine import pinned
from loadtest.server import only_bundle, running_service

REPLICAS = 2


@dataclass(frozen=True)
class Compared:
    """One rate under one policy.

    Attributes:
        share: Of the two replicas' limit that was offered.
        requests: That were sent; all were answered rightly.
        p50: Simulated over measured; ``p99`` and ``batch`` (mean samples of a request's batch)
            likewise.
    """

    policy: Policy
    share: float
    requests: int
    p50: float
    p99: float
    batch: float


def check(
    bundle: Path,
    points: Points,
    *,
    shares: Sequence[float],
    duration_s: float,
    seed: int,
    tell: Callable[[str], None],
) -> list[Compared]:
    """Load two replicas at shares of their limit, under each policy, and simulate the same.

    Args:
        bundle: That the points were measured with.
        points: From ``measure`` with a proxy.
        shares: Of the limit of both replicas.
        duration_s: At each share.
        seed: Of the moments.
        tell: Hears of each comparison.

    Raises:
        LoadTestError: A server did not start, or an answer is wrong.
    """
    expectations = Expectations(bundle, points.samples_per_request, points.endpoint)
    found = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = SETTINGS | {"INFERENCE_BUNDLES": str(only_bundle(folder, bundle))}
        urls = []
        for number, wanted in enumerate(_replica_cores()):
            with pinned(wanted):
                log = folder / f"replica{number}.log"
                urls.append(stack.enter_context(running_service(log, settings=settings)))
        for policy in POLICIES:
            with running_proxy(folder, urls, policy) as url:
                for share in shares:
                    rate = share * REPLICAS * points.most_per_s
                    due_s = poisson_arrivals(rate, duration_s, seed).tolist()
                    timings = send_at(url, expectations, due_s)
                    found.append(compare(points, timings, policy, share, seed))
                    tell(sentence(found[-1]))
    return found


def compare(
    points: Points, timings: Sequence[Timing], policy: Policy, share: float, seed: int
) -> Compared:
    """Simulate requests that were sent, and divide by what was measured."""
    sent_s = np.array(sorted(timing.sent_s for timing in timings))
    outcome = simulate(points, sent_s, replicas=REPLICAS, policy=policy, seed=seed)
    measured = [timing.latency_ms for timing in timings]
    ratios = [outcome.percentile_ms(p) / float(np.percentile(measured, p)) for p in (50, 99)]
    measured_batch = float(np.mean([timing.batch_samples for timing in timings]))
    batch = outcome.batch_requests * points.samples_per_request / measured_batch
    return Compared(policy, share, len(timings), ratios[0], ratios[1], batch)


def sentence(found: Compared) -> str:
    """One comparison for a terminal."""
    return (
        f"{found.policy}, {found.share:.0%} of the limit, {found.requests:,} requests: simulated / "
        f"measured p50 {found.p50:.2f}, p99 {found.p99:.2f}, batch {found.batch:.2f}"
    )


def _replica_cores() -> list[set[int]]:
    """A core for each replica; proxy and client share them. Any core where there are too few."""
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [{core} for core in mine[:REPLICAS]] if len(mine) >= REPLICAS else [set()] * REPLICAS
