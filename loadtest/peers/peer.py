"""Installs, starts and queries the peers, which a comment in each peer's file declares.

The comment is Python's inline script metadata (PEP 723). Its ``dependencies``, all pinned, are
installed into the peer's environment. Each of its ``[[tool.peer]]`` tables declares one server, so
that a framework can be measured with several settings. To add a peer, add a file; there is no list.

A file is ``NAME.py``, or ``NAME/__main__.py`` if it imports packages that only its own environment
contains.

The environment is created once and reused; the server runs for the duration of a ``with`` block.
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
    """A peer's file has invalid metadata, or no such peer exists."""


class Peer(BaseModel):
    """A server of the same model, in its own process and environment.

    Attributes:
        file: Path of the peer's file.
        requirements: Pinned packages of its environment.
        name: Name shown in the tables.
        settings: Description of its settings, shown in the tables.
        form: Format of its requests; see ``generator.payloads``.
        samples: Number of samples in each request.
        path: URL path of its requests.
        command: Arguments of its environment's Python, run in the repository's root. ``{port}``
            (of the loopback interface), ``{file}`` and ``{scratch}`` (a folder that is removed
            afterwards) are substituted.
        environment: Environment variables, substituted likewise; BUNDLE, the bundle's folder, is
            always set.
        documentation: URL of the documentation that the peer follows.
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
        """The name of the environment's folder, which servers of one file share."""
        return self.file.parent.name if self.file.stem == "__main__" else self.file.stem

    @property
    def versions(self) -> str:
        """The pinned packages and versions as text."""
        return ", ".join(text.replace("==", " ") for text in self.requirements)


def declared(folder: Path = PEERS, words: Sequence[str] = ()) -> list[Peer]:
    """The peers that the files of a folder declare.

    Args:
        folder: The folder; files without the comment are ignored.
        words: Keep only peers whose names contain one of these words, ignoring case; empty: all.

    Raises:
        PeerError: A comment is invalid, two peers have the same name, or no peer is left.
    """
    files = sorted([*folder.glob("*.py"), *folder.glob("*/__main__.py")])
    peers = [peer for file in files for peer in _read(file)]
    names = [peer.name for peer in peers]
    if twice := {name for name in names if names.count(name) > 1}:
        raise PeerError(f"{folder}: several peers have the name {', '.join(sorted(twice))}")
    lowered = [word.lower() for word in words]
    kept = [p for p in peers if not words or any(word in p.name.lower() for word in lowered)]
    if not kept:
        known = ", ".join(f'"{name}"' for name in names) or "none"
        raise PeerError(f"{folder}: no peer's name contains one of {list(words)}; known: {known}")
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
            raise PeerError(f"{file}: pin the dependencies {loose} with ==")
        given = {"file": file.resolve(), "requirements": requirements}
        forms = ({"form": EARLIER.get(table["form"], table["form"])} for table in tables)
        return [
            Peer.model_validate({**table, **form, **given})
            for table, form in zip(tables, forms, strict=True)
        ]
    except (KeyError, TypeError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise PeerError(f"{file}: the script comment does not declare a peer: {error!r}") from error


class SkippedError(RuntimeError):
    """The peer cannot be measured here; the message says why."""


def environment(peer: Peer, folder: Path) -> Path:
    """The Python interpreter of the peer's environment, which is created if it is missing.

    Args:
        peer: The peer.
        folder: The folder of all environments.

    Raises:
        SkippedError: It cannot be created; the message holds the last line of pip's output.
    """
    home = folder.resolve() / peer.home
    python, made = home / "bin" / "python", home / "peer-requirements.txt"
    wanted = "\n".join([f"# Python {sys.version}", *peer.requirements]) + "\n"
    if made.is_file() and made.read_text() == wanted:
        return python
    # This environment's pip installs into the new one, which therefore needs no pip.
    _installed([sys.executable, "-m", "venv", "--clear", "--without-pip", str(home)])
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    if peer.requirements:
        _installed([*pip, "install", "--quiet", "--no-input", *peer.requirements])
    made.write_text(wanted)  # last: without this file the environment is created again
    return python


def packages(python: Path) -> list[str]:
    """All packages of an environment, in the format of ``pip freeze``."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "freeze", "--all"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line for line in ran.stdout.splitlines() if "==" in line]


@contextmanager
def running(
    peer: Peer, python: Path, bundle: Path, scratch: Path, request: Request
) -> Iterator[str]:
    """Start the peer on the loopback interface; stop it, with all its processes, afterwards.

    Args:
        peer: The peer.
        python: The Python interpreter of its environment.
        bundle: The folder of the bundle that it serves.
        scratch: A folder for its log and its other files.
        request: The peer is ready as soon as it answers this request.

    Yields:
        The peer's URL.

    Raises:
        SkippedError: It exited or was not ready in time; the message holds the end of its log.
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
    """Send a request; return the answer's headers, with lower-case names, and its body.

    Raises:
        OSError: There is no answer, or its status is not 200.
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
        raise SkippedError(f"installation failed: {told(lines, 1)}")


def told(lines: Sequence[str], count: int = TOLD_LINES) -> str:
    """The last lines that are not blank, shortened to fit into a table's cell."""
    said = [line.strip() for line in lines if line.strip()]
    return (" / ".join(said[-count:]) or "no output").replace("|", "/")[-TOLD_LETTERS:]
