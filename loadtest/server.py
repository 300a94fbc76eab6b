"""A real ``bentoml serve`` for the time of a block: for the demo and for the tests."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from loadtest.errors import LoadTestError

SERVICE = "service.app:DigitClassifier"
REPOSITORY = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0


class ServiceNotReadyError(LoadTestError):
    """The service ended, or did not become ready in time; holds the end of its log."""


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_service(
    log_file: Path,
    *,
    port: int | None = None,
    settings: Mapping[str, str] | None = None,
    service: str = SERVICE,
    options: Sequence[str] = (),
    trusted: ssl.SSLContext | None = None,
) -> Iterator[str]:
    """Start the service on the loopback interface and stop it, with all its processes, afterwards.

    Args:
        log_file: Where its output goes.
        port: Where to listen; a free port if None.
        settings: Environment variables on top of this process's own.
        service: What ``bentoml serve`` shall serve.
        options: Further ones of ``bentoml serve``.
        trusted: Whose certificates are believed; if given, the service is asked by TLS.

    Yields:
        Its URL, once it says that it is ready.

    Raises:
        ServiceNotReadyError: It ended or did not become ready within two minutes.
    """
    port = port or free_port()
    url = f"http{'' if trusted is None else 's'}://127.0.0.1:{port}"
    command = [sys.executable, "-m", "bentoml", "serve", service]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={
                **os.environ,
                "BENTOML_DO_NOT_TRACK": "True",
                # Each start empties its home's metrics folder, a running neighbour's too.
                "BENTOML_HOME": str(log_file.resolve().with_suffix(".bentoml")),
                "INFERENCE_DRAIN_S": "0",  # nobody sends requests any more when it is stopped
                **(settings or {}),
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_ready(process, url, log_file, trusted)
            yield url
        finally:
            stop(process)


def _wait_until_ready(
    process: subprocess.Popen[bytes], url: str, log_file: Path, trusted: ssl.SSLContext | None
) -> None:
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up_s:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(  # noqa: S310 - our own URL
                f"{url}/readyz", timeout=5, context=trusted
            ):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-20:])
    how = "ended" if process.poll() is not None else "was not ready in time"
    raise ServiceNotReadyError(f"the service {how}; the end of its log {log_file}:\n{tail}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server politely, then whatever is left of its process group by force."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
