"""A server that does nothing, to measure what a load generator can do at most; and a slow one.

It answers every POST at once with the same JSON. Told to take time for a request, or to stall, it
becomes the server of which everyone knows which latencies must be found: a generator that leaves
out what it could not send during the stall (coordinated omission) finds too few long ones.
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
from functools import lru_cache, partial
from typing import NamedTuple

import uvloop

from loadtest.errors import LoadTestError
from loadtest.server import REPOSITORY, free_port

START_TIMEOUT_S = 20.0
LONGEST_HEAD = 65_536  # bytes
REMEMBERED = 1024
BACKLOG = 4096
HEAD_END, LINE_END = b"\r\n\r\n", b"\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
READY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
BAD = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*(?:\r|$)")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*\bchunked[ \t]*(?:\r|$)")
_CLOSE = re.compile(rb"\r\nconnection:[^\r]*\bclose\b")
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue")


class NoopError(LoadTestError):
    """The no-op server did not start."""


class Head(NamedTuple):
    """What matters of a request's head.

    Attributes:
        answer: What it gets; None for what every POST does.
        length: Its body's, in bytes; None if chunked.
        last: Whether the connection is closed behind its answer.
        expects: Whether its body comes only after a "100 Continue".
    """

    answer: bytes | None
    length: int | None
    last: bool
    expects: bool


@lru_cache(REMEMBERED)
def read_head(head: bytes) -> Head:
    """Read a head, or recognise it: a load's are all the same.

    Raises:
        ValueError: It is none of HTTP/1.
    """
    line, small = head.split(LINE_END, 1)[0], head.lower()
    method, path, version = line.split(b" ")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise ValueError(f"not HTTP/1: {line!r}")
    other = READY if (method, path) == (b"GET", b"/readyz") else NOT_FOUND
    length = _LENGTH.search(small)
    return Head(
        answer=None if method == b"POST" else other,
        length=None if _CHUNKED.search(small) else int(length[1]) if length else 0,
        last=version == b"HTTP/1.0" or _CLOSE.search(small) is not None,
        expects=_EXPECT.search(small) is not None,
    )


class Noop:
    """What the connections share: what is answered, and one queue of answers not due yet.

    The stall holds answers back: what would be answered within it is answered at its end, all at
    once.
    """

    def __init__(
        self,
        body: bytes,
        service_s: float = 0.0,
        stall_at_s: float | None = None,
        stall_s: float = 0.0,
    ) -> None:
        """See ``noop_server``."""
        kind = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        self.answer = b"%bContent-Length: %d\r\n\r\n%b" % (kind, len(body), body)
        self.at_once = not service_s and stall_at_s is None
        self._service_s, self._stall_at_s, self._stall_s = service_s, stall_at_s, stall_s
        self._due: deque[tuple[float, Connection, bytes, bool]] = deque()
        self._came, self._first_s, self._free_s = asyncio.Event(), 0.0, 0.0

    def later(self, connection: "Connection", answer: bytes, last: bool) -> None:
        """Give an answer when its turn has come."""
        now_s = time.monotonic()
        if answer is self.answer:
            self._first_s = self._first_s or now_s
            self._free_s = max(self._free_s, now_s) + self._service_s
        due_s = max(self._free_s, now_s)
        if self._stall_at_s is not None and self._first_s:
            stall_s = self._first_s + self._stall_at_s
            if due_s >= stall_s:
                due_s = max(due_s, stall_s + self._stall_s)
        self._due.append((due_s, connection, answer, last))
        self._came.set()

    async def answer_later(self) -> None:
        """Give the answers that became due, for ever; they become due in the order they came."""
        while True:
            while self._due:
                wait_s = self._due[0][0] - time.monotonic()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                else:
                    _, connection, answer, last = self._due.popleft()
                    connection.give(answer, last)
            self._came.clear()
            await self._came.wait()


class Connection(asyncio.Protocol):
    """Reads requests however they are cut, and answers in their order."""

    transport: asyncio.Transport

    def __init__(self, noop: Noop) -> None:
        self._noop = noop
        self._rest = b""  # what came of a head or of a chunk's line
        self._skip = 0  # bytes of a body that are still to come
        self._head: Head | None = None  # of the request whose body is being read
        self._trailers = False  # the last chunk was there
        self._over = False  # no further request counts

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self.transport = transport  # type: ignore[assignment]  # TCP's is one

    def data_received(self, data: bytes) -> None:
        """Read on; answer each request that is whole."""
        if self._over:
            return
        try:
            answers = self._requests(self._rest + data if self._rest else data)
        except ValueError:
            answers, self._over = [(BAD, True)], True
        if not self._noop.at_once:
            for answer, last in answers:
                self._noop.later(self, answer, last)
        elif answers:
            self.give(b"".join(answer for answer, _ in answers), answers[-1][1])

    def give(self, answer: bytes, last: bool) -> None:
        """Write an answer, and close behind the last one."""
        if not self.transport.is_closing():
            self.transport.write(answer)
            if last:
                self.transport.close()

    def _requests(self, data: bytes) -> list[tuple[bytes, bool]]:
        """The answers to all requests that end in these bytes; keeps what is left of them."""
        answers: list[tuple[bytes, bool]] = []
        at, end = 0, len(data)
        while not self._over:
            if self._skip:
                step = min(self._skip, end - at)
                at, self._skip = at + step, self._skip - step
                if self._skip:
                    break
            if self._head is None:
                stop = data.find(HEAD_END, at)
                if stop < 0:
                    break
                self._begin(data[at:stop])
                at = stop + len(HEAD_END)
            elif self._head.length is None:
                stop = data.find(LINE_END, at)
                if stop < 0:
                    break
                self._line(data[at:stop])
                at = stop + len(LINE_END)
            else:
                self._end(answers)
        self._rest = data[at:]
        if len(self._rest) > LONGEST_HEAD:
            raise ValueError("a head without an end")
        return answers

    def _begin(self, head: bytes) -> None:
        self._head = read_head(head)
        self._skip, self._trailers = self._head.length or 0, False
        if self._head.expects:
            self.transport.write(CONTINUE)

    def _line(self, line: bytes) -> None:
        """A line between chunks: the next one's length, or a trailer; the empty one is the last."""
        if not self._trailers:
            size = int(line.split(b";")[0], 16)
            self._trailers = size == 0
            self._skip = size + len(LINE_END) if size else 0
        elif not line and self._head is not None:
            self._head = self._head._replace(length=0)

    def _end(self, answers: list[tuple[bytes, bool]]) -> None:
        """The request is whole."""
        if self._head is not None:
            answers.append((self._head.answer or self._noop.answer, self._head.last))
            self._over = self._head.last
            self._head = None


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
    command: list[str | bytes] = [
        sys.executable,
        "-m",
        "loadtest.measure.noop",
        "--port",
        str(port),
    ]
    command += ["--stall-s", str(stall_s), "--service-s", str(service_s)]
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
    add = partial(parser.add_argument, type=float)
    add("--service-s", default=0.0, help="what each POST takes, one after the other")
    add("--stall-once-at-s", help="from then on, counted from the first POST, answer nothing")
    add("--stall-s", default=1.5, help="for so long")
    given = parser.parse_args(arguments)
    noop = Noop(os.fsencode(given.body), given.service_s, given.stall_once_at_s, given.stall_s)
    uvloop.run(_serve(given.port, noop))


if __name__ == "__main__":
    main()
