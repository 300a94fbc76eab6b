"""The commands that measure load points: ``run``, ``sweep``, ``overload`` and ``demo``."""

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

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
from loadtest.measure.sweep import USERS, closed_loop_rate, concurrency, sweep
from loadtest.report.formats import to_junit, to_markdown, write_all
from loadtest.report.points import run_report, sweep_report
from loadtest.report.tables import text_table
from loadtest.report.words import run_verdict, sweep_verdict
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
from loadtest.server import running_service

KEPT, MISSED, INVALID = 0, 1, 3
LEAST_RATE = 1.0  # requests/s
TRACE_MARGIN_S = 1.0
NEARLY_UNIFORM = 100.0  # the shape of gamma distributed gaps that scatter by a tenth
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_run(commands: Commands) -> None:
    """Declare ``run``: one load point."""
    run = commands.add_parser("run", help="load a running service and verify every answer")
    run.set_defaults(command=_run)
    _add_point(run, scenario="Concurrency")
    run.add_argument(
        "--request-timeout",
        type=float,
        default=REQUEST_TIMEOUT_S,
        help="seconds until a missing answer is an error; default: %(default)s",
    )
    run.add_argument("--max-p99-ms", type=float, help="fail above this")
    run.add_argument("--min-requests-per-s", type=float, help="fail below this")
    run.add_argument(
        "--max-error-share", type=float, default=0.0, help="refused or lost requests; default: 0"
    )


def add_sweep(commands: Commands) -> None:
    """Declare ``sweep``: many points of one service."""
    search = commands.add_parser(
        "sweep",
        help="the highest rate under the bound and the way to it; of a closed loop, 1 to 256 users",
    )
    search.set_defaults(command=_sweep)
    _add_point(search, scenario="Server")


def add_overload(commands: Commands) -> None:
    """Declare ``overload``: the scenario of that name, of a service that is started for it."""
    overload = commands.add_parser(
        "overload", help="start the service and offer it shares of its own capacity"
    )
    overload.set_defaults(command=_overload)
    overload.add_argument("--bundle", type=Path, default=Path("artifacts/bundles/cnn"))
    overload.add_argument(
        "--settings", nargs="+", default=[], metavar="NAME=VALUE", help="of the service"
    )
    overload.add_argument("--images", "--samples", type=int, default=64, help="in a request")
    overload.add_argument("--factors", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    overload.add_argument("--arrivals", choices=["poisson", "uniform"], default="poisson")
    overload.add_argument("--rounds", type=int, default=3)
    overload.add_argument("--seconds", type=float, default=2.0, help="of a share")
    overload.add_argument("--out", type=Path, default=Path("artifacts/loadtest"))


def add_demo(commands: Commands) -> None:
    """Declare ``demo``: the whole chain's last step."""
    demo = commands.add_parser("demo", help="serve every bundle, ask it, load it, report all")
    demo.set_defaults(command=_demo)
    demo.add_argument("--bundles", type=Path, default=Path("artifacts/bundles"))
    demo.add_argument("--checkpoints", type=Path, default=Path("artifacts/checkpoints"))
    demo.add_argument("--out", type=Path, default=Path("artifacts/report"))
    demo.add_argument("--image", type=Path, default=Path("tests/service/digit.png"))
    demo.add_argument("--duration", type=float, default=8, help="seconds a scenario and model")


def _run(arguments: argparse.Namespace) -> int:
    scenario, profile = _point(arguments)
    thresholds = Thresholds(
        max_p99_ms=arguments.max_p99_ms,
        min_requests_per_s=arguments.min_requests_per_s,
        max_error_share=arguments.max_error_share,
    )
    timeout_s = arguments.request_timeout
    if scenario.of_capacity is not None and arguments.rate is None and not scenario.trace:
        rate = scenario.of_capacity * closed_loop_rate(
            scenario, arguments.url, arguments.bundle, arguments.processes
        )
        scenario = scenario.model_copy(update={"rate_per_s": max(rate, LEAST_RATE)})
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
        raise ScenarioError("a trace has its own rates, and sweep offers others; take run")
    if scenario.loop == "closed":
        return _users(arguments, scenario, profile)
    found = sweep(
        scenario,
        arguments.url,
        arguments.bundle,
        profile,
        processes=arguments.processes,
        price_per_hour=arguments.price_per_hour,
        tell=lambda words: print(words, file=sys.stderr),
    )
    # A rate above the capacity is too much by design: wrong answers alone are a fault here.
    report = write_all(
        arguments.out / f"sweep-{found.points[0].model}-{scenario.name}",
        json=found.model_dump_json(indent=2) + "\n",
        html=sweep_report(found),
        markdown=to_markdown(found.points, sweep_verdict(found)[0]),
        junit=to_junit(found.points, [[] for _ in found.points]),
    )
    print(found.table())
    print(f"report: {report}")
    if any(result.wrong_answers for result in found.points):
        return MISSED
    return INVALID if found.capacity is None and not arguments.accept_invalid else KEPT


def _users(arguments: argparse.Namespace, scenario: Scenario, profile: Profile) -> int:
    """The sweep of a closed loop: ever more users."""

    def measure(users: int) -> Result:
        return _measured(arguments, scenario.model_copy(update={"users": users}), profile)

    found = Runs(runs=concurrency(USERS, measure), over_runs={})
    # Many users may be refused by design.
    stem = arguments.out / f"sweep-{found.runs[0].model}-{scenario.name}"
    thresholds = Thresholds(max_error_share=1.0)
    return _written(found, stem, thresholds, accept_invalid=arguments.accept_invalid)


def _measured(
    arguments: argparse.Namespace,
    scenario: Scenario,
    profile: Profile,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> Result:
    """One point, told at once."""
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
    """Write the report of some points and return the status."""
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
        print(f"FAILED: {failure}", file=sys.stderr)
    if any(result.wrong_answers for result in found.runs):
        return MISSED
    valid = any(result.verdict.valid for result in found.runs)
    if not valid and not accept_invalid:
        return INVALID  # nothing is known of the thresholds
    return MISSED if missed else KEPT


def _overload(arguments: argparse.Namespace) -> int:
    """``run`` at shares of the capacity of a service that is started for it."""
    if not all("=" in text for text in arguments.settings):
        raise ScenarioError(f"--settings are NAME=VALUE, not {arguments.settings}")
    if min(arguments.factors, default=0) <= 0:
        raise ScenarioError("shares of the capacity must be positive numbers")
    bundle = arguments.bundle
    Model(bundle)  # before a service is started for nothing
    service_cores, client_cores = cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "bundles").mkdir()
        (folder / "bundles" / "model").symlink_to(bundle.resolve())
        settings = {"INFERENCE_BUNDLES": str(folder / "bundles")}
        settings |= dict(text.split("=", 1) for text in arguments.settings)
        with pinned(service_cores):  # its processes are born there
            url = stack.enter_context(running_service(folder / "log", settings=settings))
        with pinned(client_cores):
            found = [_at(arguments, url, factor) for factor in sorted(arguments.factors)]
    thresholds = Thresholds(max_error_share=1.0)
    runs = Runs(runs=[one for many in found for one in many.runs], over_runs={})
    stem = arguments.out / f"overload-{runs.runs[0].model}"
    return _written(runs, stem, thresholds, accept_invalid=True)


def _at(arguments: argparse.Namespace, url: str, factor: float) -> Runs:
    """The rounds of one share, each of a capacity that is measured anew."""
    shape = 1.0 if arguments.arrivals == "poisson" else NEARLY_UNIFORM
    base = load_scenario("Overload", samples_per_request=arguments.images, shape=shape)
    endpoint = usable_form([Model(arguments.bundle)], base.endpoint)
    base = base.model_copy(update={"endpoint": endpoint, "overload": factor > 1})
    profile = load_profile("smoke", duration_s=arguments.seconds, warmup_s=0.5)

    def measure(scenario: Scenario) -> Result:
        bundles = [arguments.bundle]
        rate = factor * closed_loop_rate(scenario, url, bundles, processes=1)
        scenario = scenario.model_copy(update={"rate_per_s": max(rate, LEAST_RATE)})
        found = run_scenario(scenario, url, bundles, profile)
        print(f"{factor:g} x the capacity: {summary(found)}", flush=True)
        return found

    return repeated(base, arguments.rounds, measure)


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
        print(f"FAILED: {failure}", file=sys.stderr)
    return MISSED if missed else KEPT


def _point(arguments: argparse.Namespace) -> tuple[Scenario, Profile]:
    """What the arguments ask for.

    Raises:
        ScenarioError: Unknown name or unusable numbers.
    """
    duration_s, warmup_s, rate = arguments.duration, arguments.warmup, arguments.rate
    if arguments.trace is not None:
        events = read_trace(arguments.trace)
        # The last request is one of the window's too, and nothing of a trace is left out.
        whole_s = events[-1].at_s / arguments.speed + TRACE_MARGIN_S
        rate, warmup_s = len(events) / whole_s, 0.0
        duration_s = whole_s if duration_s is None else min(duration_s, whole_s)
    scenario = load_scenario(
        arguments.scenario,
        users=arguments.users,
        rate_per_s=rate,
        ramp_to_per_s=arguments.ramp_to,
        trace=None if arguments.trace is None else str(arguments.trace.resolve()),
        speed=arguments.speed,
        samples_per_request=arguments.samples_per_request,
        endpoint=arguments.endpoint,
        slo_ms=arguments.slo_ms,
        seed=arguments.seed,
        hang_up_share=arguments.hang_up_share,
        slow_clients=arguments.slow_clients,
        new_connections=arguments.new_connections or None,
    )
    profile = load_profile(
        arguments.profile, duration_s=duration_s, warmup_s=warmup_s, runs=arguments.runs
    )
    models = [Model(bundle) for bundle in arguments.bundle]
    if arguments.endpoint is None:
        usable = usable_form(models, scenario.endpoint)
        if usable != scenario.endpoint:
            print(f"{scenario.endpoint} cannot ask these models; {usable} is taken", flush=True)
            scenario = scenario.model_copy(update={"endpoint": usable})
    return scenario, profile


def _add_point(parser: argparse.ArgumentParser, scenario: str) -> None:
    """What a load point is made of; values in place of the scenario's and the profile's."""
    parser.add_argument(
        "--scenario", choices=scenario_names(), default=scenario, help="default: %(default)s"
    )
    parser.add_argument("--url", default="http://localhost:3000", help="default: %(default)s")
    parser.add_argument(
        "--bundle",
        type=Path,
        nargs="+",
        default=[Path("artifacts/bundles/cnn")],
        help="the bundles of the models to ask, which take turns; default: artifacts/bundles/cnn",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("artifacts/loadtest"),
        help="where .json, .html, .md and JUnit's .xml go; default: %(default)s",
    )
    parser.add_argument("--profile", default="smoke", help="how long; default: %(default)s")
    parser.add_argument("--duration", type=float, help="seconds, in place of the profile's")
    parser.add_argument("--warmup", type=float, help="seconds, in place of the profile's")
    parser.add_argument("--users", type=int, help="of a closed loop")
    parser.add_argument("--rate", type=float, help="of an open loop, requests/s")
    parser.add_argument("--ramp-to", type=float, help="requests/s at the end, climbing evenly")
    parser.add_argument(
        "--trace", type=Path, help="CSV or JSON lines of time, model, samples, or an access log"
    )
    parser.add_argument("--speed", type=float, default=1.0, help="how much faster a trace goes")
    parser.add_argument("--hang-up-share", type=float, help="clients that do not wait, 0 to 1")
    parser.add_argument("--slow-clients", type=int, help="that send byte by byte, beside the load")
    parser.add_argument("--new-connections", action="store_true", help="each request opens one")
    # The earlier name is accepted for one more release.
    parser.add_argument("--samples-per-request", "--images-per-request", type=int)
    parser.add_argument("--endpoint", choices=ENDPOINTS)
    parser.add_argument("--slo-ms", type=float, help="what 99%% of the answers must be under")
    parser.add_argument("--seed", type=int, help="of an open loop's drawn times")
    parser.add_argument(
        "--price-per-hour",
        type=float,
        default=price_per_hour(),
        help="of the machine that serves, for the cost of a million samples; default: %(default)s",
    )
    parser.add_argument("--runs", type=int, help="of a point, in place of the profile's")
    parser.add_argument(
        "--accept-invalid",
        action="store_true",
        help="status 0 for figures that say nothing, too: right answers are all that is asked for",
    )
    parser.add_argument("--processes", type=int, default=1, help="of the generator")
