"""Load-tests the service: ``python -m loadtest COMMAND --help`` explains each command.

Exit status: 0 all answers are correct and all thresholds are met; 1 an answer is wrong, a threshold
is missed, or a resource does not suffice (capacity plan); 2 nothing could be measured; 3 the
measurement is invalid (run, sweep, capacity check) or a regression was found (compare --strict).
"""

import argparse
import sys
from collections.abc import Sequence

from loadtest import cli
from loadtest.errors import LoadTestError

IMPOSSIBLE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status (see the module docstring)."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in cli.COMMANDS:
        add(commands)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except (LoadTestError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return IMPOSSIBLE


if __name__ == "__main__":
    sys.exit(main())
