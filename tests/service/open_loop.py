"""Requests at fixed times, whether or not the earlier ones were answered."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import numpy as np

from tests.service.answers import parsed

DURATION_S = 2.0
CLOSED_LOOP_CLIENTS = 4
MOST_CONNECTIONS = 400
PATIENCE_S = 20.0


@dataclass
class Load:
    """What came of a load; latencies are counted from when a request was due."""

    asked: int = 0
    answers: list[httpx.Response] = field(default_factory=list)
    accepted_s: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def told(self) -> str:
        """For people."""
        p99_ms = 1000 * float(np.percentile(self.accepted_s, 99))
        refused = len(self.answers) - len(self.accepted_s)
        return f"{self.asked} asked, {refused} refused, p99 of the others {p99_ms:.1f} ms"


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, load: Load, freed: Callable[["_Connection"], None]) -> None:
        self._load, self._freed = load, freed
        self._received, self._due_s, self.waiting = bytearray(), 0.0, False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, request: bytes, due_s: float) -> None:
        assert self.transport is not None
        self._due_s, self.waiting = due_s, True
        self._load.asked += 1
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        answer = parsed(bytes(self._received))
        if answer is not None:
            self._load.answers.append(answer)
            if answer.status_code == 200:
                self._load.accepted_s.append(time.perf_counter() - self._due_s)
            self._received.clear()
            self.waiting = False
            self._freed(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiting:
            self._load.broken.append(f"closed before an answer: {exc!r}")


async def _connected(
    url: str, load: Load, freed: Callable[[_Connection], None], count: int
) -> list[_Connection]:
    host, port = url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: _Connection(load, freed), host, int(port))
        for _ in range(count)
    ]
    return [protocol for _, protocol in made]


def closed_loop_rate(url: str, request: bytes) -> float:
    """Answers a second for a few clients that each wait for theirs before they ask again."""
    load = Load()

    async def run() -> None:
        end_s = time.perf_counter() + DURATION_S

        def again(connection: _Connection) -> None:
            if time.perf_counter() < end_s:
                connection.ask(request, time.perf_counter())

        connections = await _connected(url, load, again, CLOSED_LOOP_CLIENTS)
        for connection in connections:
            connection.ask(request, time.perf_counter())
        await asyncio.sleep(DURATION_S)
        await _settled(connections)

    asyncio.run(run())
    return len(load.accepted_s) / DURATION_S


def open_loop(url: str, request: bytes, rate: float) -> Load:
    """So many requests a second for a while; one that finds no idle connection is late."""
    load = Load()

    async def run() -> None:
        idle: list[_Connection] = []
        connections = await _connected(url, load, idle.append, MOST_CONNECTIONS)
        idle += connections
        start_s, sent = time.perf_counter(), 0
        while sent < rate * DURATION_S:
            due_s = start_s + sent / rate
            if due_s > time.perf_counter() or not idle:
                await asyncio.sleep(0.001)
                continue
            idle.pop().ask(request, due_s)
            sent += 1
            if sent % 8 == 0:
                await asyncio.sleep(0)  # read what came
        await _settled(connections)

    asyncio.run(run())
    return load


async def _settled(connections: list[_Connection]) -> None:
    give_up_s = time.perf_counter() + PATIENCE_S
    while any(c.waiting for c in connections) and time.perf_counter() < give_up_s:
        await asyncio.sleep(0.01)
    for connection in connections:
        if connection.transport is not None:
            connection.transport.close()
    await asyncio.sleep(0.05)
