"""A worker process that dies is reported and replaced."""

import ctypes
import ctypes.util
import multiprocessing
import os
import signal
import time
from collections.abc import Callable

import pytest

from export.worker import DiedError, Worker, in_one_line


@pytest.fixture(autouse=True)
def spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start workers as the commands do, not as the other tests of exports."""
    monkeypatch.setattr("export.worker.CONTEXT", multiprocessing.get_context("spawn"))


def _crash() -> None:
    ctypes.string_at(0)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _leave() -> None:
    os._exit(3)


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        (_crash, "SIGSEGV"),
        (_kill, "SIGKILL .probably out of memory"),
        (_leave, "ended with status 3"),
    ],
)
def test_a_death_is_an_error_and_the_next_call_starts_anew(
    ends: Callable[[], None], words: str
) -> None:
    """The error says how the process ended, and the next call starts a new one."""
    with Worker() as worker:
        first = worker.call(os.getpid, timeout_s=60)
        assert worker.call(os.getpid, timeout_s=60) == first != os.getpid()
        with pytest.raises(DiedError, match=words):
            worker.call(ends, timeout_s=60)
        assert worker.call(os.getpid, timeout_s=60) not in (first, os.getpid())


def test_who_does_not_answer_in_time_is_ended() -> None:
    """A process that hangs is killed and counts as dead."""
    with Worker() as worker:
        pid = worker.call(os.getpid, timeout_s=60)
        with pytest.raises(DiedError, match="no answer within 1 s"):
            worker.call(time.sleep, 600, timeout_s=0.6)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_a_function_raises_is_raised_here() -> None:
    """The exception keeps its type if it can be pickled."""
    with Worker() as worker, pytest.raises(ValueError, match="invalid literal"):
        worker.call(int, "x", timeout_s=60)


def test_the_threads_of_a_worker_sleep_while_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is set before a worker loads PyTorch, and an existing setting is kept."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with Worker() as worker:
        assert worker.call(os.getenv, "OMP_WAIT_POLICY", timeout_s=60) == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with Worker() as worker:
        assert worker.call(os.getenv, "OMP_WAIT_POLICY", timeout_s=60) == "ACTIVE"


def test_a_worker_knows_what_it_was_asked_for_and_no_more() -> None:
    """A process that only runs ONNX files does not import torch."""
    with Worker() as worker:
        worker.call(ctypes.util.find_library, "m", timeout_s=60)
        assert not worker.call(_knows_torch, timeout_s=60)


def _knows_torch() -> bool:
    import sys  # noqa: PLC0415 - asked in the worker

    return "torch" in sys.modules


def test_a_traceback_becomes_one_line() -> None:
    """It contains the first and the last line, or the type of an error without a message."""
    error = RuntimeError("It failed in the interpreter.\nTraceback:\n  line 3\nNo such type\n")
    assert in_one_line(error) == "It failed in the interpreter. ... No such type"
    assert in_one_line(RuntimeError("no answer")) == "no answer"
    assert in_one_line(MemoryError()) == "MemoryError"
