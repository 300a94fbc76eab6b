"""The commands that measure load points: ``run`` and ``sweep``."""

import argparse
import sys
from pathlib import Path
from typing import TypeAlias

from loadtest.report.formats import to_junit, to_markdown, write_all
from loadtest.report.page import run_report, sweep_report
from loadtest.report.words import run_verdict, sweep_verdict
from loadtest.result import Result
from loadtest.run import (
    REQUEST_TIMEOUT_S,
    Thresholds,
    run_scenario,
    save_wrong_answers,
    summary,
)
from loadtest.runs import Runs, repeated
from loadtest.scenarios import (
    ENDPOINTS,
    Profile,
    Scenario,
    load_profile,
    load_scenario,
    price_per_hour,
    scenario_names,
)
from loadtest.sweep import USERS, concurrency, sweep

KEPT, MISSED, INVALID = 0, 1, 3
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


def _run(arguments: argparse.Namespace) -> int:
    scenario, profile = _point(arguments)
    thresholds = Thresholds(
        max_p99_ms=arguments.max_p99_ms,
        min_requests_per_s=arguments.min_requests_per_s,
        max_error_share=arguments.max_error_share,
    )
    timeout_s = arguments.request_timeout
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
    # A rate above the knee is too much by design: wrong answers alone are a fault here.
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
    return INVALID if found.knee is None and not arguments.accept_invalid else KEPT


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


def _point(arguments: argparse.Namespace) -> tuple[Scenario, Profile]:
    """What the arguments ask for.

    Raises:
        ScenarioError: Unknown name or unusable numbers.
    """
    scenario = load_scenario(
        arguments.scenario,
        users=arguments.users,
        rate_per_s=arguments.rate,
        images_per_request=arguments.images_per_request,
        endpoint=arguments.endpoint,
        slo_ms=arguments.slo_ms,
        seed=arguments.seed,
    )
    profile = load_profile(
        arguments.profile,
        duration_s=arguments.duration,
        warmup_s=arguments.warmup,
        runs=arguments.runs,
    )
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
        default=Path("artifacts/bundles/cnn"),
        help="the bundle of the model to ask; default: %(default)s",
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
    parser.add_argument("--images-per-request", type=int)
    parser.add_argument("--endpoint", choices=ENDPOINTS)
    parser.add_argument("--slo-ms", type=float, help="what 99%% of the answers must be under")
    parser.add_argument("--seed", type=int, help="of an open loop's drawn times")
    parser.add_argument(
        "--price-per-hour",
        type=float,
        default=price_per_hour(),
        help="of the machine that serves, for the cost of a million images; default: %(default)s",
    )
    parser.add_argument("--runs", type=int, help="of a point, in place of the profile's")
    parser.add_argument(
        "--accept-invalid",
        action="store_true",
        help="status 0 for figures that say nothing, too: right answers are all that is asked for",
    )
    parser.add_argument("--processes", type=int, default=1, help="of the generator")
