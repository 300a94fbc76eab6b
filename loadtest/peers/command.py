"""The subcommand ``peers`` of the load test's command line."""

import argparse
import json
import sys
from pathlib import Path

from loadtest.peers.declared import PeerError
from loadtest.peers.report import as_json, markdown
from loadtest.peers.run import PeersError, Plan, WrongAnswerError, compare_peers


def add_peers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare its options."""
    plan = Plan()
    peers = commands.add_parser(
        "peers",
        help="beside other servers of the same model, each in an environment of its own",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    peers.set_defaults(command=peers_command)
    peers.add_argument("--bundle", type=Path, default=plan.bundle, help="that all serve")
    peers.add_argument(
        "--connections", type=int, nargs="+", default=list(plan.connections), metavar="NUMBER"
    )
    peers.add_argument("--rounds", type=int, default=plan.rounds, help="interleaved")
    peers.add_argument("--seconds", type=int, default=plan.seconds, help="of a server in a round")
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
    peers.add_argument("--folder", type=Path, default=plan.folder, help="of the peers' files")
    peers.add_argument(
        "--environments", type=Path, default=plan.environments, help="made where they are missing"
    )
    peers.add_argument(
        "--out", type=Path, default=Path("artifacts/peers"), help="for peers.md and peers.json"
    )


def peers_command(arguments: argparse.Namespace) -> int:
    """Measure, print and write the tables.

    Returns:
        The status: 0 all answers right, 1 a server answered wrongly, 2 nothing can be measured.
    """
    plan = Plan(
        bundle=arguments.bundle,
        connections=tuple(arguments.connections),
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        words=tuple(arguments.peers),
        new_connections=arguments.new_connections,
        split=arguments.cores == "split",
        folder=arguments.folder,
        environments=arguments.environments,
    )
    try:
        found = compare_peers(plan, lambda text: _tell(f"... {text}"))
    except WrongAnswerError as error:
        _tell(f"FAILED: {error}")
        return 1
    except (PeerError, PeersError) as error:
        _tell(f"error: {error}")
        return 2
    text = markdown(found)
    sys.stdout.write(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "peers.md").write_text(text)
    (arguments.out / "peers.json").write_text(json.dumps(as_json(found), indent=2) + "\n")
    for wrong in found.wrong:
        _tell(f"FAILED: {wrong}")
    return 1 if found.wrong else 0


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
