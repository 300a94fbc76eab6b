"""Requests at times that do not wait for answers, as many independent clients send them.

The client must be cheap, or it measures itself: see ``connections``.
"""

import asyncio
import gc
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Literal

import uvloop

from loadtest.connections import Connection, Load, Pool, Target

Arrivals = Literal["poisson", "uniform"]

CLOSED_LOOP_CLIENTS = 4
SPIN_S = 0.002  # nearer than this the next request is waited for without sleeping
SLEEP_S = 0.001


def closed_loop(
    target: Target, seconds: float, clients: int = CLOSED_LOOP_CLIENTS, warm_up_s: float = 0.3
) -> float:
    """Right answers a second for a few clients that each wait for theirs before they ask again.

    Args:
        target: Who is asked what.
        seconds: For how long they are counted.
        clients: How many.
        warm_up_s: For how long they ask before.
    """
    load = Load(seconds)

    async def run() -> None:
        begin_s = time.perf_counter() + warm_up_s
        end_s = begin_s + seconds
        before = [0]

        def again(connection: Connection) -> None:
            now_s = time.perf_counter()
            if now_s < begin_s:
                before[0] = len(load.accepted_s)
            if now_s < end_s:
                connection.ask(now_s)

        pool = Pool(target, load, again, clients)
        await pool.fill()
        for connection in pool.connections:
            connection.ask(time.perf_counter())
        await asyncio.sleep(warm_up_s + seconds)
        answered.append(len(load.accepted_s) - before[0])
        await pool.settle()

    answered: list[int] = []
    _run(run)
    return answered[0] / seconds


def open_loop(
    target: Target,
    rate: float,
    seconds: float,
    *,
    arrivals: Arrivals = "uniform",
    connections: int = 256,
    spin: bool = False,
) -> Load:
    """So many requests a second for a while; one that finds no idle connection is sent late.

    Args:
        target: Who is asked what.
        rate: Requests a second.
        seconds: For how long they are sent.
        arrivals: "uniform": at equal distances; "poisson": as independent clients would.
        connections: Open connections at most, each with one request at a time.
        spin: Never sleep for less than two milliseconds: exact, and takes a core.
    """
    load = Load(seconds)

    async def run() -> None:
        pool = Pool(target, load, lambda connection: None, connections)
        await pool.fill()
        start_s = time.perf_counter()
        for after_s in due_times(rate, seconds, arrivals):
            due_s = start_s + after_s
            while (left_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(0 if spin and left_s < SPIN_S else SLEEP_S)
            connection = await pool.idle()
            load.late_s.append(time.perf_counter() - due_s)
            connection.ask(due_s)
            await asyncio.sleep(0)  # read what came
        load.seconds = max(seconds, time.perf_counter() - start_s)  # more if it could not keep up
        await pool.settle()

    _run(run)
    return load


def due_times(rate: float, seconds: float, arrivals: Arrivals) -> Iterator[float]:
    """When requests are due, in seconds from the start, ascending."""
    chance = random.Random(0)  # noqa: S311 - no secret; the same arrivals each time
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
