"""Writes a bundle whose model takes milliseconds per sample, for `loadtest capacity`.

python -m tests.loadtest.slow_bundle FOLDER
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.service.made_bundles import make_slow_bundle


def main(argv: Sequence[str] | None = None) -> int:
    """Write the bundle FOLDER/slow and return 0."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.loadtest.slow_bundle", description=__doc__
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=10, help="half a millisecond each, or so")
    arguments = parser.parse_args(argv)
    print(make_slow_bundle(arguments.folder, layers=arguments.layers).folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
