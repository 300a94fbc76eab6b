"""Connections of a cheap client, and what their answers amount to.

A request is one write of bytes made before, an answer is split by hand, and a body that was found
right once is recognised again.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

Judge = Callable[[Mapping[str, str], bytes], str | None]
"""What is wrong with an answer of 200 (headers in small letters, body); None if nothing."""

PATIENCE_S = 20.0  # for the answers that are still missing at the end
# Well below the five seconds after which BentoML's server closes a connection that is not used.
LONGEST_IDLE_S = 2.0
REMEMBERED = 256
EXAMPLES = 3
OK, TOO_MANY = 200, 429
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")


class Target(NamedTuple):
    """Who is asked what.

    Attributes:
        url: E.g. http://127.0.0.1:3000.
        request: All bytes of the request.
        judge: Tells whether an answer is right.
    """

    url: str
    request: bytes
    judge: Judge


@dataclass
class Load:
    """What came of a load; latencies count from when a request was due, not from when it was sent.

    Attributes:
        seconds: In which requests were sent.
        accepted_s: Latency of each right answer.
        refused_s: Latency of each answer of 429.
        other: Other statuses, and connections that were closed in place of an answer.
        wrong: Answers of 200 that are wrong; ``examples`` says how.
        retry_after_s: What refusals said; 0 for one that said nothing.
        late_s: For each request, how much later than due it was sent.
    """

    seconds: float
    asked: int = 0
    accepted_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    examples: list[str] = field(default_factory=list)
    retry_after_s: set[int] = field(default_factory=set)
    late_s: list[float] = field(default_factory=list)

    def add(self, further: "Load") -> None:
        """Take another load's figures in."""
        self.seconds += further.seconds
        self.asked += further.asked
        self.accepted_s += further.accepted_s
        self.refused_s += further.refused_s
        self.other += further.other
        self.wrong += further.wrong
        self.examples = (self.examples + further.examples)[:EXAMPLES]
        self.retry_after_s |= further.retry_after_s
        self.late_s += further.late_s


class Connection(asyncio.Protocol):
    """One request at a time."""

    transport: asyncio.Transport

    def __init__(self, pool: "Pool") -> None:
        self._pool, self._received, self._due_s = pool, bytearray(), 0.0
        self.waiting, self.closed, self.freed_s = False, False, time.perf_counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self.transport = transport  # type: ignore[assignment]  # TCP's is one

    def ask(self, due_s: float) -> None:
        """Send the request; its latency counts from when it was due (``time.perf_counter``)."""
        self._due_s, self.waiting = due_s, True
        self._pool.load.asked += 1
        self.transport.write(self._pool.target.request)

    def data_received(self, data: bytes) -> None:
        """Collect an answer."""
        self._received += data
        answer = split(self._received)
        if answer is not None:
            self.freed_s = time.perf_counter()
            self._received = bytearray()
            self.waiting = False
            self._pool.answered(answer, self.freed_s - self._due_s)
            self._pool.freed(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed; an answer that was due will not come."""
        self.closed = True
        if self.waiting:
            self.waiting = False
            self._pool.load.other[f"closed before an answer ({exc!r})"] += 1
        self._pool.lost(self)


class Answer(NamedTuple):
    """One answer of HTTP/1.1; its head in small letters."""

    status: int
    head: bytes
    body: bytes

    @property
    def headers(self) -> dict[str, str]:
        """By name."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {name: value for name, _, value in (line.partition(": ") for line in lines)}


def split(received: bytes | bytearray) -> Answer | None:
    """The answer in these bytes, or None as long as it is not whole; they hold no second one."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(received[:end]).lower()
    found = LENGTH.search(head)
    if found is None:
        raise ValueError(f"an answer without content-length: {head!r}")
    if len(received) < end + 4 + int(found[1]):
        return None
    return Answer(int(head[9:12]), head, bytes(received[end + 4 :]))


class Pool:
    """Open connections, and the figures of their answers."""

    def __init__(
        self, target: Target, load: Load, freed: Callable[[Connection], None], most: int
    ) -> None:
        self.target, self.load, self._on_freed, self._most = target, load, freed, most
        self.connections: list[Connection] = []
        self._idle: list[Connection] = []
        self._freed = asyncio.Event()
        self._right: set[bytes] = set()

    async def fill(self) -> None:
        """Open as many as there may be."""
        while len(self.connections) < self._most:
            self._idle.append(await self._open())

    async def _open(self) -> Connection:
        where, loop = urlsplit(self.target.url), asyncio.get_running_loop()
        _, made = await loop.create_connection(
            lambda: Connection(self), str(where.hostname), where.port or 80
        )
        self.connections.append(made)
        return made

    async def idle(self) -> Connection:
        """One that is free: that which was used last.

        Raises:
            TimeoutError: None became free for so long as answers are waited for.
        """
        give_up_s = time.perf_counter() + PATIENCE_S
        while (left_s := give_up_s - time.perf_counter()) > 0:
            self._freed.clear()
            while self._idle:
                found = self._idle.pop()
                if found.closed:
                    continue
                if time.perf_counter() - found.freed_s < LONGEST_IDLE_S:
                    return found
                found.transport.close()  # the server may be about to do so
                self.connections.remove(found)
            if len(self.connections) < self._most:
                return await self._open()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._freed.wait(), left_s)
        raise TimeoutError(
            f"{self._most} connections wait for answers, and none came for {PATIENCE_S:g} s"
        )

    def freed(self, connection: Connection) -> None:
        """Take a connection back that may ask again."""
        if not connection.transport.is_closing():
            self._idle.append(connection)
        self._freed.set()
        self._on_freed(connection)

    def lost(self, connection: Connection) -> None:
        """Leave room for another connection in place of one that was closed."""
        if connection in self.connections:
            self.connections.remove(connection)
        self._freed.set()

    def answered(self, answer: Answer, seconds: float) -> None:
        """Count an answer that took so long."""
        if answer.status == TOO_MANY:
            self.load.refused_s.append(seconds)
            self.load.retry_after_s.add(int(answer.headers.get("retry-after", 0)))
        elif answer.status != OK:
            self.load.other[f"HTTP {answer.status}"] += 1
        elif (complaint := self._complaint(answer)) is not None:
            self.load.wrong += 1
            if len(self.load.examples) < EXAMPLES:
                self.load.examples.append(complaint)
        else:
            self.load.accepted_s.append(seconds)

    def _complaint(self, answer: Answer) -> str | None:
        if answer.body in self._right:
            return None
        complaint = self.target.judge(answer.headers, answer.body)
        if complaint is None and len(self._right) < REMEMBERED:
            self._right.add(answer.body)
        return complaint

    async def settle(self) -> None:
        """Wait for the answers that are missing and close."""
        give_up_s = time.perf_counter() + PATIENCE_S
        while any(c.waiting for c in self.connections) and time.perf_counter() < give_up_s:
            await asyncio.sleep(0.01)
        await self.close()

    async def close(self) -> None:
        """Close all; what is still missing is counted. An open one would keep the loop alive."""
        for connection in list(self.connections):
            if connection.waiting:
                connection.waiting = False
                self.load.other[f"no answer within {PATIENCE_S:g} s"] += 1
            connection.transport.close()
        await asyncio.sleep(0.05)
