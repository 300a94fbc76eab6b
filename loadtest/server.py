"""Servers in processes of their own for the time of a block: this service, peers, the no-op one."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

from loadtest.errors import LoadTestError

SERVICE = "service.app:DigitClassifier"
REPOSITORY = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
LAST_LINES = 20


class ServiceNotReadyError(LoadTestError):
    """A server ended, or did not become ready in time.

    Attributes:
        how: Which of the two, in words.
        said: The last lines of its log.
    """

    def __init__(self, how: str, log_file: Path) -> None:
        self.how = how
        self.said = log_file.read_text(errors="replace").splitlines()[-LAST_LINES:]
        super().__init__(f"{how}; the end of its log {log_file}:\n" + "\n".join(self.said))


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def only_bundle(folder: Path, bundle: Path) -> Path:
    """A new folder of bundles within this one, that holds a link to one bundle and nothing else."""
    bundles = folder / "bundles"
    bundles.mkdir()
    (bundles / "model").symlink_to(bundle.resolve())
    return bundles


@contextmanager
def started(
    command: Sequence[str],
    log_file: Path,
    ask: Callable[[], object],
    *,
    variables: Mapping[str, str] | None = None,
    timeout_s: float = START_TIMEOUT_S,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server, and stop it with all its processes afterwards.

    Args:
        command: What is run, in the repository's root.
        log_file: Where its output goes.
        ask: Raises OSError or HTTPException as long as the server is not ready.
        variables: Its environment; None: this process's own.
        timeout_s: Seconds within which it must be ready.

    Yields:
        Its process, once it is ready.

    Raises:
        ServiceNotReadyError: It ended or did not become ready in time.
    """
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in the terminal ends the load, which ends the server
        )
        try:
            _wait_until_ready(process, log_file, ask, timeout_s)
            yield process
        finally:
            stop(process)


@contextmanager
def running_service(
    log_file: Path,
    *,
    port: int | None = None,
    settings: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    trusted: ssl.SSLContext | None = None,
) -> Iterator[str]:
    """Run ``bentoml serve`` on the loopback interface.

    Args:
        log_file: Where its output goes.
        port: Where to listen; a free port if None.
        settings: Environment variables on top of this process's own.
        options: Further ones of ``bentoml serve``.
        trusted: Whose certificates are believed; if given, the service is asked by TLS.

    Yields:
        Its URL, once it says that it is ready.

    Raises:
        ServiceNotReadyError: It ended or did not become ready within two minutes.
    """
    port = port or free_port()
    url = f"http{'' if trusted is None else 's'}://127.0.0.1:{port}"
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    variables = {
        **os.environ,
        "BENTOML_DO_NOT_TRACK": "True",
        # Each start empties its home's metrics folder, a running neighbour's too.
        "BENTOML_HOME": str(log_file.resolve().with_suffix(".bentoml")),
        "INFERENCE_DRAIN_S": "0",  # nobody sends requests any more when it is stopped
        **(settings or {}),
    }
    with started(command, log_file, lambda: ask_ready(url, trusted), variables=variables):
        yield url


def ask_ready(url: str, trusted: ssl.SSLContext | None = None, timeout_s: float = 5.0) -> None:
    """Ask a server whether it is ready.

    Raises:
        OSError: It is not.
    """
    ready = f"{url}/readyz"
    with urllib.request.urlopen(ready, timeout=timeout_s, context=trusted):  # noqa: S310 - HTTP
        pass


def _wait_until_ready(
    process: subprocess.Popen[bytes], log_file: Path, ask: Callable[[], object], timeout_s: float
) -> None:
    give_up_s = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < give_up_s:
        with suppress(OSError, HTTPException):
            ask()
            return
        time.sleep(0.1)
    how = f"was not ready within {timeout_s:g} s"
    if process.returncode is not None:
        how = f"ended with status {process.returncode} at its start"
    raise ServiceNotReadyError(f"the server {how}", log_file)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server politely, then whatever is left of its process group by force."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
