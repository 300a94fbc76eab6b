"""The compose file and the Dockerfiles as they are written, for the tests of what they say."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKERFILES = sorted(
    path
    for stage in ("service", "loadtest", "training")
    for path in ROOT.glob(f"{stage}/**/Dockerfile")
)
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def compose_text() -> str:
    """The compose file."""
    return (ROOT / "docker-compose.yml").read_text()


def services() -> dict[str, dict[str, Any]]:
    """The compose file's services by name, where no variable is set."""
    text = _VARIABLE.sub(lambda found: found[2] or "", compose_text())
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return found


def instructions(dockerfile: Path) -> list[tuple[str, list[str]]]:
    """A Dockerfile's instructions: name, and words."""
    lines = [ln for ln in dockerfile.read_text().splitlines() if not ln.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [
        (name, shlex.split(rest)) for name, _, rest in (ln.partition(" ") for ln in whole) if name
    ]


def copied(dockerfile: Path) -> set[Path]:
    """Files that a Dockerfile takes from the repository into its last stage."""
    found = set[Path]()
    for name, words in instructions(dockerfile):
        if name == "FROM":
            found = set()
        if name == "COPY" and not words[0].startswith("--from"):
            found |= {path for source in words[:-1] for path in files(source)}
    return found


def files(pattern: str) -> set[Path]:
    """What a pattern, or a folder, names in the repository; compiled files are none of it."""
    found = set(ROOT.glob(pattern))
    found |= {inner for path in found if path.is_dir() for inner in path.rglob("*")}
    return {path for path in found if path.is_file() and "__pycache__" not in path.parts}
