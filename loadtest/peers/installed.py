"""A peer's environment, made once and reused, and its server for the time of a block."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from loadtest.generator.payloads import Request
from loadtest.peers.declared import Peer
from loadtest.server import ServiceNotReadyError, free_port, started

START_TIMEOUT_S = 90.0
ASK_TIMEOUT_S = 20.0
TOLD_LINES, TOLD_LETTERS = 3, 300


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
