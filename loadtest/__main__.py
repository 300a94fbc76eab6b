"""Command line of the load test: ``python -m loadtest --help``.

Exit status: 0 all answers right and all thresholds kept, 1 not so, 2 the run could not be made.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtest.chain import COLUMNS, chain_report, demonstrate, text_table
from loadtest.expectations import ExpectationError
from loadtest.report import machine, run_report
from loadtest.run import REQUEST_TIMEOUT_S, LoadTestError, Thresholds, run_scenario, summary
from loadtest.scenarios import ScenarioError, load_scenario, scenario_names
from loadtest.server import ServiceNotReadyError
from loadtest.yardstick import YardstickError, compare

KEPT, MISSED, IMPOSSIBLE = 0, 1, 2
_ERRORS = (LoadTestError, ScenarioError, ExpectationError, ServiceNotReadyError, YardstickError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status (see the module's docstring)."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except _ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return IMPOSSIBLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="load a running service and verify every answer")
    run.set_defaults(command=_run)
    run.add_argument("--scenario", choices=scenario_names(), default="Concurrency")
    run.add_argument("--url", default="http://localhost:3000", help="default: %(default)s")
    run.add_argument(
        "--bundle",
        type=Path,
        default=Path("artifacts/bundles/cnn"),
        help="the bundle of the model to ask; default: %(default)s",
    )
    run.add_argument("--users", type=int, help="in place of the scenario's")
    run.add_argument("--images-per-request", type=int, help="in place of the scenario's")
    run.add_argument("--duration", type=float, default=10, help="seconds; default: %(default)s")
    run.add_argument("--warmup", type=float, default=2, help="seconds; default: %(default)s")
    run.add_argument(
        "--request-timeout",
        type=float,
        default=REQUEST_TIMEOUT_S,
        help="seconds until a missing answer is an error; default: %(default)s",
    )
    run.add_argument(
        "--out", type=Path, default=Path("artifacts/loadtest"), help="default: %(default)s"
    )
    run.add_argument("--max-p99-ms", type=float, help="fail above this")
    run.add_argument("--min-requests-per-s", type=float, help="fail below this")
    run.add_argument(
        "--max-error-share", type=float, default=0.0, help="refused or lost requests; default: 0"
    )
    yardstick = commands.add_parser("yardstick", help="beside BentoML's tutorial form, by wrk")
    yardstick.set_defaults(command=_yardstick)
    yardstick.add_argument("--bundle", type=Path, default=Path("artifacts/bundles/cnn"))
    yardstick.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32, 128])
    yardstick.add_argument("--rounds", type=int, default=3, help="interleaved; medians are shown")
    yardstick.add_argument("--seconds", type=int, default=3, help="of each form in a round")
    yardstick.add_argument("--workers", type=int, default=1, help="processes of this service")
    demo = commands.add_parser("demo", help="serve every bundle, ask it, load it, report all")
    demo.set_defaults(command=_demo)
    demo.add_argument("--bundles", type=Path, default=Path("artifacts/bundles"))
    demo.add_argument("--checkpoints", type=Path, default=Path("artifacts/checkpoints"))
    demo.add_argument("--out", type=Path, default=Path("artifacts/report"))
    demo.add_argument("--image", type=Path, default=Path("tests/service/digit.png"))
    demo.add_argument("--duration", type=float, default=8, help="seconds a scenario and model")
    return parser


def _yardstick(arguments: argparse.Namespace) -> int:
    rows = compare(
        arguments.bundle,
        arguments.connections,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        workers=arguments.workers,
    )
    print(f"{machine()}; {arguments.workers} worker(s), the client on the same cores; medians of")
    print(f"{arguments.rounds} interleaved rounds; ratios to the tutorial's form of as many images")
    print("\n| connections | request | requests/s | p99 over p50 |\n|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)
    return KEPT


def _run(arguments: argparse.Namespace) -> int:
    scenario = load_scenario(
        arguments.scenario,
        users=arguments.users,
        images_per_request=arguments.images_per_request,
    )
    thresholds = Thresholds(
        max_p99_ms=arguments.max_p99_ms,
        min_requests_per_s=arguments.min_requests_per_s,
        max_error_share=arguments.max_error_share,
    )
    result = run_scenario(
        scenario,
        arguments.url,
        arguments.bundle,
        duration_s=arguments.duration,
        warmup_s=arguments.warmup,
        request_timeout_s=arguments.request_timeout,
    )
    missed = thresholds.missed(result)
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = f"{result.scenario}-{result.model}"
    (arguments.out / f"{stem}.json").write_text(result.model_dump_json(indent=2) + "\n")
    report = arguments.out / f"{stem}.html"
    report.write_text(run_report([result], missed))
    print(summary(result))
    print(f"report: {report}")
    for failure in missed:
        print(f"FAILED: {failure}", file=sys.stderr)
    return MISSED if missed else KEPT


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


if __name__ == "__main__":
    sys.exit(main())
