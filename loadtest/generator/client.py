"""The paired gate's client: it takes turns of half a second, and verifies every answer.

Locust starts too slowly for such turns, and wrk verifies nothing. A request is one write of bytes
made before, an answer is split by hand, and a body that was right once is recognised again.
"""

import asyncio
import gc
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import uvloop

from loadtest.measure.stats import percentile

Judge = Callable[[Mapping[str, str], bytes], str | None]
"""What is wrong with an answer of 200 (headers in small letters, body); None if nothing."""
Arrivals = Literal["poisson", "uniform"]

PATIENCE_S = 20.0  # for the answers that are still missing at the end
# Well below the five seconds after which BentoML's server closes a connection that is not used.
LONGEST_IDLE_S = 2.0
REMEMBERED = 256
EXAMPLES = 3
OK, TOO_MANY = 200, 429
SPIN_S = 0.002  # nearer than this the next request is waited for without sleeping
SLEEP_S = 0.001
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
        answered: Right answers: of a closed loop those within these seconds.
        accepted_s: Latency of each right answer.
        refused_s: Latency of each answer of 429.
        other: Other statuses, and connections that were closed in place of an answer.
        wrong: Answers of 200 that are wrong; ``examples`` says how.
        retry_after_s: What refusals said; 0 for one that said nothing.
        late_s: For each request, how much later than due it was sent.
    """

    seconds: float
    asked: int = 0
    answered: int = 0
    accepted_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    examples: list[str] = field(default_factory=list)
    retry_after_s: set[int] = field(default_factory=set)
    late_s: list[float] = field(default_factory=list)

    def __add__(self, further: "Load") -> "Load":
        """Both together."""
        return Load(
            self.seconds + further.seconds,
            self.asked + further.asked,
            self.answered + further.answered,
            self.accepted_s + further.accepted_s,
            self.refused_s + further.refused_s,
            self.other + further.other,
            self.wrong + further.wrong,
            (self.examples + further.examples)[:EXAMPLES],
            self.retry_after_s | further.retry_after_s,
            self.late_s + further.late_s,
        )

    @property
    def rate(self) -> float:
        """Right answers a second."""
        return self.answered / self.seconds

    @property
    def p99_s(self) -> float:
        """The 99th percentile of the latencies, seconds."""
        return percentile([self.accepted_s], 99)

    @property
    def faults(self) -> tuple[str, ...]:
        """Whatever was no right answer of 200, in words."""
        found = [f"{kind} x {count}" for kind, count in sorted(self.other.items())]
        if self.refused_s:
            found.append(f"HTTP 429 x {len(self.refused_s)}")
        if self.wrong:
            found.append(f"wrong answers x {self.wrong}, such as: {self.examples[0]}")
        return tuple(found)


class Connection(asyncio.Protocol):
    """One request at a time."""

    transport: asyncio.Transport

    def __init__(self, pool: "Pool") -> None:
        self._pool, self._received, self._due_s = pool, bytearray(), 0.0
        self.waiting, self.freed_s = False, time.perf_counter()

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
            self.freed_s, self.waiting = time.perf_counter(), False
            self._received = bytearray()
            self._pool.answered(answer, self.freed_s - self._due_s)
            self._pool.freed(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed; an answer that was due will not come."""
        if self.waiting:
            self.waiting = False
            self._pool.load.other[f"closed before an answer ({exc!r})"] += 1
        self._pool.lost(self)


class Answer(NamedTuple):
    """One answer of HTTP/1.1; the names of its headers in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes


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
    lines = head.decode("latin-1").split("\r\n")[1:]
    headers = {name: value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(head[9:12]), headers, bytes(received[end + 4 :]))


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
                if found.transport.is_closing():
                    continue
                if time.perf_counter() - found.freed_s < LONGEST_IDLE_S:
                    return found
                found.transport.close()  # the server may be about to do so
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

    async def settle(self, patience_s: float = PATIENCE_S) -> None:
        """Wait for the answers that are missing, count what still is, and close."""
        give_up_s = time.perf_counter() + patience_s
        while any(c.waiting for c in self.connections) and time.perf_counter() < give_up_s:
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            if connection.waiting:
                connection.waiting = False
                self.load.other[f"no answer within {patience_s:g} s"] += 1
            connection.transport.close()  # an open one would keep the loop alive
        await asyncio.sleep(0.05)


def closed_loop(target: Target, clients: int, seconds: float, warm_up_s: float = 0.3) -> Load:
    """So many clients that each wait for their answer before they ask again.

    Args:
        target: Who is asked what.
        clients: How many.
        seconds: For how long right answers are counted.
        warm_up_s: For how long they ask before.

    Returns:
        All that was answered, the warming up's too, but for ``answered``.
    """
    load, seen = Load(seconds), 0
    begin_s = end_s = float("inf")

    async def run() -> None:
        nonlocal begin_s, end_s

        def again(connection: Connection) -> None:
            nonlocal seen
            now_s = time.perf_counter()
            if begin_s <= now_s < end_s:
                load.answered += len(load.accepted_s) - seen
            seen = len(load.accepted_s)
            if now_s < end_s:
                connection.ask(now_s)

        pool = Pool(target, load, again, clients)
        await pool.fill()
        begin_s = time.perf_counter() + warm_up_s  # the time to connect does not count
        end_s = begin_s + seconds
        for connection in list(pool.connections):
            connection.ask(time.perf_counter())
        await asyncio.sleep(end_s - time.perf_counter())
        await pool.settle()

    _run(run)
    return load


def open_loop(
    target: Target,
    rate: float,
    seconds: float,
    *,
    arrivals: Arrivals = "uniform",
    connections: int = 256,
    spin: bool = False,
    seed: int = 0,
) -> Load:
    """So many requests a second for a while; one that finds no idle connection is sent late.

    Args:
        target: Who is asked what.
        rate: Requests a second.
        seconds: For how long they are sent.
        arrivals: "uniform": at equal distances; "poisson": as independent clients would.
        connections: Open connections at most, each with one request at a time.
        spin: Never sleep for less than two milliseconds: exact, and takes a core.
        seed: Of Poisson arrivals; the same seed gives the same ones.
    """
    load = Load(seconds)

    async def run() -> None:
        pool = Pool(target, load, lambda connection: None, connections)
        await pool.fill()
        start_s = time.perf_counter()
        for after_s in due_times(rate, seconds, arrivals, seed):
            due_s = start_s + after_s
            while (left_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(0 if spin and left_s < SPIN_S else SLEEP_S)
            try:
                connection = await pool.idle()
            except TimeoutError:
                await pool.settle(0)
                raise
            load.late_s.append(time.perf_counter() - due_s)
            connection.ask(due_s)
            await asyncio.sleep(0)  # read what came
        load.seconds = max(seconds, time.perf_counter() - start_s)  # more if it could not keep up
        await pool.settle()
        load.answered = len(load.accepted_s)

    _run(run)
    return load


def due_times(rate: float, seconds: float, arrivals: Arrivals, seed: int = 0) -> Iterator[float]:
    """When requests are due, in seconds from the start, ascending."""
    chance = random.Random(seed)  # noqa: S311 - no secret; the same arrivals for the same seed
    due_s = 0.0
    while due_s < seconds:
        yield due_s
        due_s += chance.expovariate(rate) if arrivals == "poisson" else 1 / rate


def _run(main: Callable[[], Awaitable[None]]) -> None:
    """In an event loop of its own, without pauses for the collector."""

    async def run() -> None:
        await main()

    gc.collect()
    gc.disable()
    try:
        uvloop.run(run())
    finally:
        gc.enable()
