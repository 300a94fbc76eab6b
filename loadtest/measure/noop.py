"""A server that does nothing, to measure what a load generator can do at most; and a slow one.

It answers every POST at once with the same JSON. Told to take time for a request, or to stall, it
becomes the server of which everyone knows which latencies must be found: a generator that leaves
out what it could not send during the stall (coordinated omission) finds too few long ones. It
reads what HTTP clients here send: requests with a content-length.
"""

import argparse
import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvloop

from loadtest.errors import LoadTestError
from loadtest.server import REPOSITORY, free_port

START_TIMEOUT_S = 20.0
BACKLOG = 4096
HEAD_END = b"\r\n\r\n"
READY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)


class NoopError(LoadTestError):
    """The no-op server did not start."""


class Noop:
    """What the connections share: what is answered, and one queue of answers not due yet.

    The stall holds answers back: what would be answered within it is answered at its end, all at
    once.
    """

    def __init__(
        self, body: bytes, service_s: float, stall_at_s: float | None, stall_s: float
    ) -> None:
        """See ``noop_server``."""
        kind = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        self.answer = b"%bContent-Length: %d\r\n\r\n%b" % (kind, len(body), body)
        self.at_once = not service_s and stall_at_s is None
        self._service_s, self._stall_at_s, self._stall_s = service_s, stall_at_s, stall_s
        self._due: deque[tuple[float, asyncio.Transport]] = deque()
        self._came, self._first_s, self._free_s = asyncio.Event(), 0.0, 0.0

    def later(self, connection: asyncio.Transport) -> None:
        """Answer a POST when its turn has come."""
        now_s = time.monotonic()
        self._first_s = self._first_s or now_s
        self._free_s = due_s = max(self._free_s, now_s) + self._service_s
        if self._stall_at_s is not None:
            stall_s = self._first_s + self._stall_at_s
            if due_s >= stall_s:
                due_s = max(due_s, stall_s + self._stall_s)
        self._due.append((due_s, connection))
        self._came.set()

    async def answer_later(self) -> None:
        """Give the answers that became due, for ever; they become due in the order they came."""
        while True:
            await self._came.wait()
            while self._due:
                due_s, connection = self._due.popleft()
                # uvloop counts in milliseconds, so that a sleep can end a fraction of one early.
                while (left_s := due_s - time.monotonic()) > 0:
                    await asyncio.sleep(left_s)
                connection.write(self.answer)
            self._came.clear()


class Connection(asyncio.Protocol):
    """Reads requests, however they are cut."""

    transport: asyncio.Transport

    def __init__(self, noop: Noop) -> None:
        self._noop, self._received = noop, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self.transport = transport  # type: ignore[assignment]  # TCP's is one

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self._received += data
        while (end := self._received.find(HEAD_END)) >= 0:
            head = self._received[:end]
            length = _LENGTH.search(head)
            end += len(HEAD_END) + (int(length[1]) if length else 0)
            if len(self._received) < end:
                return
            self._received = self._received[end:]
            if not head.startswith(b"POST "):
                self.transport.write(READY if head.startswith(b"GET /readyz ") else NOT_FOUND)
            elif self._noop.at_once:
                self.transport.write(self._noop.answer)
            else:
                self._noop.later(self.transport)


@contextmanager
def noop_server(
    body: bytes = b"{}",
    *,
    stall_at_s: float | None = None,
    stall_s: float = 1.5,
    service_s: float = 0.0,
) -> Iterator[str]:
    """Run the server in a process of its own, on a free port of the loopback interface.

    Args:
        body: What every POST is answered; JSON of less than 100 kB.
        stall_at_s: When it stalls, in seconds after the first POST; None for never.
        stall_s: Seconds of a stall.
        service_s: Seconds that each POST takes, one after the other.

    Yields:
        Its URL, once it listens.

    Raises:
        NoopError: It did not start.
    """
    port = free_port()
    command: list[str | bytes] = [sys.executable, "-m", "loadtest.measure.noop"]
    command += ["--port", str(port), "--stall-s", str(stall_s), "--service-s", str(service_s)]
    command.append(b"--body=" + body)
    if stall_at_s is not None:
        command += ["--stall-once-at-s", str(stall_at_s)]
    # A group of its own: a Ctrl-C in the terminal ends the load, which ends the server.
    with subprocess.Popen(command, cwd=REPOSITORY, process_group=0) as process:
        try:
            _wait_until_listening(process, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _wait_until_listening(process: subprocess.Popen[bytes], port: int) -> None:
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < give_up_s:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.02)
    raise NoopError(f"the no-op server did not start on port {port} (status {process.returncode})")


async def _serve(port: int, noop: Noop) -> None:
    create = asyncio.get_running_loop().create_server
    server = await create(lambda: Connection(noop), "127.0.0.1", port, backlog=BACKLOG)
    async with server:
        await noop.answer_later()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.measure.noop", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="of the loopback interface")
    parser.add_argument("--body", default="{}", help="the JSON that every POST is answered")
    parser.add_argument("--service-s", type=float, default=0.0, help="that each POST takes")
    parser.add_argument("--stall-once-at-s", type=float, help="counted from the first POST")
    parser.add_argument("--stall-s", type=float, default=1.5, help="nothing is answered so long")
    given = parser.parse_args(arguments)
    noop = Noop(os.fsencode(given.body), given.service_s, given.stall_once_at_s, given.stall_s)
    uvloop.run(_serve(given.port, noop))


if __name__ == "__main__":
    main()
