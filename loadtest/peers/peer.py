"""The peers: servers that say in a comment of their own file how to install, start and ask them.

The comment is Python's inline script metadata (PEP 723): its ``dependencies``, each pinned, are
what the peer's environment holds, and each of its ``[[tool.peer]]`` tables is one server, so that a
framework may be shown with several settings. A new peer is a new file; nothing lists them.

A file is ``NAME.py`` or, where the importing of it needs what only its own environment has,
``NAME/__main__.py``.

Its environment is made once and reused, and its server runs for the time of a block.
"""

import os
import re
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadtest.errors import LoadTestError
from loadtest.generator.payloads import PeerForm, Request
from loadtest.server import ServiceNotReadyError, free_port, started

PEERS = Path(__file__).with_name("servers")
_BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
# Names of forms that are accepted for one more release.
EARLIER = {"pixels": "tensors", "open-inference": "infer/binary"}
_PINNED = re.compile(r"[\w.-]+(\[[\w,.-]+\])?==[\w.!+-]+")
START_TIMEOUT_S = 90.0
ASK_TIMEOUT_S = 20.0
TOLD_LINES, TOLD_LETTERS = 3, 300


class PeerError(LoadTestError):
    """A peer's file does not say what it must, or there is no such peer."""


class Peer(BaseModel):
    """A server of the same model, in a process and an environment of its own.

    Attributes:
        file: It lies there.
        requirements: What its environment holds, pinned.
        name: In the table.
        settings: In words, for the table.
        form: How it is asked: see ``generator.payloads``.
        samples: In a request.
        path: Of its URL, where it is asked.
        command: Arguments of its environment's Python; ``{port}`` of the loopback interface,
            ``{file}``, and ``{scratch}``, a folder of its own that is removed afterwards, are
            filled in. It runs in the repository's root.
        environment: Variables, filled in alike; BUNDLE, the bundle's folder, is always set.
        documentation: Whose form it follows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path
    requirements: tuple[str, ...]
    name: str = Field(min_length=1)
    settings: str
    form: PeerForm
    samples: int = Field(1, ge=1)
    path: str = Field(pattern="^/")
    command: tuple[str, ...] = Field(min_length=1)
    environment: dict[str, str] = {}
    documentation: str = Field(pattern="^https?://")

    @property
    def home(self) -> str:
        """The name of its environment's folder; servers of one file share it."""
        return self.file.parent.name if self.file.stem == "__main__" else self.file.stem

    @property
    def versions(self) -> str:
        """What is pinned, in words."""
        return ", ".join(text.replace("==", " ") for text in self.requirements)


def declared(folder: Path = PEERS, words: Sequence[str] = ()) -> list[Peer]:
    """The peers whose files lie in a folder.

    Args:
        folder: Of the files; those without the comment are no peers.
        words: Only peers whose names hold one of them, in any case; all without any.

    Raises:
        PeerError: A comment that is not right, or no peer is left.
    """
    files = sorted([*folder.glob("*.py"), *folder.glob("*/__main__.py")])
    peers = [peer for file in files for peer in _read(file)]
    names = [peer.name for peer in peers]
    if twice := {name for name in names if names.count(name) > 1}:
        raise PeerError(f"{folder}: several peers bear the name {', '.join(sorted(twice))}")
    lowered = [word.lower() for word in words]
    kept = [p for p in peers if not words or any(word in p.name.lower() for word in lowered)]
    if not kept:
        known = ", ".join(f'"{name}"' for name in names) or "none"
        raise PeerError(f"{folder}: no peer's name holds one of {list(words)}; there are: {known}")
    return kept


def _read(file: Path) -> list[Peer]:
    found = _BLOCK.search(file.read_text())
    if found is None:
        return []
    lines = found["content"].splitlines()
    try:
        content: dict[str, Any] = tomllib.loads("\n".join(line[2:] for line in lines))
        requirements = content["dependencies"]
        tables = content["tool"]["peer"]
        loose = [text for text in requirements if not _PINNED.fullmatch(text)]
        if loose:
            raise PeerError(f"{file}: pin the dependencies {loose} by ==")
        given = {"file": file.resolve(), "requirements": requirements}
        forms = ({"form": EARLIER.get(table["form"], table["form"])} for table in tables)
        return [
            Peer.model_validate({**table, **form, **given})
            for table, form in zip(tables, forms, strict=True)
        ]
    except (KeyError, TypeError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise PeerError(f"{file}: its script comment is not a peer's: {error!r}") from error


class SkippedError(RuntimeError):
    """The peer cannot be measured here; says why."""


def environment(peer: Peer, folder: Path) -> Path:
    """The Python of the peer's environment, which is made unless it is there already.

    Args:
        peer: Whose.
        folder: Of all environments.

    Raises:
        SkippedError: It cannot be made; the last line that pip gave.
    """
    home = folder.resolve() / peer.home
    python, made = home / "bin" / "python", home / "peer-requirements.txt"
    wanted = "\n".join([f"# Python {sys.version}", *peer.requirements]) + "\n"
    if made.is_file() and made.read_text() == wanted:
        return python
    # This environment's pip installs into that one, which needs none of its own.
    _installed([sys.executable, "-m", "venv", "--clear", "--without-pip", str(home)])
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    if peer.requirements:
        _installed([*pip, "install", "--quiet", "--no-input", *peer.requirements])
    made.write_text(wanted)  # last: without it the environment is made anew
    return python


def packages(python: Path) -> list[str]:
    """All that an environment holds, as ``pip freeze`` gives it."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "freeze", "--all"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line for line in ran.stdout.splitlines() if "==" in line]


@contextmanager
def running(
    peer: Peer, python: Path, bundle: Path, scratch: Path, request: Request
) -> Iterator[str]:
    """Start the peer on the loopback interface; stop it, with all its processes, afterwards.

    Args:
        peer: Which.
        python: Of its environment.
        bundle: The folder of the bundle that it serves.
        scratch: A folder for its log and whatever it writes.
        request: It is ready as soon as it answers this.

    Yields:
        Its URL.

    Raises:
        SkippedError: It ended or was not ready in time; the end of its log.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def filled(text: str) -> str:
        for name, value in {"port": port, "file": peer.file, "scratch": scratch}.items():
            text = text.replace(f"{{{name}}}", str(value))
        return text

    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {name: filled(value) for name, value in peer.environment.items()}
    variables |= {"BUNDLE": str(bundle.resolve()), "VIRTUAL_ENV": str(python.parent.parent)}
    variables["PATH"] = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    scratch.mkdir(parents=True, exist_ok=True)
    command = [str(python), *(filled(part) for part in peer.command)]
    with ExitStack() as stack:
        try:
            stack.enter_context(
                started(
                    command,
                    scratch / "log",
                    lambda: ask(url, request),
                    variables=variables,
                    timeout_s=START_TIMEOUT_S,
                )
            )
        except ServiceNotReadyError as error:
            raise SkippedError(f"{error.how}: {told(error.said)}") from error
        yield url


def ask(url: str, request: Request) -> tuple[dict[str, str], bytes]:
    """One answer: its headers, their names in small letters, and its body.

    Raises:
        OSError: There is none, or it is not 200.
    """
    asked = urllib.request.Request(  # noqa: S310 - our own servers
        url + request.path, request.content, request.headers
    )
    with urllib.request.urlopen(asked, timeout=ASK_TIMEOUT_S) as answer:  # noqa: S310 - the same
        return {name.lower(): value for name, value in answer.headers.items()}, answer.read()


def _installed(command: Sequence[str]) -> None:
    ran = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if ran.returncode != 0:
        lines = [line for line in ran.stdout.splitlines() if not line.startswith("WARNING")]
        raise SkippedError(f"not installed: {told(lines, 1)}")


def told(lines: Sequence[str], count: int = TOLD_LINES) -> str:
    """The last lines that say something, short enough for a table's cell."""
    said = [line.strip() for line in lines if line.strip()]
    return (" / ".join(said[-count:]) or "without a word").replace("|", "/")[-TOLD_LETTERS:]
