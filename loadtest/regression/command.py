"""The command ``compare``: its options, and what it prints."""

import argparse
import sys
from pathlib import Path
from typing import TypeAlias

from loadtest.regression.compare import Plan, compared
from loadtest.regression.trees import PRESENT

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_compare(commands: Commands) -> None:
    """Declare ``compare``."""
    parser = commands.add_parser("compare", help="is a commit slower than another? paired ratios")
    parser.set_defaults(command=_compare)
    plan = Plan("", "")
    present = f"{PRESENT[0]} or {PRESENT[1]!r}: the files as they are"
    parser.add_argument("--base", required=True, metavar="REF", help="a commit")
    parser.add_argument(
        "--head", required=True, metavar="REF", help=f"one that may be slower; {present}"
    )
    parser.add_argument(
        "--bundle", type=Path, default=plan.bundle, help="both serve it; default: %(default)s"
    )
    parser.add_argument(
        "--repository", type=Path, default=plan.repository, help="of the commits; default: this"
    )
    parser.add_argument("--pairs", type=int, default=plan.pairs, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=plan.seconds, help="of each side in a pair"
    )
    parser.add_argument("--seed", type=int, default=plan.seed, help="of the turns' order")
    parser.add_argument("--strict", action="store_true", help="exit status 3 for a regression")
    parser.add_argument("--out", type=Path, help="for compare.json, compare.xml (JUnit), .md")


def _compare(arguments: argparse.Namespace) -> int:
    given = {name: getattr(arguments, name) for name in Plan.__dataclass_fields__}
    outcome = compared(Plan(**given), lambda line: _tell(line))
    sys.stdout.write(outcome.markdown() + "\n")
    if arguments.out is not None:
        outcome.write(arguments.out)
    return outcome.status


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
