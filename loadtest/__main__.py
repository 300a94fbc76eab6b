"""Command line of the load test: ``python -m loadtest --help``.

Exit status: 0 all answers right and all thresholds kept, 1 not so, 2 the run could not be made,
3 a measurement that says nothing (run, sweep) or a regression (compare --strict).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtest.chain import COLUMNS, chain_report, demonstrate, text_table
from loadtest.commands import KEPT, MISSED, add_run, add_sweep
from loadtest.errors import LoadTestError
from loadtest.gate.command import add_arguments, compared, plan_of
from loadtest.machine import cores, machine
from loadtest.overload import COLUMNS as LOADED
from loadtest.overload import OverloadError, Plan, measure
from loadtest.peers.command import add_peers
from loadtest.run import Thresholds
from loadtest.yardstick import compare, over_the_runtime

IMPOSSIBLE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status (see the module's docstring)."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except (LoadTestError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return IMPOSSIBLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_run(commands)
    add_sweep(commands)
    _add_yardstick(commands)
    _add_overload(commands)
    add_peers(commands)
    gate = commands.add_parser("compare", help="is a commit slower than another? paired ratios")
    gate.set_defaults(command=_compare)
    add_arguments(gate)
    demo = commands.add_parser("demo", help="serve every bundle, ask it, load it, report all")
    demo.set_defaults(command=_demo)
    demo.add_argument("--bundles", type=Path, default=Path("artifacts/bundles"))
    demo.add_argument("--checkpoints", type=Path, default=Path("artifacts/checkpoints"))
    demo.add_argument("--out", type=Path, default=Path("artifacts/report"))
    demo.add_argument("--image", type=Path, default=Path("tests/service/digit.png"))
    demo.add_argument("--duration", type=float, default=8, help="seconds a scenario and model")
    return parser


def _add_yardstick(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    yardstick = commands.add_parser("yardstick", help="beside BentoML's tutorial form, by wrk")
    yardstick.set_defaults(command=_yardstick)
    yardstick.add_argument("--bundle", type=Path, default=Path("artifacts/bundles/cnn"))
    yardstick.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32, 128])
    yardstick.add_argument("--rounds", type=int, default=3, help="interleaved; medians are shown")
    yardstick.add_argument("--seconds", type=int, default=3, help="of each form in a round")
    yardstick.add_argument(
        "--workers", type=int, nargs="+", default=[1], help="processes; each a service of its own"
    )
    yardstick.add_argument(
        "--forms", nargs="+", default=[], metavar="WORD", help="only those whose names hold one"
    )


def _add_overload(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    plan = Plan()
    overload = commands.add_parser(
        "overload", help="start the service and offer it shares of its own capacity"
    )
    overload.set_defaults(command=_overload)
    overload.add_argument("--bundle", type=Path, default=Path("artifacts/bundles/cnn"))
    overload.add_argument(
        "--settings", nargs="+", default=[], metavar="NAME=VALUE", help="of the service"
    )
    overload.add_argument("--images", type=int, default=plan.images, help="in a request")
    overload.add_argument("--factors", type=float, nargs="+", default=list(plan.factors))
    overload.add_argument("--arrivals", choices=["poisson", "uniform"], default=plan.arrivals)
    overload.add_argument("--rounds", type=int, default=plan.rounds, help="interleaved")
    overload.add_argument("--seconds", type=float, default=plan.seconds, help="of a share")
    overload.add_argument("--connections", type=int, default=plan.connections, help="at most")


def _yardstick(arguments: argparse.Namespace) -> int:
    measured = compare(
        arguments.bundle,
        arguments.connections,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        workers=arguments.workers,
        words=arguments.forms,
    )
    print(f"{machine()}; one worker where no number is named, the client on the same cores;")
    print(f"medians of {arguments.rounds} interleaved rounds; ratios to the tutorial's form of as")
    print("many images, as `pip install bentoml` leaves it (without uvloop and httptools)")
    print("\n| connections | request | requests/s | p99 over p50 |\n|---|---|---|---|")
    rows = []
    for row in measured:
        rows.append(row)
        print(f"| {' | '.join(row.cells())} |", flush=True)
    shares = over_the_runtime(rows)
    if shares:
        print(f"\nimages/s over ONNX Runtime alone on one thread, by connections: {shares}")
    return KEPT


def _overload(arguments: argparse.Namespace) -> int:
    if not all("=" in text for text in arguments.settings):
        raise OverloadError(f"--settings are NAME=VALUE, not {arguments.settings}")
    settings = dict(text.split("=", 1) for text in arguments.settings)
    plan = Plan(
        images=arguments.images,
        factors=tuple(arguments.factors),
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        arrivals=arguments.arrivals,
        connections=arguments.connections,
    )
    rows = measure(arguments.bundle, settings, plan)
    service_cores, client_cores = cores()
    where = f"service on core(s) {sorted(service_cores)}, client on {sorted(client_cores)}"
    print(f"{machine()}; {where if client_cores else 'client and service on the same core'};")
    print(f"requests of {plan.images} images, {plan.arrivals} arrivals, {plan.rounds} rounds of")
    print(f"{plan.seconds:g} s; settings: {' '.join(arguments.settings) or 'defaults'};")
    print("latencies from when a request was due, medians of the rounds, over the p99 of the")
    print(f"smallest share ({1000 * rows[0].base_s:.2f} ms here)\n")
    print(f"| {' | '.join(LOADED)} |\n|{'---|' * len(LOADED)}")
    for row in rows:
        print(f"| {' | '.join(row.cells())} |")
    for example in [text for row in rows for text in row.total.examples][:1]:
        print(f"FAILED: wrong answers, such as: {example}", file=sys.stderr)
    return MISSED if any(row.total.wrong for row in rows) else KEPT


def _compare(arguments: argparse.Namespace) -> int:
    outcome = compared(plan_of(arguments), lambda line: print(line, file=sys.stderr, flush=True))
    print(outcome.markdown())
    if arguments.out is not None:
        outcome.write(arguments.out)
    return outcome.status


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
