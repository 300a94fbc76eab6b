"""A lost generator process makes a measurement INVALID, and no process outlives its run."""

import threading
import time
from pathlib import Path

import psutil
import pytest

from loadtest.errors import LoadTestError
from loadtest.generator.recorder import Tally
from loadtest.measure import run
from loadtest.measure.noop import noop_server
from loadtest.measure.run import generate
from loadtest.measure.validity import judge
from loadtest.scenarios import load_profile, load_scenario
from tests.tiny import SERVED_BUNDLES

BUNDLE = SERVED_BUNDLES / "cnn"
SCENARIO = load_scenario("Server", rate_per_s=40.0)
PROFILE = load_profile("smoke", duration_s=4.0, warmup_s=0.5)


def _generators() -> list[psutil.Process]:
    """The locust processes that this test process started, the master first."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "locustfile.py" in " ".join(process.cmdline())
    ]


def _worker() -> psutil.Process:
    """A generator process that the master started."""
    give_up_s = time.monotonic() + 20
    while time.monotonic() < give_up_s:
        pids = {process.pid for process in _generators()}
        workers = [process for process in _generators() if process.ppid() in pids]
        if workers:
            return workers[-1]
        time.sleep(0.05)
    raise AssertionError("no generator process was started")


def test_a_lost_process_makes_the_measurement_invalid() -> None:
    """One of two processes is killed during the load; the verdict reports its missing counts."""
    found: list[Tally] = []

    def measure(url: str) -> None:
        tally = generate(SCENARIO, url, [BUNDLE], PROFILE, processes=2, ceiling=True)
        found.append(tally)

    with noop_server() as url:
        thread = threading.Thread(target=measure, args=(url,))
        thread.start()
        worker = _worker()
        time.sleep(3.5)
        worker.kill()
        thread.join(60)
    (tally,) = found
    verdict = judge(tally, SCENARIO, PROFILE)
    assert any("1 of 2 generator processes" in reason for reason in verdict.reasons), verdict


def test_processes_of_a_run_that_is_given_up_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is aborted during the load; all of its processes end within five seconds."""

    def give_up(*_: object) -> None:
        _worker()
        raise LoadTestError("given up")

    monkeypatch.setattr(run, "_watch", give_up)
    with noop_server() as url, pytest.raises(LoadTestError, match="given up"):
        generate(SCENARIO, url, [BUNDLE], PROFILE, processes=2, ceiling=True)
    give_up_s = time.monotonic() + 5
    while left := _all_generators():
        if time.monotonic() > give_up_s:
            for process in left:
                process.kill()
            raise AssertionError(f"{len(left)} generator processes are left")
        time.sleep(0.1)


def _all_generators() -> list[psutil.Process]:
    """All generator processes, including orphaned ones."""
    here = str(Path(run.LOCUSTFILE))
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if here in (process.info["cmdline"] or []) and "--processes" in process.info["cmdline"]
    ]


def test_without_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If git is not installed, the commit is "unknown" and the measurement does not fail."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run._commit() == "unknown"


def test_users_of_an_open_loop_share_its_rate() -> None:
    """Four users together send the scenario's rate, not four times as much."""
    with noop_server() as url:
        four = SCENARIO.model_copy(update={"users": 4})
        tally = generate(four, url, [BUNDLE], PROFILE, ceiling=True)
    assert 100 < tally.sent < 230  # 40 a second for 4 seconds are 160
