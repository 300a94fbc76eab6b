"""A slow server that stalls once, so that the right latencies are known in advance.

A generator that omits the requests it could not send during the stall (coordinated omission)
measures too few long latencies.
"""

import argparse
import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import uvloop

from loadtest.measure.noop import ANSWER, Connection, noop_server, serve


class SlowConnection(Connection):
    """Answers POSTs one after the other, and none during the stall."""

    given: ClassVar[argparse.Namespace]
    due: ClassVar[deque[tuple[float, asyncio.Transport]]] = deque()
    came: ClassVar[asyncio.Event] = asyncio.Event()
    first_s: ClassVar[float] = 0.0
    free_s: ClassVar[float] = 0.0

    def answer_post(self) -> None:
        """Schedule the answer after those of earlier requests and after the stall."""
        cls, now_s = SlowConnection, time.monotonic()
        cls.first_s = cls.first_s or now_s
        cls.free_s = due_s = max(cls.free_s, now_s) + self.given.service_s
        if self.given.stall_at_s is not None:
            stall_s = cls.first_s + self.given.stall_at_s
            if due_s >= stall_s:
                due_s = max(due_s, stall_s + self.given.stall_s)
        self.due.append((due_s, self.transport))
        self.came.set()

    @classmethod
    async def answer_later(cls) -> None:
        """Write the answers when they are due, which is in the order of their requests."""
        while True:
            await cls.came.wait()
            while cls.due:
                due_s, connection = cls.due.popleft()
                # uvloop's timers count whole milliseconds, so a sleep can end slightly early.
                while (left_s := due_s - time.monotonic()) > 0:
                    await asyncio.sleep(left_s)
                connection.write(ANSWER)
            cls.came.clear()


@contextmanager
def slow_server(
    *, stall_at_s: float | None = None, stall_s: float = 1.5, service_s: float = 0.0
) -> Iterator[str]:
    """Yield the URL of a server with ``service_s`` per POST and one stall of ``stall_s``."""
    options = [f"--stall-s={stall_s}", f"--service-s={service_s}"]
    if stall_at_s is not None:
        options.append(f"--stall-at-s={stall_at_s}")
    with noop_server("tests.loadtest.slow_server", *options) as url:
        yield url


async def _serve(port: int) -> None:
    await asyncio.gather(serve(port, SlowConnection), SlowConnection.answer_later())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    for option in ("--stall-at-s", "--stall-s", "--service-s"):
        parser.add_argument(option, type=float)
    SlowConnection.given = parser.parse_args()
    uvloop.run(_serve(SlowConnection.given.port))
