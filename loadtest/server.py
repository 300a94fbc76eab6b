"""Starts and stops servers in separate processes: this service, the peers and the no-op server."""

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
    """A server exited, or did not become ready in time.

    Attributes:
        how: Which of the two happened, in words.
        said: The last lines of the server's log.
    """

    def __init__(self, how: str, log_file: Path) -> None:
        self.how = how
        self.said = log_file.read_text(errors="replace").splitlines()[-LAST_LINES:]
        super().__init__(f"{how}; the end of its log {log_file}:\n" + "\n".join(self.said))


def free_port() -> int:
    """A TCP port of the loopback interface on which no process is listening at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def only_bundle(folder: Path, bundle: Path) -> Path:
    """Create ``folder/bundles``, which contains only a symbolic link to one bundle."""
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
        command: The command line, which is run in the repository's root.
        log_file: Receives the server's standard output and standard error.
        ask: Raises OSError or HTTPException as long as the server is not ready.
        variables: The server's environment; None: this process's own.
        timeout_s: Seconds within which the server must become ready.

    Yields:
        The server's process, once the server is ready.

    Raises:
        ServiceNotReadyError: The server exited or did not become ready in time.
    """
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C then stops the load test, which stops the server
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
        log_file: Receives the service's output.
        port: The port to listen on; None: a free port.
        settings: Environment variables in addition to this process's own.
        options: Further options of ``bentoml serve``.
        trusted: TLS context with the trusted certificates; if given, requests use HTTPS.

    Yields:
        The service's URL, once the service reports that it is ready.

    Raises:
        ServiceNotReadyError: The service exited or did not become ready within two minutes.
    """
    port = port or free_port()
    url = f"http{'' if trusted is None else 's'}://127.0.0.1:{port}"
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    variables = {
        **os.environ,
        "BENTOML_DO_NOT_TRACK": "True",
        # Each start empties the metrics folder of its home: a shared home would lose the metrics
        # of another service that is running.
        "BENTOML_HOME": str(log_file.resolve().with_suffix(".bentoml")),
        "INFERENCE_DRAIN_S": "0",  # no client sends requests any more when the service is stopped
        **(settings or {}),
    }
    with started(command, log_file, lambda: ask_ready(url, trusted), variables=variables):
        yield url


def ask_ready(url: str, trusted: ssl.SSLContext | None = None, timeout_s: float = 5.0) -> None:
    """Query a server's readiness endpoint.

    Raises:
        OSError: The server is not ready.
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
        how = f"exited with status {process.returncode} while starting"
    raise ServiceNotReadyError(f"the server {how}", log_file)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to a server, then SIGKILL to whatever is left of its process group."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
