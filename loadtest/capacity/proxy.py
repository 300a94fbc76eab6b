"""Runs the compose file's proxy, HAProxy, in front of replicas on this machine."""

import re
import shutil
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loadtest.capacity.simulation import Policy
from loadtest.errors import LoadTestError
from loadtest.server import REPOSITORY, free_port, started

CONFIGURATION = REPOSITORY / "service" / "deploy" / "haproxy.cfg"
PROGRAM = "haproxy"
BALANCE: dict[Policy, str] = {"round-robin": "roundrobin", "least-loaded": "leastconn"}


class ProxyError(LoadTestError):
    """HAProxy is not installed, or its configuration is not as expected."""


def require_proxy() -> None:
    """Raise unless HAProxy is installed.

    Raises:
        ProxyError: HAProxy is missing; the message says how to install it.
    """
    if shutil.which(PROGRAM) is None:
        raise ProxyError(f"{PROGRAM} is not installed (Debian and Ubuntu: apt install haproxy)")


def adapt(text: str, port: int, replicas: Sequence[str], policy: Policy) -> str:
    """Adapt the compose file's configuration to fixed addresses in place of container names.

    The deployed timeouts, retries and health checks are unchanged.

    Args:
        text: Content of ``haproxy.cfg``.
        port: Port of the loopback interface to listen on.
        replicas: HOST:PORT of each replica.
        policy: How the proxy chooses a replica.

    Raises:
        ProxyError: A line to be changed is missing, or occurs several times.
    """
    servers = "\n".join(f"    server replica{i} {at}" for i, at in enumerate(replicas))
    changes = {
        r"^    bind :8080$": f"    bind 127.0.0.1:{port}",
        r"^    balance \w+$": f"    balance {BALANCE[policy]}",
        r"^    server-template .*$": servers,
        r"^resolvers engine\n(?:    .*\n)+": "",
    }
    for pattern, words in changes.items():
        text, count = re.subn(pattern, words, text, flags=re.MULTILINE)
        if count != 1:
            raise ProxyError(f"{CONFIGURATION}: expected one match of {pattern!r}, found {count}")
    return text


@contextmanager
def running_proxy(folder: Path, urls: Sequence[str], policy: Policy) -> Iterator[str]:
    """Run HAProxy in front of ready replicas.

    Args:
        folder: Folder for the proxy's configuration and log.
        urls: URLs of the replicas.
        policy: How the proxy chooses a replica.

    Yields:
        The proxy's URL.

    Raises:
        ProxyError: HAProxy is not installed.
        ServiceNotReadyError: HAProxy exited, or does not find a replica.
    """
    require_proxy()
    port = free_port()
    replicas = [url.removeprefix("http://") for url in urls]
    configuration = folder / "haproxy.cfg"
    configuration.write_text(adapt(CONFIGURATION.read_text(), port, replicas, policy))
    command = [PROGRAM, "-db", "-f", str(configuration)]
    url = f"http://127.0.0.1:{port}"
    with started(command, folder / "haproxy.log", lambda: ask_healthy(url)):
        yield url


def ask_healthy(url: str) -> None:
    """Query a proxy's health endpoint, which succeeds if it has a replica.

    Raises:
        OSError: The proxy has no replica, or is not running.
    """
    with urllib.request.urlopen(f"{url}/proxy/healthy", timeout=5):  # noqa: S310 - HTTP
        pass
