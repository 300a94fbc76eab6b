"""Prints the results of a roll-out of the real service by its manifests, as JSON.

python -m tests.service.kubernetes [--bundles FOLDER]
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.service.kubernetes.kubelet import PodManifest, roll_out
from tests.service.kubernetes.render import render_overlay
from tests.tiny import SERVED_BUNDLES


def main(argv: Sequence[str] | None = None) -> int:
    """Roll the overlay ``cpu`` out once; the status is 1 if a request was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.service.kubernetes")
    parser.add_argument("--bundles", type=Path, default=SERVED_BUNDLES, help="folder of a CNN")
    bundles = parser.parse_args(argv).bundles
    manifest = PodManifest.read(render_overlay("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        found = roll_out(manifest, Path(folder), bundles.resolve())
    print(json.dumps(dataclasses.asdict(found), indent=2))
    return 1 if found.lost else 0


if __name__ == "__main__":
    sys.exit(main())
