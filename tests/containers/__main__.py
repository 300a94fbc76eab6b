"""Bring the compose file up, ask it, kill it, drain it, scale it, take it down: figures of each.

    python -m tests.containers [--bundles DIR] [--sizes]

Exits with 0 if all is as it must be, with 1 if a step fails, with 3 where no container engine is.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from loadtest.machine import machine
from tests.containers.engine import CommandError, NoEngineError, Project, StepError, find_engine
from tests.containers.sizes import sizes
from tests.containers.steps import STEPS, bundle_there
from tests.tiny import SERVED_BUNDLES

FAILED, NO_ENGINE = 1, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps.

    Args:
        argv: Arguments; the command line's if None.

    Returns:
        0, 1 (failed) or 3 (no engine).
    """
    parser = argparse.ArgumentParser(prog="python -m tests.containers", description=__doc__)
    parser.add_argument("--bundles", type=Path, default=SERVED_BUNDLES, help="what is served")
    parser.add_argument("--sizes", action="store_true", help="only the sizes of what is built")
    arguments = parser.parse_args(argv)
    if not bundle_there(arguments.bundles):
        parser.error(f"no bundle of the CNN in {arguments.bundles}: `make bundles` writes them")
    try:
        engine = find_engine(os.environ)
    except NoEngineError as error:
        print(f"NOT RUN: {error}", file=sys.stderr)
        return NO_ENGINE
    if arguments.sizes:
        print("\n".join(sizes(engine)))
        return 0
    print(f"{' '.join(engine.compose)} on {machine()}; bundles: {arguments.bundles}")
    project = Project(engine, arguments.bundles)
    try:
        for step in STEPS:
            began_s = time.monotonic()
            figures = step(project)
            print(f"{step.__name__}: {figures} [{time.monotonic() - began_s:.0f} s]", flush=True)
        print("\n".join(sizes(engine)))
    except (CommandError, StepError) as error:
        print(f"FAILED {step.__name__}: {error}", file=sys.stderr)
        return FAILED
    finally:
        project.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
