"""The commands ``peers`` and ``yardstick``: their options, and what they print."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, TypeAlias

from loadtest.peers.report import as_json, markdown
from loadtest.peers.run import OWN, Plan, WrongAnswerError, compare_peers, forms_of

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
TUTORIAL = "BentoML's tutorial"


def add_peers(commands: Commands) -> None:
    """Declare ``peers``."""
    plan = Plan()
    peers = commands.add_parser(
        "peers",
        help="beside other servers of the same model, each in an environment of its own",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    peers.set_defaults(command=_peers)
    _add_measurement(peers, rounds=plan.rounds, seconds=plan.seconds)
    peers.add_argument(
        "--new-connections", action="store_true", help="wrk opens one for each request"
    )
    peers.add_argument(
        "--cores",
        choices=["shared", "split"],
        default="shared",
        help="split: the client on the last core, the servers on the others, where there are two",
    )
    peers.add_argument(
        "--peers", nargs="+", default=[], metavar="WORD", help="only whose names hold one"
    )
    peers.add_argument("--base", default=plan.base, help="whose rates the ratios are to")
    peers.add_argument(
        "--all-forms", action="store_true", help="ask this service in every form, and the runtime"
    )
    peers.add_argument("--folder", type=Path, default=plan.folder, help="of the peers' files")
    peers.add_argument(
        "--environments", type=Path, default=plan.environments, help="made where they are missing"
    )
    peers.add_argument(
        "--here", action="store_true", help="run the peers by the packages installed here"
    )
    peers.add_argument(
        "--out", type=Path, default=Path("artifacts/peers"), help="for peers.md and peers.json"
    )


def add_yardstick(commands: Commands) -> None:
    """Declare ``yardstick``: ``peers`` with every form of this service and BentoML's tutorial."""
    parser = commands.add_parser(
        "yardstick", help="peers: every form of this service beside BentoML's tutorial"
    )
    parser.set_defaults(command=_yardstick)
    _add_measurement(parser, rounds=3, seconds=3)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1], help="processes; each a service of its own"
    )
    parser.add_argument(
        "--forms", nargs="+", default=[], metavar="WORD", help="only those whose names hold one"
    )


def _add_measurement(parser: argparse.ArgumentParser, *, rounds: int, seconds: int) -> None:
    plan = Plan()
    parser.add_argument("--bundle", type=Path, default=plan.bundle, help="that all serve")
    parser.add_argument(
        "--connections", type=int, nargs="+", default=list(plan.connections), metavar="NUMBER"
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="interleaved")
    parser.add_argument("--seconds", type=int, default=seconds, help="of a server in a round")


def _peers(arguments: argparse.Namespace) -> int:
    plan = Plan(
        **_measurement(arguments),
        words=tuple(arguments.peers),
        own=forms_of((1, 2)) if arguments.all_forms else OWN,
        base=arguments.base,
        with_runtime=arguments.all_forms,
        new_connections=arguments.new_connections,
        split=arguments.cores == "split",
        folder=arguments.folder,
        environments=None if arguments.here else arguments.environments,
    )
    return _compare(plan, arguments.out)


def _yardstick(arguments: argparse.Namespace) -> int:
    forms = forms_of(tuple(arguments.workers))
    words = [word.lower() for word in arguments.forms]
    chosen = [row for row in forms if not words or any(word in row.name.lower() for word in words)]
    plan = Plan(
        **_measurement(arguments),
        words=(TUTORIAL,),
        own=tuple(chosen),
        base=TUTORIAL,
        with_runtime=True,
        environments=None,
    )
    return _compare(plan, Path("artifacts/yardstick"))


def _measurement(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "bundle": arguments.bundle,
        "connections": tuple(arguments.connections),
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
    }


def _compare(plan: Plan, out: Path) -> int:
    """Measure, print and write the tables.

    Returns:
        The status: 0 all answers right, 1 a server answered wrongly.
    """
    try:
        found = compare_peers(plan, lambda text: _tell(f"... {text}"))
    except WrongAnswerError as error:
        _tell(f"FAILED: {error}")
        return 1
    text = markdown(found)
    sys.stdout.write(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / "peers.md").write_text(text)
    (out / "peers.json").write_text(json.dumps(as_json(found), indent=2) + "\n")
    for wrong in found.wrong:
        _tell(f"FAILED: {wrong}")
    return 1 if found.wrong else 0


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
