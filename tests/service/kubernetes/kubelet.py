"""Simulates the kubelet and the Service for real processes, according to a manifest.

A pod here is the service's own command with the manifest's environment. Its probes run with their
periods, timeouts and thresholds, on SIGTERM follows the grace period and then SIGKILL, and clients
are sent to pods that are ready. Other than in a cluster, paths and ports are this machine's.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from loadtest.server import free_port
from service.settings import ROOT
from tests.service.kubernetes.render import Object, find, pod_of
from tests.service.wire import Connection, CutError, find_mistake, infer

# Delay from the end of readiness until the pod gets no more clients.
PROPAGATION_S = 1.0
CLIENTS, CLIENT_TIMEOUT_S, PAUSE_S = 6, 30.0, 0.005
TRAFFIC_S = 2.0


class PodFailedError(RuntimeError):
    """The pod ended, or its startup probe failed; the message has the end of its log."""


@dataclass(frozen=True)
class Probe:
    """An HTTP probe with a success threshold of one."""

    path: str
    period_s: float
    timeout_s: float
    failures: int

    @classmethod
    def read(cls, content: Object) -> Self:
        """Read the probe of a container."""
        known = {"httpGet", "periodSeconds", "timeoutSeconds", "failureThreshold"}
        if unknown := set(content) - known:
            raise ValueError(f"a probe has {sorted(unknown)}, which is not played")
        return cls(
            content["httpGet"]["path"],
            content["periodSeconds"],
            content["timeoutSeconds"],
            content["failureThreshold"],
        )

    def succeeds(self, url: str) -> bool:
        """Whether the path answers with 2xx or 3xx in time, on a new connection."""
        try:
            answer = httpx.get(url + self.path, timeout=self.timeout_s)
        except httpx.HTTPError:
            return False
        return answer.is_success or answer.is_redirect


@dataclass(frozen=True)
class PodManifest:
    """The fields of an overlay that the kubelet uses."""

    command: Sequence[str]
    environment: dict[str, str]
    startup: Probe
    readiness: Probe
    liveness: Probe
    pre_stop_s: float
    grace_s: float
    min_ready_s: float

    @classmethod
    def read(cls, objects: list[Object]) -> Self:
        """Read the pod of an overlay's Deployment."""
        container: Object = pod_of(objects)[1]["containers"][0]
        return cls(
            container["command"],
            # A key from a missing optional Secret sets no variable.
            {one["name"]: one["value"] for one in container["env"] if "value" in one},
            Probe.read(container["startupProbe"]),
            Probe.read(container["readinessProbe"]),
            Probe.read(container["livenessProbe"]),
            _pre_stop_s(container),
            pod_of(objects)[1]["terminationGracePeriodSeconds"],
            find(objects, "Deployment")["spec"]["minReadySeconds"],
        )


def _pre_stop_s(container: Object) -> float:
    hook: dict[str, Any] = container.get("lifecycle", {}).get("preStop", {"sleep": {"seconds": 0}})
    return float(hook["sleep"]["seconds"])


class Pod:
    """One pod: its process, its probes, and whether it receives clients."""

    def __init__(self, manifest: PodManifest, name: str, folder: Path, bundles: Path) -> None:
        """Prepare a pod whose files go to a folder."""
        self.manifest, self.name = manifest, name
        self._folder, self._bundles = folder / name, bundles
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        places = {"bentoml": f"{sys.executable} -m bentoml", "0.0.0.0": "127.0.0.1"}  # noqa: S104
        places["3000"] = str(port)
        self._command = " ".join(places.get(word, word) for word in manifest.command).split(" ")
        self._process: subprocess.Popen[bytes] | None = None
        self._ends = threading.Event()
        self._is_ready, self._unready_since_s = False, float("-inf")
        self.start_s = 0.0
        self.restarts = 0

    @property
    def home(self) -> Path:
        """A home directory that does not exist, as in the image."""
        return self._folder / "home"

    @property
    def is_ready(self) -> bool:
        """Whether the readiness probe succeeds."""
        return self._is_ready

    @property
    def is_routed(self) -> bool:
        """Whether clients are sent here, including a moment after readiness has ended."""
        return self._is_ready or time.monotonic() - self._unready_since_s < PROPAGATION_S

    def start(self) -> None:
        """Start the process, wait for the startup probe, and begin with the other two.

        Raises:
            PodFailedError: The process ended, or the probe failed too often.
        """
        self._folder.mkdir()
        began_s = time.monotonic()
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=os.environ
                | self.manifest.environment
                | {
                    "INFERENCE_BUNDLES": str(self._bundles),
                    "BENTOML_HOME": str(self._folder / "bentoml"),
                    "BENTOML_DO_NOT_TRACK": "True",
                    "HOME": str(self.home),
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        for _ in range(self.manifest.startup.failures):
            if self.manifest.startup.succeeds(self.url):
                break
            if self._process.poll() is not None:
                raise PodFailedError(f"{self.name} ended: {self._log_end()}")
            time.sleep(self.manifest.startup.period_s)
        else:
            self.kill()
            raise PodFailedError(f"{self.name}: the startup probe gave up: {self._log_end()}")
        self.start_s = time.monotonic() - began_s
        self._repeat(self.manifest.readiness, self._set_ready)
        self._repeat(self.manifest.liveness, self._set_live)

    def delete(self) -> tuple[float, bool]:
        """Stop the pod as the kubelet does.

        Returns:
            Seconds from the deletion to the end of the process, and whether it had to be killed.
        """
        assert self._process is not None
        began_s = time.monotonic()
        time.sleep(self.manifest.pre_stop_s)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(max(began_s + self.manifest.grace_s - time.monotonic(), 0))
            is_killed = False
        except subprocess.TimeoutExpired:
            is_killed = True
        took_s = time.monotonic() - began_s
        self.kill()
        return took_s, is_killed

    def kill(self) -> None:
        """End the probes and all remaining processes of the pod."""
        self._ends.set()
        if self._is_ready:
            self._is_ready, self._unready_since_s = False, time.monotonic()
        assert self._process is not None
        # Before their parent ends: afterwards they could not be found.
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def memory_bytes(self) -> int:
        """Total resident memory of the pod's processes; shared pages count once per process."""
        return sum(process.memory_info().rss for process in self._processes())

    def _processes(self) -> list[psutil.Process]:
        """The process and its children, which BentoML starts in sessions of their own."""
        assert self._process is not None
        if self._process.poll() is not None:
            return []
        main = psutil.Process(self._process.pid)
        return [main, *main.children(recursive=True)]

    def _repeat(self, probe: Probe, report: Callable[[int], None]) -> None:
        """Probe in a thread until the pod ends; report the number of failures in a row."""

        def run() -> None:
            failures = 0
            while not self._ends.is_set():
                failures = 0 if probe.succeeds(self.url) else failures + 1
                report(failures)
                self._ends.wait(probe.period_s)

        threading.Thread(target=run, daemon=True).start()

    def _set_ready(self, failures: int) -> None:
        if failures == 0:
            self._is_ready = True
        elif self._is_ready and failures >= self.manifest.readiness.failures:
            self._is_ready, self._unready_since_s = False, time.monotonic()

    def _set_live(self, failures: int) -> None:
        if failures == self.manifest.liveness.failures:
            self.restarts += 1

    def _log_end(self) -> str:
        lines = (self._folder / "log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-15:])


@dataclass
class Traffic:
    """Clients that send requests to ready pods until stopped, and verify the answers."""

    pods: list[Pod]
    answers: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    _ends: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Start the clients."""
        self._threads = [
            threading.Thread(target=self._send_until_ended, args=(number,), daemon=True)
            for number in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the clients after their in-flight requests."""
        self._ends.set()
        for thread in self._threads:
            thread.join(2 * CLIENT_TIMEOUT_S)

    def _send_until_ended(self, number: int) -> None:
        """Send requests; clients of even numbers keep a connection, the others one request each."""
        sent = 0
        while not self._ends.is_set():
            routed = [pod for pod in self.pods if pod.is_routed]
            if not routed:
                self._lose("no pod is ready")
                self._ends.wait(1)
                continue
            pod = random.choice(routed)  # noqa: S311 - spreads requests, as a Service does
            try:
                with Connection(pod.url, timeout_s=CLIENT_TIMEOUT_S) as connection:
                    sent = self._send_on(connection, pod, number, sent)
            except (CutError, OSError) as error:
                self._lose(f"client {number} at {pod.name}: {error!r}")
                self._ends.wait(0.2)

    def _send_on(self, connection: Connection, pod: Pod, number: int, sent: int) -> int:
        """Use a connection until the service closes it, or for one request."""
        while not self._ends.is_set():
            position = number + sent
            connection.send(infer("cnn", 1, position))
            answer = connection.receive()
            sent += 1
            if mistake := find_mistake(answer, "cnn", 1, position):
                self._lose(f"client {number} at {pod.name}: {mistake}")
            else:
                with self._lock:
                    self.answers[pod.name] = self.answers.get(pod.name, 0) + 1
            self._ends.wait(PAUSE_S)
            if number % 2 or answer.headers.get("connection", "").lower() == "close":
                break
        return sent

    def _lose(self, why: str) -> None:
        with self._lock:
            self.lost.append(why)


@dataclass(frozen=True)
class Rollout:
    """The results of replacing one pod by another under traffic."""

    start_s: float
    second_start_s: float
    answers: int
    answers_while_stopping: int
    lost: list[str]
    stop_s: float
    grace_s: float
    is_killed: bool
    restarts: int
    memory_bytes: int


def roll_out(manifest: PodManifest, folder: Path, bundles: Path) -> Rollout:
    """Start a pod, send traffic, start a second pod, and delete the first one once that is ready.

    Raises:
        PodFailedError: A pod did not start.
    """
    old, new = (Pod(manifest, name, folder, bundles) for name in ("old", "new"))
    try:
        old.start()
        _wait_until_ready(old)
        with Traffic([old]) as traffic:
            time.sleep(TRAFFIC_S)
            new.start()
            _wait_until_ready(new)
            traffic.pods.append(new)
            time.sleep(max(TRAFFIC_S, manifest.min_ready_s))
            memory_bytes = old.memory_bytes()
            before = traffic.answers.get(old.name, 0)
            stop_s, is_killed = old.delete()
            while_stopping = traffic.answers[old.name] - before
            time.sleep(TRAFFIC_S)
    finally:
        for pod in (old, new):
            if pod.start_s:
                pod.kill()
    return Rollout(
        start_s=old.start_s,
        second_start_s=new.start_s,
        answers=sum(traffic.answers.values()),
        answers_while_stopping=while_stopping,
        lost=traffic.lost,
        stop_s=stop_s,
        grace_s=manifest.grace_s,
        is_killed=is_killed,
        restarts=old.restarts + new.restarts,
        memory_bytes=memory_bytes,
    )


def _wait_until_ready(pod: Pod) -> None:
    """Wait for the first success of the readiness probe, which follows that of the startup probe.

    Raises:
        PodFailedError: The probe did not succeed within a minute.
    """
    until_s = time.monotonic() + 60
    while not pod.is_ready:
        if time.monotonic() > until_s:
            raise PodFailedError(f"{pod.name} started and is not ready")
        time.sleep(0.1)
