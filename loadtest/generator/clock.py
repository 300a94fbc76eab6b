"""Sleeps until a given moment with an accuracy of 0.1 ms, while other greenlets run.

gevent's own sleep can end up to a millisecond late, because its event loop (libev) waits in whole
milliseconds. The service's answers take about as long. Linux's timerfd is a file descriptor that
becomes readable at a set moment, and the event loop is notified of this at once.
"""

import ctypes
import os
import sys
import time

import gevent
from gevent.hub import get_hub

CLOCK_MONOTONIC, TFD_NONBLOCK, TFD_TIMER_ABSTIME = 1, 0o4000, 1  # Linux's uapi headers
EXPIRATIONS_BYTES = 8
READABLE = 1
NANOSECONDS = 10**9  # in a second
# Without timerfd: poll instead of sleeping when less time than this is left.
POLL_S = 0.002


class Waiter:
    """Waits with gevent's sleep, then polls the clock for the last ``POLL_S`` seconds."""

    def until(self, moment_s: float) -> None:
        """Wait until this moment of ``time.perf_counter``; other greenlets run meanwhile."""
        while (left_s := moment_s - time.perf_counter()) > 0:
            gevent.sleep(max(0.0, left_s - POLL_S))

    def close(self) -> None:
        """Release all resources."""


class TimerFile(Waiter):
    """Waits with Linux's timerfd, which uses the same clock as ``time.perf_counter``."""

    def __init__(self) -> None:
        """Open the timer's file descriptor.

        Raises:
            OSError: The system cannot create a timer.
        """
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._checked(self._libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK))
        self._hub = get_hub()
        self._readable = self._hub.loop.io(self._file, READABLE)

    def until(self, moment_s: float) -> None:
        """See ``Waiter``."""
        # Rounded up, and never 0, because 0 would disarm the timer.
        seconds, nanoseconds = divmod(max(0, int(moment_s * NANOSECONDS)) + 1, NANOSECONDS)
        # struct itimerspec: no interval, then the moment in seconds and nanoseconds.
        moment = (ctypes.c_long * 4)(0, 0, seconds, nanoseconds)
        self._checked(self._libc.timerfd_settime(self._file, TFD_TIMER_ABSTIME, moment, None))
        self._hub.wait(self._readable)
        os.read(self._file, EXPIRATIONS_BYTES)

    def close(self) -> None:
        """See ``Waiter``."""
        self._readable.close()
        os.close(self._file)

    @staticmethod
    def _checked(answer: int) -> int:
        if answer < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"timerfd: {os.strerror(number)}")
        return answer


def waiter() -> Waiter:
    """The most accurate waiter that this system supports."""
    return TimerFile() if sys.platform == "linux" else Waiter()
