"""A worker whose models answer wrongly is replaced, and the main process opens no model."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.service.processes import main_process, worker_processes
from tests.service.wire import (
    PATIENCE_S,
    TRANSPORTS,
    Connection,
    CutError,
    find_mistake,
    infer,
    on_both_transports,
    read_metrics,
    running_services,
    wait_for,
)

INJECTED = Path(__file__).with_name("injected")
REPLACED_WITHIN_S = 30.0
CLIENTS = 4
FAILURES = "inference_golden_check_failures_total"
EXITS = 'inference_worker_exits_total{reason="golden_check"}'


@dataclass(frozen=True)
class Injected:
    """A running service and the files of ``injected/sitecustomize.py``."""

    url: str
    spoilt_pid: Path
    session_pids: Path

    def spoil(self, pid: int) -> None:
        """Make this process answer wrongly from now on."""
        written = self.spoilt_pid.with_suffix(".written")
        written.write_text(str(pid))
        written.rename(self.spoilt_pid)

    @property
    def was_spoilt(self) -> bool:
        """Whether any answer was made wrong."""
        return self.spoilt_pid.with_suffix(".spoilt").exists()

    def workers(self) -> set[int]:
        """The pids of the live workers."""
        return {worker.pid for worker in worker_processes(self.url)}


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Injected]]:
    """A service with two workers on each transport."""
    folder = tmp_path_factory.mktemp("wrong_worker")
    settings = on_both_transports(WORKERS="2", GOLDEN_CHECK_S="0.3")
    files = {name: (folder / f"{name}.pid", folder / f"{name}.sessions") for name in settings}
    for name, (spoilt_pid, session_pids) in files.items():
        settings[name] |= {
            "PYTHONPATH": str(INJECTED),
            "INJECTED_SPOILT_PID": str(spoilt_pid),
            "INJECTED_SESSION_PIDS": str(session_pids),
        }
    with running_services(folder, settings) as urls:
        yield {name: Injected(urls[name], *files[name]) for name in urls}


@pytest.fixture(scope="module", params=TRANSPORTS)
def service(request: pytest.FixtureRequest, services: dict[str, Injected]) -> Injected:
    """The service on one transport."""
    return services[request.param]


def test_the_main_process_opens_no_model(service: Injected) -> None:
    """Only workers open ONNX sessions, not the process that restarts them."""

    def opened() -> set[int]:
        return {int(line) for line in service.session_pids.read_text().split()}

    # The service is ready with its first worker; the second one may still be opening its models.
    assert wait_for(lambda: service.workers() <= opened(), REPLACED_WITHIN_S), opened()
    assert main_process(service.url).pid not in opened()


@dataclass
class Load:
    """Clients that send each request over a new connection until stopped."""

    url: str
    mistakes: list[tuple[float, str]] = field(default_factory=list)
    right: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Send requests; record a wrong answer with the time at which its request began."""
        while not self.stop.is_set():
            begun_s = time.monotonic()
            try:
                with Connection(self.url) as connection:
                    connection.send(infer("cnn"))
                    answer = connection.receive()
            except (CutError, OSError):  # a connection to the worker that ends
                continue
            if answer.status_code == 503:
                continue
            if mistake := find_mistake(answer, "cnn"):
                self.mistakes.append((begun_s, mistake))
            else:
                self.right += 1
            time.sleep(0.005)


def test_a_worker_that_answers_wrongly_is_replaced(service: Injected) -> None:
    """It ends when a golden check fails and answers nothing more; the other worker stays."""
    before, load = service.workers(), Load(service.url)
    assert len(before) == 2
    spoilt, honest = sorted(before)
    threads = [threading.Thread(target=load.run, daemon=True) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        service.spoil(spoilt)
        assert wait_for(lambda: _failures(service.url) > 0, PATIENCE_S)
        detected_s = time.monotonic()
        assert service.was_spoilt
        replaced = wait_for(
            lambda: spoilt not in service.workers() and len(service.workers()) == 2,
            REPLACED_WITHIN_S,
        )
        assert replaced, (
            f"{spoilt} was not replaced: {service.workers()}; {_tell(load, detected_s)}"
        )
        assert wait_for(lambda: _all_ready(service.url), REPLACED_WITHIN_S)
        assert service.workers() & before == {honest}
        time.sleep(0.5)  # both workers answer the load
    finally:
        load.stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not [begun_s for begun_s, _ in load.mistakes if begun_s > detected_s], _tell(
        load, detected_s
    )
    assert load.right > CLIENTS
    assert read_metrics(service.url).get(EXITS) == 1


def _failures(url: str) -> float:
    samples = read_metrics(url).items()
    return sum(value for name, value in samples if name.startswith(FAILURES))


def _all_ready(url: str) -> bool:
    """Whether twenty new connections, which reach every worker, all report readiness."""
    return all(httpx.get(f"{url}/readyz", timeout=PATIENCE_S).is_success for _ in range(20))


def _tell(load: Load, detected_s: float) -> str:
    late = [(begun_s - detected_s, mistake) for begun_s, mistake in load.mistakes]
    after = [f"{seconds:+.2f} s: {mistake}" for seconds, mistake in late if seconds > 0]
    return f"{len(after)} wrong answers after the detection, {load.right} right: {after[:5]}"
