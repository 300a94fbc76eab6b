"""Measures whether head is slower than base; both serve the same bundle on this machine, in turns.

Base is first compared with itself (A/A): any difference is the machine's noise. Then head is
compared with base. In each pair of measurements the sides take short turns, and the first side is
drawn. All servers run throughout, but only one receives requests; every answer is verified. wrk
measures the throughput, which exceeds what locust can generate on one core. Locust measures the
tail latency in an open loop, with requests so large that it uses little of its core.
"""

import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from loadtest.errors import LoadTestError
from loadtest.generator.expectations import Expectations
from loadtest.generator.payloads import Model, PayloadError, usable_form
from loadtest.generator.recorder import decoded
from loadtest.generator.wrk import WrkError, by_wrk, require_wrk
from loadtest.machine import cores, machine, pinned
from loadtest.measure.result import percentiles_ms
from loadtest.measure.run import generate
from loadtest.regression.trees import Tree, TreeError, checked_out, serving
from loadtest.regression.verdict import LEAST_THROUGHPUT, MOST_P99, Figure, Outcome, Pair, Row
from loadtest.scenarios import Endpoint, Profile, load_scenario
from loadtest.server import REPOSITORY, only_bundle

MANY = 64  # samples of the larger requests
CLIENTS = 32  # connections with requests of one sample each
CLIENTS_OF_MANY = 4  # 256 samples at once: fewer than any queue holds, so nothing is refused
SHARE = 0.6  # the open loop's rate, as a share of base's capacity
WARM_UP_S = 0.5  # before each of locust's measurements
TURN_S = 1  # of wrk, which accepts only whole seconds
LEAST_PAIRS = 2

ONE = Figure(f"throughput, 1 sample, {CLIENTS} connections", LEAST_THROUGHPUT)
MORE = Figure(f"throughput, {MANY} samples, {CLIENTS_OF_MANY} connections", LEAST_THROUGHPUT)
TAIL = Figure(f"p99, {MANY} samples, at {SHARE:.0%} of base's capacity", MOST_P99)
FIGURES = (ONE, MORE, TAIL)

Tell = Callable[[str], None]
Facts = dict[str, str | int | float]


class GateError(LoadTestError):
    """Nothing can be measured; the message says what is wrong."""


class HeadError(Exception):
    """Head gave wrong answers or errors; ``args`` describe them."""


@dataclass(frozen=True)
class Plan:
    """The commits to compare, and for how long.

    Attributes:
        base: Git revision of the first commit, or one of ``trees.PRESENT``.
        head: Git revision of the commit that may be slower, or one of ``trees.PRESENT``.
        bundle: The folder of the bundle that both serve.
        repository: The repository that contains the commits.
        pairs: Number of pairs for each figure, both of base with itself and of head with base.
        seconds: Time of each side in a pair; wrk divides it into turns of one second.
        seed: Seed of the order within pairs, of the arrivals and of the bootstrap.
        strict: Whether a regression sets exit status 3.
    """

    base: str
    head: str
    bundle: Path = Path("artifacts/bundles/cnn")
    repository: Path = REPOSITORY
    pairs: int = 8
    seconds: float = 3.0
    seed: int = 0
    strict: bool = False


class Server(NamedTuple):
    """A running server; ``side`` is "base" or "head"."""

    side: str
    url: str


@dataclass
class Bench:
    """The running servers and the requests that measure them.

    Attributes:
        asked: Prepared requests, by their number of samples.
        rate: Rate of the open loop, in requests per second.
        scratch: A folder for wrk's files.
    """

    plan: Plan
    base: Server
    again: Server
    head: Server
    form: Endpoint
    asked: Mapping[int, Expectations]
    scratch: Path
    tell: Tell
    rate: float = 0.0
    same: dict[Figure, list[Pair]] = field(default_factory=dict)
    pairs: dict[Figure, list[Pair]] = field(default_factory=dict)

    def measure(self) -> list[Row]:
        """Measure base against itself, then head against base.

        Raises:
            GateError: Base gave wrong answers or errors.
            HeadError: Head gave wrong answers or errors.
        """
        for server in (self.head, self.again, self.base):  # a warm-up; base, last, sets the rate
            self.throughput(ONE, server)
            self.rate = SHARE * self.throughput(MORE, server)
        seed, count = self.plan.seed, self.plan.pairs
        for what, other, found in (("A/A", self.again, self.same), ("A/B", self.head, self.pairs)):
            turns = orders(count, f"{seed} {what}")
            for number, drawn in enumerate(turns, 1):
                self.tell(f"{what} pair {number} of {count}")
                for figure, base_first in drawn.items():
                    pair = self.pair(figure, other, base_first, f"{seed} {what} {number}")
                    found.setdefault(figure, []).append(pair)
        return [Row(figure, self.same[figure], self.pairs[figure], seed) for figure in FIGURES]

    def pair(self, figure: Figure, other: Server, base_first: bool, seed: str) -> Pair:
        """Measure one pair: the figures of other and of base, in turns ordered by ``sides``."""
        arrivals = random.Random(seed).randrange(2**32)  # noqa: S311 - no secret; both get them
        count = 1 if figure is TAIL else max(1, round(self.plan.seconds / TURN_S))
        found: dict[bool, list[float]] = {True: [], False: []}
        for asks_base in sides(count, base_first):
            server = self.base if asks_base else other
            if figure is TAIL:
                found[asks_base].append(self.p99_ms(server, arrivals))
            else:
                found[asks_base].append(self.throughput(figure, server))
        return fmean(found[False]), fmean(found[True])

    def throughput(self, figure: Figure, server: Server) -> float:
        """Right answers per second in a closed loop of wrk's connections.

        Raises:
            GateError: Base gave wrong answers or errors.
            HeadError: Head gave wrong answers or errors.
        """
        samples, clients = (1, CLIENTS) if figure is ONE else (MANY, CLIENTS_OF_MANY)
        asked = self.asked[samples]
        try:
            measured = by_wrk(self.scratch, server.url, asked.requests[0], clients, TURN_S, asked)
        except WrkError as error:
            raise fault(server, str(error)) from error
        return measured.requests_per_s

    def p99_ms(self, server: Server, seed: int) -> float:
        """The p99 latency at ``Bench.rate`` in milliseconds, from the moment a request was due.

        Raises:
            GateError: Base gave wrong answers or errors.
            HeadError: Head gave wrong answers or errors.
        """
        asked = {"samples_per_request": MANY, "endpoint": self.form, "seed": seed}
        scenario = load_scenario("Server", rate_per_s=self.rate, **asked)
        profile = Profile(name="compare", duration_s=self.plan.seconds, warmup_s=WARM_UP_S, runs=1)
        tally = generate(scenario, server.url, [self.plan.bundle], profile)
        faults = [f"{kind} x {count}" for kind, count in sorted(tally.errors.items())]
        if tally.wrong_answers:
            example = tally.wrong_examples[0].complaint
            faults.append(f"wrong answers x {tally.wrong_answers}, for example: {example}")
        elif not decoded(tally.latency_us).get_total_count():
            faults.append(f"no correct answer to the requests sent within {self.plan.seconds:g} s")
        if faults:
            raise fault(server, *faults)
        return percentiles_ms(tally.latency_us, [99])["p99"]


def fault(server: Server, *words: str) -> Exception:
    """The exception to raise if a server gave wrong answers or errors."""
    if server.side == "head":
        return HeadError(*words)
    return GateError(f"base itself gave wrong answers or errors: {'; '.join(words)}")


def sides(count: int, base_first: bool) -> list[bool]:
    """For each turn of a pair, whether it is base's; each side has ``count`` turns.

    The order is A B B A A B and so on, so that a brief slowdown of the machine affects both sides.
    """
    return [base_first ^ (number % 4 in {1, 2}) for number in range(2 * count)]


def orders(pairs: int, seed: str) -> list[dict[Figure, bool]]:
    """For each pair and figure, whether base is measured first: in half of the pairs, shuffled."""
    chance = random.Random(seed)  # noqa: S311 - no secret; the same order for the same seed
    drawn: dict[Figure, list[bool]] = {}
    for figure in FIGURES:
        drawn[figure] = [number % 2 == 0 for number in range(pairs)]
        chance.shuffle(drawn[figure])
    return [{figure: drawn[figure][number] for figure in FIGURES} for number in range(pairs)]


def compared(plan: Plan, tell: Tell = lambda line: None) -> Outcome:
    """Compare two commits, which takes minutes; ``tell`` receives lines about the progress."""
    facts = _facts(plan)
    try:
        if plan.pairs < LEAST_PAIRS or plan.seconds <= 0:
            raise GateError(
                f"expected at least {LEAST_PAIRS} pairs and more than 0 seconds, "
                f"got {plan.pairs} and {plan.seconds:g}"
            )
        require_wrk()
        with _bench(plan, facts, tell) as bench:
            rows = bench.measure()
    except HeadError as error:
        return Outcome(facts, faults=error.args, strict=plan.strict)
    except (GateError, TreeError, PayloadError, WrkError) as error:
        return Outcome(facts, problem=str(error), strict=plan.strict)
    return Outcome(facts, rows, strict=plan.strict)


@contextmanager
def _bench(plan: Plan, facts: Facts, tell: Tell) -> Iterator[Bench]:
    """Check out and serve the commits, and pin the client to its core within the block."""
    form = usable_form([Model(plan.bundle)], "infer/raw")  # raw only if the model has one input
    asked = {samples: Expectations(plan.bundle, samples, form) for samples in (1, MANY)}
    service_cores, client_cores = cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-")))
        bundles = only_bundle(folder, plan.bundle)

        def served(name: str, ref: str) -> Server:
            tree: Tree = stack.enter_context(checked_out(plan.repository, ref, folder / name))
            side = "head" if name == "head" else "base"
            facts[side] = f"{ref} ({tree.commit})"
            tell(f"starting {name}: {ref} ({tree.commit})")
            with pinned(set(sorted(service_cores)[:1])):  # its processes inherit the affinity
                log_file = folder / f"{name}.log"
                url = stack.enter_context(serving(tree, bundles, log_file))
            return Server(side, url)

        base, again = served("base", plan.base), served("again", plan.base)
        head = served("head", plan.head)
        stack.enter_context(pinned(client_cores))
        yield Bench(plan, base, again, head, form, asked, folder, tell)


def _facts(plan: Plan) -> Facts:
    own = [min(found) for found in cores() if found]
    where = (
        "service on core {}, client on core {}".format(*own)
        if own
        else "service and client on any core"
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
