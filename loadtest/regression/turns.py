"""One server's turns: a closed loop for its throughput, an open one for its latency.

Connections that break and answers that are wrong are kept: the figures alone would hide them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loadtest.generator.client import Load, Target, closed_loop, open_loop
from loadtest.measure.stats import percentile

WARM_UP_S = 0.1  # connections are new in each turn


@dataclass(frozen=True)
class Turn:
    """What came of a turn, or of several.

    Attributes:
        seconds: In which answers were counted.
        answered: Right answers in that time.
        latencies_s: Of right answers, from when a request was due.
        faults: In words, with their numbers: whatever was no right answer of 200.
    """

    seconds: float
    answered: int
    latencies_s: Sequence[float]
    faults: tuple[str, ...]

    def __add__(self, further: "Turn") -> "Turn":
        """Both together."""
        return Turn(
            self.seconds + further.seconds,
            self.answered + further.answered,
            [*self.latencies_s, *further.latencies_s],
            self.faults + further.faults,
        )

    @property
    def rate(self) -> float:
        """Right answers a second."""
        return self.answered / self.seconds

    @property
    def p99_s(self) -> float:
        """The 99th percentile of the latencies, seconds."""
        return percentile([self.latencies_s], 99)


class Offer(NamedTuple):
    """Requests that do not wait for answers.

    Attributes:
        rate: Requests a second.
        connections: Open ones at most.
        spin: As in ``open_loop``.
        seed: Of the arrivals.
    """

    rate: float
    connections: int
    spin: bool
    seed: int = 0


def closed_turn(target: Target, seconds: float, clients: int) -> Turn:
    """Some clients that each wait for their answer before they ask again.

    Args:
        target: Who is asked what.
        seconds: For how long answers are counted; faults are counted in the warm-up too.
        clients: How many.
    """

    def take() -> tuple[Load, int]:
        return closed_loop(target, clients, seconds, WARM_UP_S)

    return _turn(take, seconds)


def open_turn(target: Target, seconds: float, offer: Offer) -> Turn:
    """Requests at times of chance, which are those of the offer's seed.

    Args:
        target: Who is asked what.
        seconds: For how long requests are due.
        offer: How many, and how.
    """

    def take() -> tuple[Load, int]:
        load = open_loop(
            target,
            offer.rate,
            seconds,
            arrivals="poisson",
            connections=offer.connections,
            spin=offer.spin,
            seed=offer.seed,
        )
        return load, len(load.accepted_s)

    return _turn(take, seconds)


def faults(load: Load) -> tuple[str, ...]:
    """Whatever was no right answer of 200, in words."""
    found = [f"{kind} x {count}" for kind, count in sorted(load.other.items())]
    if load.refused_s:
        found.append(f"HTTP 429 x {len(load.refused_s)}")
    if load.wrong:
        found.append(f"wrong answers x {load.wrong}, such as: {load.examples[0]}")
    return tuple(found)


def _turn(take: Callable[[], tuple[Load, int]], seconds: float) -> Turn:
    """Take a turn; a server that is gone is a fault, too."""
    try:
        load, answered = take()
    except OSError as error:
        return Turn(seconds, 0, [], (f"no connection ({error})",))
    return Turn(seconds, answered, load.accepted_s, faults(load))
