"""The commands of ``python -m loadtest``: their options, their output and their exit status."""

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

from loadtest.capacity.cli import add_capacity
from loadtest.chain import COLUMNS, chain_report, demonstrate
from loadtest.generator.arrivals import read_trace
from loadtest.generator.payloads import Model, usable_form
from loadtest.machine import cores, pinned
from loadtest.measure.result import Result
from loadtest.measure.run import (
    Thresholds,
    run_scenario,
    save_wrong_answers,
    summary,
)
from loadtest.measure.stats import Runs, repeated
from loadtest.measure.sweep import USERS, concurrency, sweep, with_capacity
from loadtest.peers import run as peers
from loadtest.peers.report import as_json
from loadtest.peers.report import markdown as peers_tables
from loadtest.regression import compare
from loadtest.regression.trees import PRESENT
from loadtest.report.formats import text_table
from loadtest.report.points import run_report, sweep_report
from loadtest.report.words import (
    run_verdict,
    sweep_table,
    sweep_verdict,
    to_junit,
    to_markdown,
    write_all,
)
from loadtest.scenarios import (
    ENDPOINTS,
    REQUEST_TIMEOUT_S,
    Profile,
    Scenario,
    ScenarioError,
    load_profile,
    load_scenario,
    price_per_hour,
    scenario_names,
)
from loadtest.server import only_bundle, running_service

KEPT, MISSED, INVALID = 0, 1, 3
TUTORIAL = "BentoML's tutorial"
# Options that override the scenario's field of the same name.
SCENARIO_OPTIONS = (
    *("users", "ramp_to_per_s", "speed", "samples_per_request", "endpoint", "slo_ms", "seed"),
    *("hang_up_share", "slow_clients", "new_connections"),
)
TRACE_MARGIN_S = 1.0
NEARLY_UNIFORM = 100.0  # shape of gamma-distributed gaps whose standard deviation is 10%
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_run(commands: Commands) -> None:
    """Declare ``run``, which measures one load point."""
    run = commands.add_parser("run", help="load a running service and verify every answer")
    run.set_defaults(command=_run)
    _add_point(run, scenario="Concurrency")
    run.add_argument(
        "--request-timeout",
        type=float,
        default=REQUEST_TIMEOUT_S,
        help="seconds until a missing answer counts as an error; default: %(default)s",
    )
    run.add_argument("--max-p99-ms", type=float, help="fail if p99 is higher")
    run.add_argument("--min-requests-per-s", type=float, help="fail if the rate is lower")
    run.add_argument(
        "--max-error-share",
        type=float,
        default=0.0,
        help="fail if the share of refused or lost requests is higher; default: %(default)s",
    )


def add_sweep(commands: Commands) -> None:
    """Declare ``sweep``, which measures many load points of one service."""
    search = commands.add_parser(
        "sweep",
        help="find the highest rate within the latency bound, or load with 1 to 256 users",
    )
    search.set_defaults(command=_sweep)
    _add_point(search, scenario="Server")


def add_overload(commands: Commands) -> None:
    """Declare ``overload``, which starts a service and runs the scenario of that name."""
    overload = commands.add_parser(
        "overload", help="start the service and load it at multiples of its own capacity"
    )
    overload.set_defaults(command=_overload)
    overload.add_argument("--bundle", type=Path, default=Path("artifacts/bundles/cnn"))
    overload.add_argument(
        "--settings",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="environment variables of the service",
    )
    overload.add_argument(
        "--images", "--samples", type=int, default=64, help="samples in each request"
    )
    overload.add_argument("--factors", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    overload.add_argument("--arrivals", choices=["poisson", "uniform"], default="poisson")
    overload.add_argument("--rounds", type=int, default=3)
    overload.add_argument("--seconds", type=float, default=2.0, help="seconds of each run")
    overload.add_argument("--out", type=Path, default=Path("artifacts/loadtest"))


def add_demo(commands: Commands) -> None:
    """Declare ``demo``, the last step of the whole chain."""
    demo = commands.add_parser(
        "demo", help="serve every bundle, classify an image, load-test it, and write a report"
    )
    demo.set_defaults(command=_demo)
    demo.add_argument("--bundles", type=Path, default=Path("artifacts/bundles"))
    demo.add_argument("--checkpoints", type=Path, default=Path("artifacts/checkpoints"))
    demo.add_argument("--out", type=Path, default=Path("artifacts/report"))
    demo.add_argument("--image", type=Path, default=Path("tests/service/digit.png"))
    demo.add_argument("--duration", type=float, default=8, help="seconds per scenario and model")


def add_peers(commands: Commands) -> None:
    """Declare ``peers``, which compares this service with other servers of the same model."""
    plan = peers.Plan()
    parser = commands.add_parser(
        "peers",
        help="compare this service with other servers of the same model",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(command=_peers)
    _add_rounds(parser, rounds=plan.rounds, seconds=plan.seconds)
    parser.add_argument(
        "--new-connections", action="store_true", help="open a new connection for each request"
    )
    parser.add_argument(
        "--cores",
        choices=["shared", "split"],
        default="shared",
        help="split: the client on the last core, the servers on the others (with two or more)",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        default=[],
        metavar="WORD",
        help="only peers whose names contain one of these words",
    )
    parser.add_argument(
        "--base", default=plan.base, help="the server (part of its name) that ratios refer to"
    )
    parser.add_argument(
        "--all-forms",
        action="store_true",
        help="measure every form of request to this service, and ONNX Runtime without a server",
    )
    parser.add_argument(
        "--folder", type=Path, default=plan.folder, help="folder of the peers' files"
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=plan.environments,
        help="folder of the peers' environments; missing ones are created",
    )
    parser.add_argument(
        "--here", action="store_true", help="run the peers with the packages installed here"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("artifacts/peers"),
        help="folder for peers.md and peers.json",
    )


def add_yardstick(commands: Commands) -> None:
    """Declare ``yardstick``: ``peers`` with BentoML's tutorial and every form of request."""
    parser = commands.add_parser(
        "yardstick", help="compare every form of request to this service with BentoML's tutorial"
    )
    parser.set_defaults(command=_yardstick)
    _add_rounds(parser, rounds=3, seconds=3)
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[1],
        help="numbers of worker processes; a separate service is started for each",
    )
    parser.add_argument(
        "--forms",
        nargs="+",
        default=[],
        metavar="WORD",
        help="only forms whose names contain one of these words",
    )


def add_compare(commands: Commands) -> None:
    """Declare ``compare``, which compares two commits of the service."""
    parser = commands.add_parser(
        "compare", help="test whether a commit is slower than another, by paired ratios"
    )
    parser.set_defaults(command=_compare)
    plan = compare.Plan("", "")
    present = f"{PRESENT[0]} or {PRESENT[1]!r} for the current files"
    parser.add_argument("--base", required=True, metavar="REF", help="commit to compare with")
    parser.add_argument(
        "--head", required=True, metavar="REF", help=f"commit that may be slower; {present}"
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        default=plan.bundle,
        help="bundle that both serve; default: %(default)s",
    )
    parser.add_argument(
        "--repository",
        type=Path,
        default=plan.repository,
        help="repository of the commits; default: this one",
    )
    parser.add_argument(
        "--pairs", type=int, default=plan.pairs, help="number of pairs; default: %(default)s"
    )
    parser.add_argument(
        "--seconds", type=float, default=plan.seconds, help="seconds of each side in a pair"
    )
    parser.add_argument(
        "--seed", type=int, default=plan.seed, help="seed of the order, arrivals and bootstrap"
    )
    parser.add_argument("--strict", action="store_true", help="exit with status 3 for a regression")
    parser.add_argument(
        "--out", type=Path, help="folder for compare.json, compare.xml (JUnit) and compare.md"
    )


def _add_rounds(parser: argparse.ArgumentParser, *, rounds: int, seconds: int) -> None:
    plan = peers.Plan()
    parser.add_argument(
        "--bundle", type=Path, default=plan.bundle, help="bundle that all servers serve"
    )
    parser.add_argument(
        "--connections",
        type=int,
        nargs="+",
        default=list(plan.connections),
        metavar="NUMBER",
        help="numbers of open connections",
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="number of interleaved rounds")
    parser.add_argument(
        "--seconds", type=int, default=seconds, help="seconds of each server in a round"
    )


def _run(arguments: argparse.Namespace) -> int:
    scenario, profile = _point(arguments)
    thresholds = Thresholds(
        max_p99_ms=arguments.max_p99_ms,
        min_requests_per_s=arguments.min_requests_per_s,
        max_error_share=arguments.max_error_share,
    )
    timeout_s = arguments.request_timeout
    if arguments.rate is None and not scenario.trace:
        scenario = with_capacity(scenario, arguments.url, arguments.bundle, arguments.processes)
    found = repeated(
        scenario, profile.runs, lambda one: _measured(arguments, one, profile, timeout_s)
    )
    stem = arguments.out / f"{scenario.name}-{found.runs[0].model}"
    wrong = [result for result in found.runs if result.wrong_answers]
    if wrong:
        save_wrong_answers(
            wrong, scenario, arguments.bundle, stem.with_name(f"{stem.name}-wrong.json")
        )
    return _written(found, stem, thresholds, accept_invalid=arguments.accept_invalid)


def _sweep(arguments: argparse.Namespace) -> int:
    scenario, profile = _point(arguments)
    if scenario.trace is not None:
        raise ScenarioError(
            "sweep chooses its own rates and cannot replay a trace; use the command run"
        )
    if scenario.loop == "closed":
        return _users(arguments, scenario, profile)
    found = sweep(
        scenario,
        arguments.url,
        arguments.bundle,
        profile,
        processes=arguments.processes,
        price_per_hour=arguments.price_per_hour,
        tell=_tell,
    )
    # Rates above the capacity overload the service by design: only wrong answers are a failure.
    report = write_all(
        arguments.out / f"sweep-{found.points[0].model}-{scenario.name}",
        json=found.model_dump_json(indent=2) + "\n",
        html=sweep_report(found),
        markdown=to_markdown(found.points, sweep_verdict(found)[0]),
        junit=to_junit(found.points, [[] for _ in found.points]),
    )
    print(sweep_table(found))
    print(f"report: {report}")
    if any(result.wrong_answers for result in found.points):
        return MISSED
    return INVALID if found.capacity is None and not arguments.accept_invalid else KEPT


def _users(arguments: argparse.Namespace, scenario: Scenario, profile: Profile) -> int:
    """Measure a closed loop with an increasing number of users."""

    def measure(users: int) -> Result:
        return _measured(arguments, scenario.model_copy(update={"users": users}), profile)

    found = Runs(runs=concurrency(USERS, measure), over_runs={})
    # With many users, refused requests are expected.
    stem = arguments.out / f"sweep-{found.runs[0].model}-{scenario.name}"
    thresholds = Thresholds(max_error_share=1.0)
    return _written(found, stem, thresholds, accept_invalid=arguments.accept_invalid)


def _measured(
    arguments: argparse.Namespace,
    scenario: Scenario,
    profile: Profile,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> Result:
    """Measure one point and print its summary."""
    found = run_scenario(
        scenario,
        arguments.url,
        arguments.bundle,
        profile,
        request_timeout_s=timeout_s,
        processes=arguments.processes,
        price_per_hour=arguments.price_per_hour,
    )
    print(summary(found), flush=True)
    return found


def _written(found: Runs, stem: Path, thresholds: Thresholds, *, accept_invalid: bool) -> int:
    """Write the report of one or several points and return the exit status."""
    each = [thresholds.missed(result) for result in found.runs]
    missed = [failure for failures in each for failure in failures]
    together = found.sentence()
    words = "; ".join(filter(None, [run_verdict(found.runs, missed)[0], together]))
    report = write_all(
        stem,
        json=found.model_dump_json(indent=2) + "\n",
        html=run_report(found.runs, missed, together),
        markdown=to_markdown(found.runs, words),
        junit=to_junit(found.runs, each),
    )
    for line in filter(None, [together, f"report: {report}"]):
        print(line)
    for failure in missed:
        _tell(f"FAILED: {failure}")
    if any(result.wrong_answers for result in found.runs):
        return MISSED
    valid = any(result.verdict.valid for result in found.runs)
    if not valid and not accept_invalid:
        return INVALID  # without a valid point the thresholds cannot be checked
    return MISSED if missed else KEPT


def _overload(arguments: argparse.Namespace) -> int:
    """Start a service and load it at multiples of its own capacity."""
    if not all("=" in text for text in arguments.settings):
        raise ScenarioError(f"--settings: expected NAME=VALUE, got {arguments.settings}")
    if min(arguments.factors, default=0) <= 0:
        raise ScenarioError(f"--factors: expected positive numbers, got {arguments.factors}")
    bundle = arguments.bundle
    Model(bundle)  # fails before the service is started if the bundle cannot be read
    service_cores, client_cores = cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = {"INFERENCE_BUNDLES": str(only_bundle(folder, bundle))}
        settings |= dict(text.split("=", 1) for text in arguments.settings)
        with pinned(service_cores):  # the service's processes inherit the affinity
            url = stack.enter_context(running_service(folder / "log", settings=settings))
        with pinned(client_cores):
            found = [_at(arguments, url, factor) for factor in sorted(arguments.factors)]
    thresholds = Thresholds(max_error_share=1.0)
    runs = Runs(runs=[one for many in found for one in many.runs], over_runs={})
    stem = arguments.out / f"overload-{runs.runs[0].model}"
    return _written(runs, stem, thresholds, accept_invalid=True)


def _at(arguments: argparse.Namespace, url: str, factor: float) -> Runs:
    """Run the rounds of one share; the capacity is measured anew before each round."""
    shape = 1.0 if arguments.arrivals == "poisson" else NEARLY_UNIFORM
    changes = {"samples_per_request": arguments.images, "shape": shape, "of_capacity": factor}
    base = load_scenario("Overload", **changes, overload=factor > 1)
    bundles = [arguments.bundle]
    endpoint = usable_form([Model(arguments.bundle)], base.endpoint)
    base = base.model_copy(update={"endpoint": endpoint})
    profile = load_profile("smoke", duration_s=arguments.seconds, warmup_s=0.5)

    def measure(scenario: Scenario) -> Result:
        found = run_scenario(with_capacity(scenario, url, bundles), url, bundles, profile)
        print(f"{factor:g} x the capacity: {summary(found)}", flush=True)
        return found

    return repeated(base, arguments.rounds, measure)


def _peers(arguments: argparse.Namespace) -> int:
    return _beside(
        arguments,
        arguments.out,
        words=tuple(arguments.peers),
        own=peers.forms_of((1, 2)) if arguments.all_forms else peers.OWN,
        base=arguments.base,
        with_runtime=arguments.all_forms,
        new_connections=arguments.new_connections,
        split=arguments.cores == "split",
        folder=arguments.folder,
        environments=None if arguments.here else arguments.environments,
    )


def _yardstick(arguments: argparse.Namespace) -> int:
    own = peers.forms_of(tuple(arguments.workers))
    words = [word.lower() for word in arguments.forms]
    return _beside(
        arguments,
        Path("artifacts/yardstick"),
        words=(TUTORIAL,),
        own=tuple(r for r in own if not words or any(word in r.name.lower() for word in words)),
        base=TUTORIAL,
        with_runtime=True,
        environments=None,
    )


def _beside(arguments: argparse.Namespace, out: Path, **plan: Any) -> int:
    """Measure this service and peers, and write the tables; return 1 after a wrong answer."""
    given = {name: getattr(arguments, name) for name in ("bundle", "rounds", "seconds")}
    made = peers.Plan(**given, **plan, connections=tuple(arguments.connections))
    try:
        found = peers.compare_peers(made, lambda words: _tell(f"... {words}"))
    except peers.WrongAnswerError as error:
        _tell(f"FAILED: {error}")
        return MISSED
    record = as_json(found)
    text = peers_tables(found, record)
    print(text, end="")
    out.mkdir(parents=True, exist_ok=True)
    (out / "peers.md").write_text(text)
    (out / "peers.json").write_text(json.dumps(record, indent=2) + "\n")
    for wrong in found.wrong:
        _tell(f"FAILED: {wrong}")
    return MISSED if found.wrong else KEPT


def _compare(arguments: argparse.Namespace) -> int:
    given = {name: getattr(arguments, name) for name in compare.Plan.__dataclass_fields__}
    outcome = compare.compared(compare.Plan(**given), _tell)
    print(outcome.markdown())
    if arguments.out is not None:
        outcome.write(arguments.out)
    return outcome.status


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _demo(arguments: argparse.Namespace) -> int:
    stories = demonstrate(
        arguments.bundles,
        arguments.checkpoints,
        arguments.out,
        arguments.image,
        arguments.duration,
    )
    report = arguments.out / "index.html"
    report.write_text(chain_report(stories))
    print("\n" + text_table(COLUMNS, [story.cells() for story in stories]))
    print(f"\nreport: {report.resolve()}")
    missed = [f for story in stories for r in story.results for f in Thresholds().missed(r)]
    for failure in missed:
        _tell(f"FAILED: {failure}")
    return MISSED if missed else KEPT


def _point(arguments: argparse.Namespace) -> tuple[Scenario, Profile]:
    """The scenario and the profile that the arguments describe.

    Raises:
        ScenarioError: A name is unknown or a value is unusable.
    """
    duration_s, warmup_s, rate = arguments.duration, arguments.warmup, arguments.rate
    if arguments.trace is not None:
        events = read_trace(arguments.trace)
        # The margin keeps the last request in the window; without a warm-up, none is left out.
        whole_s = events[-1].at_s / arguments.speed + TRACE_MARGIN_S
        rate, warmup_s = len(events) / whole_s, 0.0
        duration_s = whole_s if duration_s is None else min(duration_s, whole_s)
    given = {name: getattr(arguments, name) for name in SCENARIO_OPTIONS}
    trace = None if arguments.trace is None else str(arguments.trace.resolve())
    scenario = load_scenario(arguments.scenario, **given, rate_per_s=rate, trace=trace)
    profile = load_profile(
        arguments.profile, duration_s=duration_s, warmup_s=warmup_s, runs=arguments.runs
    )
    models = [Model(bundle) for bundle in arguments.bundle]
    if arguments.endpoint is None:
        usable = usable_form(models, scenario.endpoint)
        if usable != scenario.endpoint:
            print(f"these models do not accept {scenario.endpoint}; using {usable}", flush=True)
            scenario = scenario.model_copy(update={"endpoint": usable})
    return scenario, profile


def _add_point(parser: argparse.ArgumentParser, scenario: str) -> None:
    """Add the options of a load point, which override values of the scenario and the profile."""
    parser.add_argument(
        "--scenario", choices=scenario_names(), default=scenario, help="default: %(default)s"
    )
    parser.add_argument("--url", default="http://localhost:3000", help="default: %(default)s")
    parser.add_argument(
        "--bundle",
        type=Path,
        nargs="+",
        default=[Path("artifacts/bundles/cnn")],
        help="bundles of the models to load, in turn; default: artifacts/bundles/cnn",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("artifacts/loadtest"),
        help="folder for the reports (.json, .html, .md and JUnit .xml); default: %(default)s",
    )
    parser.add_argument(
        "--profile", default="smoke", help="durations and number of runs; default: %(default)s"
    )
    parser.add_argument("--duration", type=float, help="measured seconds; default: the profile's")
    parser.add_argument("--warmup", type=float, help="warm-up seconds; default: the profile's")
    _add_load(parser)
    # The old name is accepted for one more release.
    parser.add_argument("--samples-per-request", "--images-per-request", type=int)
    parser.add_argument("--endpoint", choices=ENDPOINTS)
    parser.add_argument("--slo-ms", type=float, help="latency bound for 99%% of the requests")
    parser.add_argument("--seed", type=int, help="seed of an open loop's arrival times")
    parser.add_argument(
        "--price-per-hour",
        type=float,
        default=price_per_hour(),
        help="price of the serving machine, for the cost per million samples; default: %(default)s",
    )
    parser.add_argument("--runs", type=int, help="runs of each point; default: the profile's")
    parser.add_argument(
        "--accept-invalid",
        action="store_true",
        help="do not fail if all points are INVALID; wrong answers still fail",
    )
    parser.add_argument("--processes", type=int, default=1, help="number of generator processes")


def _add_load(parser: argparse.ArgumentParser) -> None:
    """Add the options that say when requests are sent, and by which clients."""
    parser.add_argument("--users", type=int, help="number of users of a closed loop")
    parser.add_argument("--rate", type=float, help="requests/s of an open loop")
    parser.add_argument(
        "--ramp-to",
        type=float,
        dest="ramp_to_per_s",
        metavar="RATE",
        help="requests/s at the end of an open loop whose rate rises linearly",
    )
    parser.add_argument(
        "--trace",
        type=Path,
        help="requests to replay: CSV or JSON lines of time, model, samples, or an access log",
    )
    parser.add_argument(
        "--speed", type=float, default=1.0, help="how many times faster a trace is replayed"
    )
    parser.add_argument(
        "--hang-up-share", type=float, help="share of clients that disconnect early, 0 to 1"
    )
    parser.add_argument(
        "--slow-clients", type=int, help="number of further clients that send byte by byte"
    )
    parser.add_argument(
        "--new-connections",
        action="store_const",
        const=True,
        help="open a new connection for each request",
    )


COMMANDS = (
    *(add_run, add_sweep, add_overload, add_peers),
    *(add_yardstick, add_compare, add_capacity, add_demo),
)
