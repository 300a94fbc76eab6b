"""Is head slower than base? Both serve the same bundle on this machine, and take turns.

First base beside itself: what then seems to differ is this machine's noise. Then base and head. In
each pair of measurements the sides take short turns, and who begins is drawn. All servers are up
all the time, and only the one that is asked works; every answer is verified.
"""

import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from loadtest.errors import LoadTestError
from loadtest.generator.client import Load, Target, closed_loop, open_loop
from loadtest.generator.expectations import Expectations
from loadtest.generator.payloads import Model, PayloadError, usable_form
from loadtest.machine import cores, machine, pinned
from loadtest.regression.trees import Tree, TreeError, checked_out, serving
from loadtest.regression.verdict import LEAST_THROUGHPUT, MOST_P99, Figure, Outcome, Pair, Row
from loadtest.server import REPOSITORY

MANY = 64  # samples of the larger requests
CLIENTS = 32  # that ask for one sample each
CLIENTS_OF_MANY = 4  # 256 samples at once: fewer than any queue holds, so nothing is refused
CONNECTIONS = 256  # of the open loop, for the same reason
SHARE = 0.6  # of base's capacity, that the open loop offers
WARM_UP_S = 1.0  # seconds, of each server with each request
LONGEST_TURN_S = 0.5
TURN_WARM_UP_S = 0.1  # connections are new in each turn
LEAST_PAIRS = 2

ONE = Figure(f"throughput, 1 sample, {CLIENTS} connections", LEAST_THROUGHPUT)
MORE = Figure(f"throughput, {MANY} samples, {CLIENTS_OF_MANY} connections", LEAST_THROUGHPUT)
TAIL = Figure(f"p99, 1 sample, at {SHARE:.0%} of base's capacity", MOST_P99)
FIGURES = (ONE, MORE, TAIL)

Tell = Callable[[str], None]
Facts = dict[str, str | int | float]


class GateError(LoadTestError):
    """Nothing can be measured; says what was wrong."""


class HeadError(Exception):
    """Head gave wrong answers or errors; ``args`` are they, in words."""


@dataclass(frozen=True)
class Plan:
    """What is compared, and how long.

    Attributes:
        base: What git knows the one commit by; see ``trees.PRESENT``, too.
        head: The other one, that may be slower.
        bundle: The folder of the bundle that both serve.
        repository: Whose commits they are.
        pairs: For each figure; as many of base and itself.
        seconds: Of each side in a pair; taken in short turns.
        seed: Of the order within pairs, and of the bootstrap.
        strict: Shall a regression fail?
    """

    base: str
    head: str
    bundle: Path = Path("artifacts/bundles/cnn")
    repository: Path = REPOSITORY
    pairs: int = 8
    seconds: float = 3.0
    seed: int = 0
    strict: bool = False


class Offer(NamedTuple):
    """Requests that do not wait for answers.

    Attributes:
        rate: Requests a second.
        spin: As in ``open_loop``.
        seed: Of the arrivals.
    """

    rate: float
    spin: bool
    seed: int = 0


class Server(NamedTuple):
    """One that is up.

    Attributes:
        one: Asked for one sample.
        many: Asked for MANY.
    """

    tree: Tree
    one: Target
    many: Target


@dataclass(frozen=True)
class _Bench:
    """Servers that are up, warm, and answer rightly; and how they are asked."""

    plan: Plan
    base: Server
    again: Server
    head: Server
    offer: Offer
    tell: Tell
    same: dict[Figure, list[Pair]] = field(default_factory=dict)
    pairs: dict[Figure, list[Pair]] = field(default_factory=dict)

    def measure(self) -> list[Row]:
        """Base beside itself, then beside head.

        Raises:
            GateError: Base gave wrong answers or errors.
            HeadError: Head did.
        """
        seed, count = self.plan.seed, self.plan.pairs
        for what, other, found in (("A/A", self.again, self.same), ("A/B", self.head, self.pairs)):
            turns = orders(count, f"{seed} {what}")
            for number, drawn in enumerate(turns, 1):
                self.tell(f"{what} pair {number} of {count}")
                for figure, base_first in drawn.items():
                    pair = self._pair(figure, other, base_first, f"{seed} {what} {number}")
                    found.setdefault(figure, []).append(pair)
        return [Row(figure, self.same[figure], self.pairs[figure], seed) for figure in FIGURES]

    def _pair(self, figure: Figure, other: Server, base_first: bool, seed: str) -> Pair:
        """What other and base gave; see ``sides`` for their turns.

        Both sides get the arrivals of the same seeds, a seed for each turn.
        """
        chance = random.Random(seed)  # noqa: S311 - no secret
        count = max(1, round(self.plan.seconds / LONGEST_TURN_S))
        taken: dict[bool, Load] = {}
        seeds = [chance.randrange(2**32) for _ in range(count)]
        left = {True: list(seeds), False: list(seeds)}
        for asks_base in sides(count, base_first):
            server = self.base if asks_base else other
            turn = self._turn(figure, server, count, left[asks_base].pop())
            taken[asks_base] = taken[asks_base] + turn if asks_base in taken else turn
        for asks_base, turn in taken.items():
            answering(turn, "head" if other is self.head and not asks_base else "base")
        if figure is TAIL:
            return taken[False].p99_s, taken[True].p99_s
        return taken[False].rate, taken[True].rate

    def _turn(self, figure: Figure, server: Server, count: int, seed: int) -> Load:
        seconds = self.plan.seconds / count
        if figure is TAIL:
            turn = open_turn(server.one, seconds, self.offer._replace(seed=seed))
        elif figure is MORE:
            turn = closed_turn(server.many, seconds, CLIENTS_OF_MANY)
        else:
            turn = closed_turn(server.one, seconds, CLIENTS)
        return faultless(turn, "head" if server is self.head else "base")


def sides(count: int, base_first: bool) -> list[bool]:
    """For each of a pair's short turns: is it base's? Each side has so many.

    What slows the machine for a second then slows both: A B B A A B and so on.
    """
    return [base_first ^ (number % 4 in {1, 2}) for number in range(2 * count)]


def orders(pairs: int, seed: str) -> list[dict[Figure, bool]]:
    """For each pair and figure: is base asked first? As often as not, in an order of chance."""
    chance = random.Random(seed)  # noqa: S311 - no secret; the same order for the same seed
    drawn: dict[Figure, list[bool]] = {}
    for figure in FIGURES:
        drawn[figure] = [number % 2 == 0 for number in range(pairs)]
        chance.shuffle(drawn[figure])
    return [{figure: drawn[figure][number] for figure in FIGURES} for number in range(pairs)]


def closed_turn(target: Target, seconds: float, clients: int) -> Load:
    """Some clients that each wait for their answer before they ask again."""
    return _taken(lambda: closed_loop(target, clients, seconds, TURN_WARM_UP_S), seconds)


def open_turn(target: Target, seconds: float, offer: Offer) -> Load:
    """Requests at times of chance, which are those of the offer's seed."""

    def take() -> Load:
        return open_loop(
            target,
            offer.rate,
            seconds,
            arrivals="poisson",
            connections=CONNECTIONS,
            spin=offer.spin,
            seed=offer.seed,
        )

    return _taken(take, seconds)


def _taken(take: Callable[[], Load], seconds: float) -> Load:
    """Take a turn; a server that is gone is a fault, too."""
    try:
        return take()
    except OSError as error:
        return Load(seconds, other=Counter({f"no connection ({error})": 1}))


def faultless(turn: Load, side: str) -> Load:
    """The turn, if there was nothing wrong.

    Raises:
        HeadError: There were wrong answers or errors, and it was head's turn.
        GateError: It was base's.
    """
    if turn.faults and side == "head":
        raise HeadError(*turn.faults)
    if turn.faults:
        raise GateError(f"base itself gave wrong answers or errors: {'; '.join(turn.faults)}")
    return turn


def answering(turn: Load, side: str) -> Load:
    """The turn, if there was a right answer in time and nothing wrong; else as ``faultless``."""
    if not turn.answered:
        turn = turn + Load(0, other=Counter({f"no right answer within {turn.seconds:g} s": 1}))
    return faultless(turn, side)


def compared(plan: Plan, tell: Tell = lambda line: None) -> Outcome:
    """Compare two commits.

    Args:
        plan: What is measured.
        tell: Given a line now and then, while it takes its minutes.
    """
    facts = _facts(plan)
    try:
        if plan.pairs < LEAST_PAIRS or plan.seconds <= 0:
            raise GateError(f"at least {LEAST_PAIRS} pairs, and turns of more than 0 s, are needed")
        with _bench(plan, facts, tell) as bench:
            rows = bench.measure()
    except HeadError as error:
        return Outcome(facts, faults=error.args, strict=plan.strict)
    except (GateError, TreeError, PayloadError) as error:
        return Outcome(facts, problem=str(error), strict=plan.strict)
    return Outcome(facts, rows, strict=plan.strict)


@contextmanager
def _bench(plan: Plan, facts: Facts, tell: Tell) -> Iterator[_Bench]:
    """Check out, serve, ask once; the client has its core for the time of the block."""
    expectations = [_expectations(plan.bundle, count) for count in (1, MANY)]
    service_cores, client_cores = cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-")))
        (folder / "bundles").mkdir()
        (folder / "bundles" / "model").symlink_to(plan.bundle.resolve())
        servers = []
        for name, ref in (("base", plan.base), ("again", plan.base), ("head", plan.head)):
            tree = stack.enter_context(checked_out(plan.repository, ref, folder / name))
            if name != "again":
                facts[name] = f"{ref} ({tree.commit})"
            tell(f"starting {name}: {ref} ({tree.commit})")
            with pinned(set(sorted(service_cores)[:1])):  # its processes are born there
                log_file = folder / f"{name}.log"
                url = stack.enter_context(serving(tree, folder / "bundles", log_file))
            one, many = (target(url, each) for each in expectations)
            servers.append(Server(tree, one, many))
        stack.enter_context(pinned(client_cores))
        rate = SHARE * _warm_up(servers)
        offer = Offer(rate, spin=bool(client_cores))
        base, again, head = servers
        yield _Bench(plan, base, again, head, offer, tell)


def _expectations(bundle: Path, samples: int) -> Expectations:
    """Requests of the bundle, bare where it has one input."""
    return Expectations(bundle, samples, usable_form([Model(bundle)], "infer/raw"))


def target(url: str, expectations: Expectations) -> Target:
    """The first of these requests, to a server."""
    request = expectations.requests[0]

    def judge(headers: Mapping[str, str], body: bytes) -> str | None:
        return expectations.complaint(request, body, headers)

    return Target(url, request.wire(), judge)


def _warm_up(servers: list[Server]) -> float:
    """Ask each server both requests for a moment; what base can do, requests a second."""
    rates = []
    for server, side in zip(servers, ("base", "base", "head"), strict=True):
        faultless(closed_turn(server.many, WARM_UP_S, CLIENTS_OF_MANY), side)
        rates.append(answering(closed_turn(server.one, WARM_UP_S, CLIENTS), side).rate)
    return rates[0]


def _facts(plan: Plan) -> Facts:
    own = [min(found) for found in cores() if found]
    where = (
        "service on core {}, client on core {}".format(*own) if own else "co-located on any core"
    )
    settings = [name for name in sorted(os.environ) if name.startswith(("INFERENCE_", "DIGITS_"))]
    return {
        "base": plan.base,
        "head": plan.head,
        "bundle": plan.bundle.resolve().name,
        "machine": machine(),
        "cores": where,
        "settings": ", ".join(settings) or "defaults",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": plan.seed,
        "pairs": plan.pairs,
        "seconds of each side in a pair": plan.seconds,
    }
