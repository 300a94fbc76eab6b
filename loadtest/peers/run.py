"""This service beside other servers of the same ONNX model: interleaved rounds of wrk.

Each peer runs in an environment of its own; one that cannot be installed or started is skipped with
its reason. All are up together, and each round asks each in turn, beginning with another one every
round. Before the clock every golden image's label must be right, one by one and many at once (which
warms up, too); at one number of connections the project's own client and locust, which verify every
answer, measure the same as wrk.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from loadtest.client.connections import Load, Target
from loadtest.client.forms import FormError, Request
from loadtest.client.loops import closed_loop
from loadtest.client.wrk import Measured, WrkError, by_wrk, require_wrk
from loadtest.errors import LoadTestError
from loadtest.machine import cores, pinned
from loadtest.peers.declared import PEERS, Peer, declared
from loadtest.peers.forms import FORMS, Form, Golden, ask, judge
from loadtest.peers.installed import SkippedError, environment, packages, running, told
from loadtest.peers.prepared import save
from loadtest.record import Tally
from loadtest.run import generate
from loadtest.scenarios import Profile, load_scenario
from loadtest.server import REPOSITORY, running_service

SERVICE = "this service"
ENVIRONMENTS = REPOSITORY / ".venv-peers"
CHECKED_AT = 8  # connections, or the nearest number of those that are measured
WARM_UP_S = 0.7
LOCUST_WARM_UP_S = 1.0
OURS = {  # its name, and the form, the processes and the settings in words
    SERVICE: ("open-inference-raw", 1, "adaptive batches of up to 64, one worker"),
    f"{SERVICE}, JSON head": ("open-inference", 1, "the same; asked as Triton is"),
    f"{SERVICE}, 2 workers": ("open-inference-raw", 2, "two workers"),
}


class PeersError(LoadTestError):
    """The comparison cannot be made; says what is missing or went wrong."""


class WrongAnswerError(RuntimeError):
    """A server answered wrongly before the clock; says which, and how."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        bundle: The folder of the bundle that all serve.
        connections: Numbers of open connections.
        rounds: Each asks every server once at every number of connections.
        seconds: A server's turn.
        words: Only peers whose names hold one of them; all without any.
        new_connections: wrk opens a connection for each request.
        split: The client on the last core and the servers on the others, where there are two.
        folder: Of the peers' files.
        environments: The folder of their environments.
    """

    bundle: Path = Path("artifacts/bundles/cnn")
    connections: tuple[int, ...] = (1, 8, 32, 128)
    rounds: int = 5
    seconds: int = 2
    words: tuple[str, ...] = ()
    new_connections: bool = False
    split: bool = False
    folder: Path = PEERS
    environments: Path = ENVIRONMENTS

    @property
    def checked_at(self) -> int:
        """The number of connections at which every answer is verified."""
        return min(self.connections, key=lambda count: abs(count - CHECKED_AT))


@dataclass
class Server:
    """One that was asked.

    Attributes:
        requests: For each golden image one.
        answer_bytes: Of a body.
        measured: By wrk, at each number of connections, in each round.
        rates: Right answers a second by the client that verifies, in each round.
        by_locust: What locust's users counted at the same number of connections, in each round.
        load: All that this client was answered.
        failed: Why it has no figures, or not all.
        packages: What its environment holds.
    """

    name: str
    settings: str
    form: Form
    url: str
    requests: list[Request]
    peer: Peer | None = None
    answer_bytes: int = 0
    measured: dict[int, list[Measured]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    by_locust: list[Tally] = field(default_factory=list)
    load: Load = field(default_factory=lambda: Load(0))
    failed: str = ""
    packages: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """What came of a plan.

    Attributes:
        servers: That ran; the first is the base of the ratios.
        skipped: The peers that did not, and why.
    """

    plan: Plan
    servers: list[Server]
    skipped: list[tuple[Peer, str]]

    @property
    def wrong(self) -> list[str]:
        """The wrong answers under load, in words."""
        return [
            f"{server.name}: {server.load.wrong} wrong answers under load, such as: {example}"
            for server in self.servers
            for example in server.load.examples[:1]
        ] + [
            f"{server.name}: wrong answers to locust, such as: {tally.wrong_examples[0].complaint}"
            for server in self.servers
            for tally in server.by_locust
            if tally.wrong_answers
        ]


def compare_peers(plan: Plan, say: Callable[[str], None]) -> Comparison:
    """Install, start, verify and measure all; stop them.

    Args:
        plan: What is measured.
        say: Told what is being done.

    Raises:
        PeersError: wrk or the bundle is not there, a plan that cannot be, or this service failed.
        PeerError: A peer's file is not right, or no peer is left.
        WrongAnswerError: A server answered wrongly before the clock.
        ServiceNotReadyError: This service did not start.
    """
    if not plan.connections or min(*plan.connections, plan.rounds, plan.seconds) < 1:
        raise PeersError("connections, rounds and seconds must be positive numbers")
    try:
        require_wrk()
        golden = Golden(plan.bundle)
    except (WrkError, FormError) as error:
        raise PeersError(str(error)) from error
    peers = declared(plan.folder, plan.words)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = Comparison(plan, [], [])
        for number, peer in enumerate(peers):
            say(f"{peer.name}: {', '.join(peer.requirements) or 'nothing to install'}")
            try:
                server = _started(stack, plan, golden, peer, scratch / f"peer-{number}")
            except SkippedError as reason:
                say(f"{peer.name} is skipped: {reason}")
                found.skipped.append((peer, str(reason)))
            else:
                _verify(server)
                found.servers.append(server)
        found.servers = [*_ours(stack, plan, golden, scratch), *found.servers]
        say(f"warming up {len(found.servers)} servers")
        for server in found.servers:
            _warm_up(server, plan)
        _measure(found, scratch, say)
    return found


def _started(stack: ExitStack, plan: Plan, golden: Golden, peer: Peer, scratch: Path) -> Server:
    """The peer, up for as long as the stack is."""
    form = FORMS[peer.form]
    requests = golden.requests(peer.name, form, peer.path)
    python = environment(peer, plan.environments)
    with _on_cores(plan, of_servers=True):  # its processes are born there
        url = stack.enter_context(running(peer, python, plan.bundle, scratch, requests[0]))
    server = Server(peer.name, peer.settings, form, url, requests, peer)
    server.packages = packages(python)
    return server


def _ours(stack: ExitStack, plan: Plan, golden: Golden, scratch: Path) -> Iterator[Server]:
    """This service with its defaults, in each of the ways that it is asked."""
    (scratch / "bundles").mkdir()
    (scratch / "bundles" / "model").symlink_to(plan.bundle.resolve())
    urls: dict[int, str] = {}
    for name, (form_name, workers, settings) in OURS.items():
        form = FORMS[form_name]
        requests = golden.requests(name, form, f"/v2/models/{golden.model}/infer")
        if workers not in urls:
            variables = {"INFERENCE_BUNDLES": str(scratch / "bundles"), "INFERENCE_DEVICE": "cpu"}
            variables |= {"INFERENCE_WORKERS": str(workers), "INFERENCE_VARIANT": "onnx"}
            log_file = scratch / f"service-{workers}.log"
            with _on_cores(plan, of_servers=True):
                started = running_service(log_file, settings=variables)
                urls[workers] = stack.enter_context(started)
        server = Server(name, settings, form, urls[workers], requests)
        _verify(server)
        yield server


def _verify(server: Server) -> None:
    """Every golden image, one after the other."""
    for request in server.requests:
        try:
            headers, body = ask(server.url, request)
        except (OSError, HTTPException) as error:
            said = error.read().decode(errors="replace") if isinstance(error, HTTPError) else ""
            raise WrongAnswerError(f"{server.name}, {request.name}: {error!r} {said}") from error
        complaint = judge(server.form, request)(headers, body)
        if complaint is not None:
            raise WrongAnswerError(f"{server.name}, {request.name}: {complaint}")
        server.answer_bytes = len(body)


def _warm_up(server: Server, plan: Plan) -> None:
    """Many golden images at once: the answers are verified, the time is not taken."""
    with _on_cores(plan, of_servers=False):
        try:
            load, _ = closed_loop(_targets(server), plan.checked_at, WARM_UP_S)
        except OSError as error:
            server.failed = f"while warming up: {error!r}"
            return
    if load.wrong:
        raise WrongAnswerError(f"{server.name}, under load: {load.examples[0]}")


def _targets(server: Server) -> list[Target]:
    return [Target(server.url, r.wire(), judge(server.form, r)) for r in server.requests]


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
    request = server.requests[0]
    if plan.new_connections:
        request = replace(request, headers=request.headers | {"connection": "close"})
    with _on_cores(plan, of_servers=False):
        try:
            measured = by_wrk(folder, server.url, request, count, plan.seconds)
        except WrkError as error:
            server.failed = f"{count} connections: {told(str(error).splitlines())}"
            return
        server.measured.setdefault(count, []).append(measured)
        if count != plan.checked_at:
            return
        try:
            load, answered = closed_loop(_targets(server), count, plan.seconds)
            tally = _by_locust(server, plan, count, folder)
        except (OSError, LoadTestError) as error:
            server.failed = f"{count} connections: {error!r}"
            return
        server.load.add(load)
        server.rates.append(answered / plan.seconds)
        server.by_locust.append(tally)


def _by_locust(server: Server, plan: Plan, count: int, folder: Path) -> Tally:
    """The same again by locust's users, each of whom waits for its answer."""
    file = folder / "prepared.json"
    save(file, server.form, server.requests)
    scenario = load_scenario("Concurrency", users=count)
    profile = Profile(name="peers", duration_s=plan.seconds, warmup_s=LOCUST_WARM_UP_S, runs=1)
    return generate(scenario, server.url, plan.bundle, profile, prepared=file)


@contextmanager
def _on_cores(plan: Plan, *, of_servers: bool) -> Iterator[None]:
    service_cores, client_cores = cores() if plan.split else (set[int](), set[int]())
    with pinned(service_cores if of_servers else client_cores):
        yield
