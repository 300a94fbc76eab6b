"""Verifies a version at a low priority, in a process that one worker starts on behalf of all.

    python -m service.rollout.verifier bundles/NAME/VERSION

The exit status is 0 if the version may be served, and 1 if not; the reason is printed.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Of nice(2): a tenth of the processor time of a busy worker. With 19, a hundredth, a new version
# could wait for minutes on a busy machine.
LOW_PRIORITY = 10
AUTOGROUP = Path("/proc/self/autogroup")


def lower_priority() -> None:
    """Give this process a low priority, in a session of its own.

    Linux compares a process's nice value only with those of its own session, if the kernel groups
    processes by session; the session has a nice value too (sched(7), "The autogroup feature").
    """
    os.nice(LOW_PRIORITY)
    try:
        os.setsid()
        AUTOGROUP.write_text(str(LOW_PRIORITY))
    except OSError:
        return  # it leads a process group, or this system has no such groups


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """Verify the named version; print errors and return the exit status."""
    lower_priority()
    # Imported after that, since the imports take most of the time.
    from service.models.loader import main as verify  # noqa: PLC0415

    return verify(arguments)


if __name__ == "__main__":
    sys.exit(main())
