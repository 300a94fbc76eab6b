"""Waiting until a moment, to a tenth of a millisecond, while gevent goes on with other work.

gevent's own sleep ends up to a millisecond late, for the event loop beneath it (libev) counts its
waits in whole milliseconds: as long as an answer of the service takes. Linux's timerfd is a file
that becomes readable at the moment it was set to, which the loop hears of at once.
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
# Without timerfd: nearer than this, poll instead of sleeping.
POLL_S = 0.002


class Waiter:
    """By gevent's sleep, and by asking again and again where that is not exact enough."""

    def until(self, moment_s: float) -> None:
        """Return not before this moment of ``time.perf_counter``; other greenlets run."""
        while (left_s := moment_s - time.perf_counter()) > 0:
            gevent.sleep(max(0.0, left_s - POLL_S))

    def close(self) -> None:
        """Give back what it holds."""


class TimerFile(Waiter):
    """By Linux's timerfd, whose clock is that of ``time.perf_counter``."""

    def __init__(self) -> None:
        """Open it.

        Raises:
            OSError: The system refuses one.
        """
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._checked(self._libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK))
        self._hub = get_hub()
        self._readable = self._hub.loop.io(self._file, READABLE)

    def until(self, moment_s: float) -> None:
        """See ``Waiter``."""
        # Rounded up, and never 0, which would stop the timer.
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
    """The most exact one that this system has."""
    return TimerFile() if sys.platform == "linux" else Waiter()
