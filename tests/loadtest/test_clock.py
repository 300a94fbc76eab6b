"""A waiter returns once the moment has come, never before, and lets other greenlets run."""

import sys
import time
from collections.abc import Iterator

import gevent
import pytest

from loadtest.generator.clock import TimerFile, Waiter, waiter

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="timerfd is Linux's")


@pytest.fixture(params=[pytest.param(TimerFile, marks=on_linux), Waiter])
def clock(request: pytest.FixtureRequest) -> Iterator[Waiter]:
    """Each kind of waiter."""
    made: Waiter = request.param()
    yield made
    made.close()


def test_it_never_returns_early(clock: Waiter) -> None:
    """A hundred moments are waited for, some closer together than a sleep can resolve."""
    for number in range(100):
        moment_s = time.perf_counter() + (number % 10) * 0.0004 + 0.0001
        clock.until(moment_s)
        assert time.perf_counter() >= moment_s


def test_a_moment_that_has_passed_is_not_waited_for(clock: Waiter) -> None:
    """A late dispatcher must neither lose more time nor wait forever."""
    with gevent.Timeout(5):
        clock.until(time.perf_counter() - 1)


def test_other_greenlets_run_meanwhile(clock: Waiter) -> None:
    """Answers to earlier requests are read while the next moment is awaited."""
    turns = 0

    def work() -> None:
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0.001)

    other = gevent.spawn(work)
    clock.until(time.perf_counter() + 0.1)
    other.kill()
    assert turns > 5


@on_linux
def test_the_last_nanosecond_of_a_second_is_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux accepts a moment whose nanoseconds round up to a whole second."""
    clock = TimerFile()
    with gevent.Timeout(5):
        clock.until(1 - 1e-10)
    clock.close()


@on_linux
def test_linux_has_the_exact_one_and_a_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system error raises OSError with its text, instead of waiting forever."""
    exact = waiter()
    assert isinstance(exact, TimerFile)
    exact.close()
    monkeypatch.setattr("loadtest.generator.clock.CLOCK_MONOTONIC", 99)
    with pytest.raises(OSError, match="timerfd: Invalid argument"):
        TimerFile()
