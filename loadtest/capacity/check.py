"""Compares the simulation with two real replicas behind the compose file's proxy.

The simulation's input is the moments at which requests were actually sent, and points measured just
before through the same proxy by the same client. Its median and 99th percentile are divided by the
measured ones. Other work on the machine slows the replicas, which the simulation does not model, so
the share of the cores that it takes is recorded too.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

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
from loadtest.telemetry.usage import Processes

REPLICAS = 2
MOST_OTHER = 0.1  # largest share of the machine's cores that other work may take


@dataclass(frozen=True)
class Compared:
    """The comparison at one rate under one policy.

    Attributes:
        share: Offered rate as a share of the two replicas' limit.
        requests: Number of requests sent; all were answered rightly.
        p50: Simulated over measured median; likewise ``p99`` and ``batch`` (mean samples in the
            batch of a request).
        other_share: Share of the machine's cores used by neither replicas, proxy nor client.
    """

    policy: Policy
    share: float
    requests: int
    p50: float
    p99: float
    batch: float
    other_share: float

    @property
    def is_valid(self) -> bool:
        """Whether other work took at most ``MOST_OTHER`` of the machine's cores."""
        return self.other_share <= MOST_OTHER


def check(
    bundle: Path,
    points: Points,
    *,
    shares: Sequence[float],
    duration_s: float,
    seed: int,
    tell: Callable[[str], None],
) -> list[Compared]:
    """Load two replicas at shares of their limit, under each policy, and simulate the same load.

    Args:
        bundle: The folder of the bundle with which the points were measured.
        points: Points from ``measure`` with a proxy.
        shares: Offered rates, as shares of the limit of both replicas.
        duration_s: Duration of the load at each share.
        seed: Seed of the arrivals and of the simulation.
        tell: Called with a line of text after each comparison.

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
                    with watch([*urls, url]) as used:
                        timings = send_at(url, expectations, due_s)
                    found.append(compare(points, timings, policy, share, seed, used.other_share))
                    tell(sentence(found[-1]))
    return found


def compare(
    points: Points,
    timings: Sequence[Timing],
    policy: Policy,
    share: float,
    seed: int,
    other_share: float,
) -> Compared:
    """Simulate the requests that were sent, and divide the results by the measured ones."""
    sent_s = np.array(sorted(timing.sent_s for timing in timings))
    outcome = simulate(points, sent_s, replicas=REPLICAS, policy=policy, seed=seed)
    measured = [timing.latency_ms for timing in timings]
    ratios = [outcome.percentile_ms(p) / float(np.percentile(measured, p)) for p in (50, 99)]
    measured_batch = float(np.mean([timing.batch_samples for timing in timings]))
    batch = outcome.batch_requests * points.samples_per_request / measured_batch
    return Compared(policy, share, len(timings), ratios[0], ratios[1], batch, other_share)


@dataclass
class Use:
    """The share of the machine's cores that other processes used during a measurement."""

    other_share: float = float("nan")


@contextmanager
def watch(urls: Sequence[str]) -> Iterator[Use]:
    """Measure the CPU use of all processes except the servers at these URLs and this process."""
    servers = [Processes(url) for url in urls]

    def now() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        ours = time.process_time() + sum(sum(server.used()[0].values()) for server in servers)
        return time.perf_counter(), sum(times[:4]) - times.idle, ours

    use, before = Use(), now()
    yield use
    elapsed_s, busy_s, ours_s = (b - a for a, b in zip(before, now(), strict=True))
    use.other_share = max(0.0, busy_s - ours_s) / (elapsed_s * (os.cpu_count() or 1))


def sentence(found: Compared) -> str:
    """One comparison as a line for a terminal."""
    return (
        f"{found.policy}, {found.share:.0%} of the limit, {found.requests:,} requests: simulated / "
        f"measured p50 {found.p50:.2f}, p99 {found.p99:.2f}, batch {found.batch:.2f}; "
        f"other work took {found.other_share:.0%} of the cores"
        + ("" if found.is_valid else ": INVALID")
    )


def _replica_cores() -> list[set[int]]:
    """One core for each replica, shared with proxy and client; no pinning with too few cores."""
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [{core} for core in mine[:REPLICAS]] if len(mine) >= REPLICAS else [set()] * REPLICAS
