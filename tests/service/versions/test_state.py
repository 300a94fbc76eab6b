"""The files of a roll-out are complete at any time, and list the live workers."""

import json
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from service.versions.state import (
    DesiredState,
    Record,
    ReportFile,
    RolloutError,
    RolloutFolder,
    WorkerReport,
    find_rollouts,
)


def _state(generation: int = 1) -> DesiredState:
    return DesiredState(generation=generation, stable="a", reason="test", changed_s=0.0)


@pytest.fixture
def folder(tmp_path: Path) -> RolloutFolder:
    """The folder of a model with a desired state."""
    (tmp_path / "cnn").mkdir()
    found = RolloutFolder(tmp_path / "cnn")
    found.write_desired(_state())
    return found


def test_what_is_written_is_read(folder: RolloutFolder) -> None:
    """Desired state and record can be read; without a record the desired state is used."""
    assert folder.read_desired() == folder.starting_state() == _state()
    assert folder.read_record() is None
    with folder.lock():
        folder.write_record(Record(live=_state(7), live_s=1.0))
    assert folder.starting_state() == _state(7)
    assert [found.name for found in find_rollouts(folder.folder.parent)] == ["cnn"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ('{"schema_version": 2}', "has schema version 2, this code reads 1"),
        (json.dumps({"generation": 0}), "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    folder: RolloutFolder, content: str, words: str
) -> None:
    """The error names a file that was edited by hand."""
    folder.desired_path.write_text(content)
    with pytest.raises(RolloutError, match=rf"rollout\.json {words}"):
        folder.read_desired()


def test_a_missing_file_says_how_to_begin(tmp_path: Path) -> None:
    """The error names the command that creates the file."""
    with pytest.raises(RolloutError, match=r"service\.rollout stage cnn BUNDLE"):
        RolloutFolder(tmp_path / "cnn").read_desired()


def test_a_version_has_one_role() -> None:
    """Neither a command nor a hand-edited file can make the stable version its own canary."""
    with pytest.raises(RolloutError, match="two of the roles"):
        _state().successor("test", canary={"version": "a", "share": 0.1})
    with pytest.raises(RolloutError, match="less than or equal to 1"):
        _state().successor("test", canary={"version": "b", "share": 1.5})


def _hold_report(path: Path, ready: Connection) -> None:
    report = WorkerReport(pid=os.getpid(), service=1, workers=1)
    file = ReportFile(RolloutFolder(path), report)
    ready.send(file.report.pid)
    time.sleep(60)


def test_a_killed_worker_is_found_dead(folder: RolloutFolder) -> None:
    """Its lock is released at its death, and its report is consumed once."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_hold_report, args=(folder.folder, theirs)
    )
    process.start()
    pid = ours.recv()
    assert [report.pid for report in folder.live_reports().values()] == [pid]
    with folder.lock():
        assert folder.take_dead_reports() == []
    os.kill(pid, signal.SIGKILL)
    process.join()
    assert folder.live_reports() == {}
    with folder.lock():
        assert [report.pid for report in folder.take_dead_reports()] == [pid]
        assert folder.take_dead_reports() == []


def test_a_worker_that_stops_leaves_no_report(folder: RolloutFolder) -> None:
    """An orderly stop is not reported as a death."""
    file = ReportFile(folder, WorkerReport(pid=os.getpid(), service=1, workers=1))
    assert len(folder.live_reports()) == 1
    file.remove()
    with folder.lock():
        assert folder.take_dead_reports() == []
    assert list(folder.workers.iterdir()) == []
