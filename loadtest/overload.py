"""What the service does with more than it can: an open loop at shares of its own capacity.

The service is started for this alone, with the settings given. Where there are two cores or more,
the client has the last one for itself and the service the others, so that neither takes the
other's time; the table's head says so.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from loadtest.client.connections import Load, Target
from loadtest.client.forms import FormError, Forms, judge
from loadtest.client.loops import Arrivals, closed_loop, open_loop
from loadtest.errors import LoadTestError
from loadtest.machine import cores, pinned
from loadtest.ratios import percentile
from loadtest.server import running_service

CLIENTS = (2, 4, 8, 16, 32, 64, 128)
CAPACITY_S = 0.5  # of each number of them
WORTH_IT = 1.02

COLUMNS = (
    *("of the capacity", "offered/s", "answered/s", "refused/s", "other", "wrong"),
    *("p50", "p99", "p99 refused", "Retry-After, s", "sent late, p99"),
)


class OverloadError(LoadTestError):
    """Nothing can be measured; says what was wrong."""


@dataclass(frozen=True)
class Row:
    """What came of one share of the capacity.

    Attributes:
        factor: The share.
        loads: What came of it in each round.
        base_s: The p99 of the smallest share, seconds.
    """

    factor: float
    loads: Sequence[Load]
    base_s: float

    @property
    def p99_s(self) -> float:
        """Of the accepted requests, from when they were due; the median of the rounds."""
        return percentile([load.accepted_s for load in self.loads], 99)

    @property
    def total(self) -> Load:
        """All rounds together."""
        total = Load(0)
        for load in self.loads:
            total.add(load)
        return total

    def cells(self) -> list[str]:
        """In the order of COLUMNS; latencies in units of ``base_s``."""
        load = self.total
        other = ", ".join(f"{kind}: {count}" for kind, count in load.other.items()) or "0"
        p50_s = percentile([load.accepted_s for load in self.loads], 50)
        refused_s = percentile([load.refused_s for load in self.loads], 99)
        late_s = percentile([load.late_s for load in self.loads], 99)
        said = load.retry_after_s
        return [
            f"{self.factor:g} x",
            f"{load.asked / load.seconds:.0f}",
            f"{len(load.accepted_s) / load.seconds:.0f}",
            f"{len(load.refused_s) / load.seconds:.0f}",
            other,
            str(load.wrong),
            f"{p50_s / self.base_s:.2f} x",
            f"{self.p99_s / self.base_s:.2f} x",
            f"{refused_s / self.base_s:.2f} x" if load.refused_s else "-",
            f"{min(said)} to {max(said)}" if said else "-",
            f"{late_s / self.base_s:.2f} x",
        ]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        images: In a request.
        factors: Shares of the capacity that are offered, ascending.
        rounds: Each measures the capacity anew and offers every share once.
        seconds: Of each share in a round.
        connections: Open connections at most.
    """

    images: int = 64
    factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    rounds: int = 3
    seconds: float = 2.0
    arrivals: Arrivals = "poisson"
    connections: int = 256


def measure(bundle: Path, settings: Mapping[str, str], plan: Plan) -> list[Row]:
    """Start the service of one bundle, load it and stop it.

    Args:
        bundle: The folder of the bundle; the service serves it alone.
        settings: Environment variables of the service.
        plan: What is measured.

    Raises:
        OverloadError: No bundle there, nothing was answered rightly, the service stopped
            answering, or a plan that cannot be.
    """
    if min(plan.factors, default=0) <= 0 or min(plan.seconds, plan.rounds, plan.images) <= 0:
        raise OverloadError("shares, seconds, rounds and images must be positive numbers")
    try:
        forms = Forms(bundle)
    except FormError as error:
        raise OverloadError(str(error)) from error
    request, factors = forms.raw("service", "raw binary", plan.images), sorted(plan.factors)
    service_cores, client_cores = cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "bundles").mkdir()
        (folder / "bundles" / "model").symlink_to(bundle.resolve())
        ours = {"INFERENCE_BUNDLES": str(folder / "bundles"), **settings}
        with pinned(service_cores):  # its processes are born there
            url = stack.enter_context(running_service(folder / "log", settings=ours))
        with pinned(client_cores):
            target = Target(url, request.wire(), judge(forms, request))
            try:
                loads = _rounds(target, plan, factors, spin=bool(client_cores))
            except OSError as error:
                raise OverloadError(f"the service stopped answering: {error}") from error
    base_s = percentile([load.accepted_s for load in loads[0]], 99)
    return [Row(factor, found, base_s) for factor, found in zip(factors, loads, strict=True)]


def _rounds(
    target: Target, plan: Plan, factors: Sequence[float], *, spin: bool
) -> list[list[Load]]:
    """For each share, what came of it in each round."""
    loads: list[list[Load]] = [[] for _ in factors]
    for _ in range(plan.rounds):
        capacity = _capacity(target)
        for factor, found in zip(factors, loads, strict=True):
            found.append(
                open_loop(
                    target,
                    factor * capacity,
                    plan.seconds,
                    arrivals=plan.arrivals,
                    connections=plan.connections,
                    spin=spin,
                )
            )
    return loads


def _capacity(target: Target) -> float:
    """Right answers a second that the best closed loop gets.

    Few clients do not fill batches of single images, many are refused where the queue is short: so
    their number is doubled as long as that helps.
    """
    best = 0.0
    for clients in CLIENTS:
        rate = closed_loop([target], clients, CAPACITY_S)[1] / CAPACITY_S
        if rate < best * WORTH_IT:
            break
        best = max(best, rate)
    if not best:
        raise OverloadError("not one request was answered rightly in a closed loop")
    return best
