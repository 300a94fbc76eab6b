"""Versions of the code and of the packages that made an artefact."""

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def commit() -> str:
    """The repository's commit, with "-dirty" appended if files differ; "unknown" without git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of Python and of the named packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
