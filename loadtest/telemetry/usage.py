"""Resource usage of a server on this machine: CPU time, memory and open files, and the GPUs."""

import ipaddress
import os
import shutil
import socket
import subprocess
import threading
from contextlib import suppress
from urllib.parse import urlsplit

import psutil

NVIDIA_SMI = "nvidia-smi"
MIB = 2**20
MS = 1000  # in a second
# Programs that listen on a port only to forward its connections.
FORWARDERS = {"docker-proxy", "rootlessport", "slirp4netns", "ssh", "kubectl"}


class Processes:
    """The processes of the server at a URL: the one that listens on its port, and its relatives.

    The search starts at the listening process. It ascends to each parent that holds the port too or
    belongs to the same process group: BentoML's workers have separate groups, and other servers
    start a listening process beside computing ones. Then it includes all descendants of the topmost
    process found. It never includes this process and its parents.

    Attributes:
        here: Whether the URL's host is this machine; False before the first search.
        names: Names of the processes found, by id.
    """

    def __init__(self, url: str) -> None:
        """Store the URL; the processes are searched for at the first call of ``used``."""
        self.here = False
        self.names: dict[int, str] = {}
        self._url = url
        self._found: list[psutil.Process] = []
        self._missing: str | None = None

    def used(self) -> tuple[dict[int, float], int, int]:
        """CPU seconds of each process by id, total resident memory in bytes, number of open files.

        The processes are searched for at the first call and again when one of them has ended. After
        a search has failed, there is no further one.

        Raises:
            LookupError: The processes are unknown; the message says why.
        """
        if self._missing is not None:
            raise LookupError(self._missing)
        if self._found:
            with suppress(psutil.NoSuchProcess):
                return self._sum()
        try:
            self._found = self._search()
            self.names = {process.pid: process.name() for process in self._found}
            return self._sum()
        except (psutil.Error, OSError, ValueError, LookupError) as error:
            self._missing = f"the processes of {self._url}: {error}"
            raise LookupError(self._missing) from error

    def _sum(self) -> tuple[dict[int, float], int, int]:
        cpu_s, rss_bytes, open_files = {}, 0, 0
        for process in self._found:
            times = process.cpu_times()
            cpu_s[process.pid] = float(times.user + times.system)
            rss_bytes += int(process.memory_info().rss)
            open_files += int(process.num_fds()) if hasattr(process, "num_fds") else 0
        return cpu_s, rss_bytes, open_files

    def _search(self) -> list[psutil.Process]:
        where = urlsplit(self._url)
        host, port = where.hostname, where.port or (443 if where.scheme == "https" else 80)
        if not host:
            raise LookupError("the URL has no host")
        self.here = _is_here(host)
        if not self.here:
            raise LookupError(f"{host} is another machine")
        holders = {
            held.pid
            for held in psutil.net_connections("tcp")
            if held.status == psutil.CONN_LISTEN and held.laddr.port == port
        }
        if not holders:
            raise LookupError(f"no process listens on port {port}")
        found: dict[int, psutil.Process] = {}
        for pid in holders:
            if pid is None:
                raise LookupError(
                    f"the process that listens on port {port} belongs to another user"
                )
            if pid == os.getpid():
                raise LookupError("the server runs within the process that watches it")
            holder = psutil.Process(pid)
            if holder.name() in FORWARDERS:
                raise LookupError(f"port {port} is forwarded by {holder.name()}")
            top = _top(holder, port)
            found |= {process.pid: process for process in (top, *top.children(recursive=True))}
        return list(found.values())


def _is_here(host: str) -> bool:
    """Whether the host is one of this machine's addresses.

    Raises:
        OSError: The host name cannot be resolved.
    """
    own = {address.address for each in psutil.net_if_addrs().values() for address in each}
    asked = {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    return any(ipaddress.ip_address(address).is_loopback for address in asked) or bool(asked & own)


def _top(holder: psutil.Process, port: int) -> psutil.Process:
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    top, group = holder, os.getpgid(holder.pid)
    while (parent := top.parent()) is not None and parent.pid not in ours:
        if os.getpgid(parent.pid) != group and not _holds(parent, port):
            break
        top = parent
    return top


def _holds(process: psutil.Process, port: int) -> bool:
    with suppress(psutil.Error):
        return any(
            held.status == psutil.CONN_LISTEN and held.laddr.port == port
            for held in process.net_connections("tcp")
        )
    return False


class Gpus:
    """Usage of all GPUs of this machine, from one ``nvidia-smi`` that runs until it is stopped."""

    def __init__(self, reasons: dict[str, str]) -> None:
        """Prepare the watch; ``start`` starts ``nvidia-smi``.

        Args:
            reasons: Receives, under the key "gpu", the first reason why nothing is known.
        """
        self._reasons = reasons
        self._latest: dict[str, tuple[float | None, float | None]] = {}
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread(target=self._follow, name="GPU watch", daemon=True)

    def start(self, interval_s: float) -> None:
        """Start ``nvidia-smi``, if installed, with one reading every ``interval_s`` seconds."""
        command = [NVIDIA_SMI, "--query-gpu=index,utilization.gpu,memory.used"]
        command += ["--format=csv,noheader,nounits", f"--loop-ms={max(1, round(interval_s * MS))}"]
        if shutil.which(NVIDIA_SMI) is None:
            self._reasons["gpu"] = f"{NVIDIA_SMI} is not installed"
            return
        try:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        except OSError as error:
            self._reasons["gpu"] = f"{NVIDIA_SMI}: {error}"
            return
        self._reader.start()

    def now(self) -> tuple[float | None, int | None]:
        """The last reading: the busiest GPU's utilisation in percent, and the bytes used on all."""
        latest = list(self._latest.values())
        percents = [percent for percent, _ in latest if percent is not None]
        mibs = [mib for _, mib in latest if mib is not None]
        return max(percents, default=None), round(sum(mibs) * MIB) if mibs else None

    def stop(self) -> None:
        """Terminate ``nvidia-smi``."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._reader.join(1)

    def _follow(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        with self._process.stdout as lines:
            for line in lines:
                try:
                    index, percent, mib = line.split(", ")
                    self._latest[index] = (_number(percent), _number(mib))
                except ValueError:
                    self._reasons.setdefault("gpu", f"{NVIDIA_SMI}: {line.strip()}")
        self._latest = {}


def _number(text: str) -> float | None:
    """Parse a number; None for an unknown one: "[N/A]" (partitioned GPU) or "[Not Supported]"."""
    return None if text.startswith("[") else float(text)
