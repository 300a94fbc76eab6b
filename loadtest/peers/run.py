"""Compares this service with other servers of the same ONNX model, in interleaved rounds of wrk.

Each peer runs in its own environment; one that cannot be installed or started is skipped, with the
reason. All servers run at the same time. Each round measures them in turn, starting with a
different one, so that a busy machine slows all of them. Before the measurement, the answer to every
golden sample must be right. At one number of connections locust repeats wrk's measurement and
verifies every answer.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from loadtest.errors import LoadTestError
from loadtest.generator.expectations import Expectations
from loadtest.generator.payloads import Form, Model
from loadtest.generator.recorder import Tally
from loadtest.generator.wrk import Measured, alone, by_wrk, require_wrk
from loadtest.machine import cores, pinned
from loadtest.measure.run import generate
from loadtest.peers.peer import (
    PEERS,
    Peer,
    SkippedError,
    ask,
    declared,
    environment,
    packages,
    running,
    told,
)
from loadtest.scenarios import Profile, load_scenario
from loadtest.server import REPOSITORY, only_bundle, running_service

SERVICE = "this service"
RUNTIME = "ONNX Runtime alone"
ENVIRONMENTS = REPOSITORY / ".venv-peers"
CHECKED_AT = 8  # connections, or the nearest of the measured numbers
LOCUST_WARM_UP_S = 1.0
MANY = 64  # samples of the larger requests
QUEUE_SAMPLES = 16_384  # so that 128 requests of 64 samples each are not refused


class PeersError(LoadTestError):
    """The comparison is impossible; the message says what is missing or what went wrong."""


class WrongAnswerError(RuntimeError):
    """A server answered wrongly before the measurement; the message says which, and how."""


@dataclass(frozen=True)
class Own:
    """A form of request and a setup in which this service is measured, otherwise with defaults.

    Attributes:
        form: Format of the requests; the row is left out if the model does not accept it.
        rooms: Maximum number of samples in the queue; None: the default.
    """

    name: str
    form: Form
    settings: str
    samples: int = 1
    workers: int = 1
    rooms: int | None = None


BARE = Own(SERVICE, "infer/raw", "adaptive batches of up to 64, one worker")
HEADED = Own(f"{SERVICE}, JSON head", "infer/binary", "the same; requests as for Triton")
OWN = (BARE, HEADED, Own(f"{SERVICE}, 2 workers", "infer/raw", "two workers", workers=2))
FORMS = (
    Own(f"{SERVICE}, JSON", "predict", "the same; JSON"),
    Own(f"{SERVICE}, PNG upload", "predict/image", "the same; a PNG file"),
    Own(f"{SERVICE}, PNG upload in a form", "predict/form", "the same; as a browser sends it"),
)


def forms_of(workers: tuple[int, ...]) -> tuple[Own, ...]:
    """Every form of request to this service, and the setups with these numbers of workers."""
    rows = [BARE, HEADED, *FORMS]
    rows += [
        Own(f"{SERVICE}, {count} workers", "infer/raw", f"{count} workers", workers=count)
        for count in workers
        if count > 1
    ]
    for count in workers:
        name = f"{SERVICE}, {MANY} samples" + (f", {count} workers" if count > 1 else "")
        rows.append(Own(name, "infer/raw", "a longer queue", MANY, count, QUEUE_SAMPLES))
    return tuple(rows)


@dataclass(frozen=True)
class Plan:
    """The measurements to take.

    Attributes:
        bundle: The folder of the bundle that all servers serve.
        connections: Numbers of open connections to measure at.
        rounds: Number of rounds at each number of connections; a round measures each server once.
        seconds: Duration of a server's turn.
        words: Keep only peers whose names contain one of these words; empty: all.
        own: The setups in which this service is measured.
        base: Part of the name of the base server of the ratios, for each number of samples.
        with_runtime: Whether ONNX Runtime without a server is measured too.
        new_connections: Whether wrk opens a new connection for each request.
        split: Whether the client gets the last core and the servers the others, if there are two.
        folder: The folder of the peers' files.
        environments: The folder of their environments; None: the packages installed here.
    """

    bundle: Path = Path("artifacts/bundles/cnn")
    connections: tuple[int, ...] = (1, 8, 32, 128)
    rounds: int = 5
    seconds: int = 2
    words: tuple[str, ...] = ()
    own: tuple[Own, ...] = OWN
    base: str = SERVICE
    with_runtime: bool = False
    new_connections: bool = False
    split: bool = False
    folder: Path = PEERS
    environments: Path | None = ENVIRONMENTS

    @property
    def checked_at(self) -> int:
        """The number of connections at which every answer is verified."""
        return min(self.connections, key=lambda count: abs(count - CHECKED_AT))

    def peers(self) -> list[Peer]:
        """The peers whose requests have as many samples as one of this service's setups."""
        sizes = {own.samples for own in self.own}
        return [peer for peer in declared(self.folder, self.words) if peer.samples in sizes]


@dataclass
class Server:
    """A measured server and its figures.

    Attributes:
        expectations: Its requests and the judge of their answers; None for the runtime alone.
        path: URL path of a peer's requests; None for this service.
        answer_bytes: Size of an answer's body.
        measured: wrk's figures for each round, by number of connections.
        by_locust: Locust's counts for each round, at the checked number of connections.
        failed: Why some or all figures are missing; empty if none are.
        packages: Packages of its environment.
    """

    name: str
    settings: str
    form: str
    url: str
    samples: int = 1
    expectations: Expectations | None = None
    path: str | None = None
    peer: Peer | None = None
    answer_bytes: int = 0
    measured: dict[int, list[Measured]] = field(default_factory=dict)
    by_locust: list[Tally] = field(default_factory=list)
    failed: str = ""
    packages: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """The outcome of a plan.

    Attributes:
        servers: The servers that ran.
        skipped: The peers that did not run, each with the reason.
    """

    plan: Plan
    servers: list[Server]
    skipped: list[tuple[Peer, str]]

    def base(self, server: Server) -> Server:
        """The base server of this server's ratios."""
        same = [other for other in self.servers if other.samples == server.samples]
        return next((other for other in same if self.plan.base in other.name), same[0])

    @property
    def wrong(self) -> list[str]:
        """The wrong answers under load, as text."""
        return [
            f"{server.name}: {tally.wrong_answers} wrong answers under load, for example: "
            f"{tally.wrong_examples[0].complaint}"
            for server in self.servers
            for tally in server.by_locust
            if tally.wrong_answers
        ]


def compare_peers(plan: Plan, say: Callable[[str], None]) -> Comparison:
    """Install, start, verify, measure and stop all servers; ``say`` receives progress messages.

    Raises:
        PeersError: The plan is invalid, or the first server of this service failed.
        WrkError: wrk is not installed.
        PayloadError: The bundle cannot be read.
        PeerError: A peer's file is invalid, or no peer is left.
        WrongAnswerError: A server answered wrongly before the measurement.
        ServiceNotReadyError: This service did not start.
    """
    if not plan.connections or min(*plan.connections, plan.rounds, plan.seconds) < 1:
        raise PeersError("connections, rounds and seconds must be positive numbers")
    require_wrk()
    model = Model(plan.bundle)
    peers = plan.peers()
    found = Comparison(plan, [], [])
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = []
        for number, peer in enumerate(peers):
            say(f"{peer.name}: {', '.join(peer.requirements) or 'nothing to install'}")
            try:
                servers.append(_started(stack, plan, model, peer, scratch / f"peer-{number}"))
            except SkippedError as reason:
                say(f"{peer.name} is skipped: {reason}")
                found.skipped.append((peer, str(reason)))
        found.servers = [*_ours(stack, plan, model, scratch), *servers]
        for server in found.servers:
            _verify(server)
        if plan.with_runtime:
            found.servers.append(Server(RUNTIME, "one thread", "none", "", MANY))
        _measure(found, scratch, say)
    return found


def _started(stack: ExitStack, plan: Plan, model: Model, peer: Peer, scratch: Path) -> Server:
    """Start a peer, which runs until the stack is closed."""
    if not model.takes(peer.form):
        raise SkippedError(
            f"its form {peer.form} needs one input and one output; the model has "
            f"{len(model.inputs)} and {len(model.asked)}"
        )
    expectations = Expectations(plan.bundle, peer.samples, peer.form, peer.path)
    python = Path(sys.executable)
    if plan.environments is not None:
        python = environment(peer, plan.environments)
    with _on_cores(plan, of_servers=True):  # the peer's processes inherit the affinity
        first = expectations.requests[0]
        url = stack.enter_context(running(peer, python, plan.bundle, scratch, first))
    server = Server(peer.name, peer.settings, peer.form, url, peer.samples, expectations)
    server.peer, server.path, server.packages = peer, peer.path, packages(python)
    return server


def _ours(stack: ExitStack, plan: Plan, model: Model, scratch: Path) -> Iterator[Server]:
    """Start this service in each setup of the plan, and yield one server per form of request."""
    bundles = only_bundle(scratch, plan.bundle)
    urls: dict[tuple[int, int | None], str] = {}
    own = [row for row in plan.own if model.takes(row.form)]
    for row in own or [replace(HEADED, name=SERVICE)]:  # the raw form needs a single input
        key = (row.workers, row.rooms)
        if key not in urls:
            variables = {"INFERENCE_BUNDLES": str(bundles), "INFERENCE_DEVICE": "cpu"}
            variables |= {"INFERENCE_WORKERS": str(row.workers), "INFERENCE_VARIANT": "onnx"}
            if row.rooms is not None:
                variables["INFERENCE_MAX_QUEUE_SAMPLES"] = str(row.rooms)
            with _on_cores(plan, of_servers=True):
                started = running_service(scratch / f"service-{len(urls)}.log", settings=variables)
                urls[key] = stack.enter_context(started)
        expectations = Expectations(plan.bundle, row.samples, row.form)
        yield Server(row.name, row.settings, row.form, urls[key], row.samples, expectations)


def _verify(server: Server) -> None:
    """Raise WrongAnswerError unless the server answers every golden sample rightly."""
    if server.expectations is None:
        return
    for number, request in enumerate(server.expectations.requests):
        try:
            headers, body = ask(server.url, request)
        except (OSError, HTTPException) as error:
            said = error.read().decode(errors="replace") if isinstance(error, HTTPError) else ""
            raise WrongAnswerError(f"{server.name}, sample {number}: {error!r} {said}") from error
        complaint = server.expectations.complaint(request, body, headers)
        if complaint is not None:
            raise WrongAnswerError(f"{server.name}, sample {number}: {complaint}")
        server.answer_bytes = len(body)


def _measure(found: Comparison, folder: Path, say: Callable[[str], None]) -> None:
    plan, servers = found.plan, found.servers
    for count in plan.connections:
        for number in range(plan.rounds):
            say(f"{count} connections, round {number + 1} of {plan.rounds}")
            start = number % len(servers)
            for server in servers[start:] + servers[:start]:
                if not server.failed:
                    _turn(server, plan, count, folder)
        if servers[0].failed:
            raise PeersError(f"{servers[0].name}: {servers[0].failed}")


def _turn(server: Server, plan: Plan, count: int, folder: Path) -> None:
    try:
        with _on_cores(plan, of_servers=False):
            measured = _by_wrk(server, plan, count, folder)
            server.measured.setdefault(count, []).append(measured)
            if count == plan.checked_at and server.expectations is not None:
                server.by_locust.append(_by_locust(server, plan, count))
    except (OSError, LoadTestError) as error:
        server.failed = f"{count} connections: {told(str(error).splitlines())}"


def _by_wrk(server: Server, plan: Plan, count: int, folder: Path) -> Measured:
    if server.expectations is None:
        return alone(plan.bundle, server.samples, plan.seconds)
    request = server.expectations.requests[0]
    if plan.new_connections:
        request = replace(request, headers=request.headers | {"connection": "close"})
    return by_wrk(folder, server.url, request, count, plan.seconds)


def _by_locust(server: Server, plan: Plan, count: int) -> Tally:
    """Measure the server with locust in a closed loop, which verifies every answer."""
    changes = {"users": count, "samples_per_request": server.samples}
    scenario = load_scenario("Concurrency", **changes, new_connections=plan.new_connections)
    profile = Profile(name="peers", duration_s=plan.seconds, warmup_s=LOCUST_WARM_UP_S, runs=1)
    peer = (server.form, server.path or "")
    return generate(scenario, server.url, [plan.bundle], profile, peer=peer)


@contextmanager
def _on_cores(plan: Plan, *, of_servers: bool) -> Iterator[None]:
    service_cores, client_cores = cores() if plan.split else (set[int](), set[int]())
    with pinned(service_cores if of_servers else client_cores):
        yield
