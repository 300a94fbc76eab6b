"""Clients that wait for their answers, and requests at times that wait for none.

The client must be cheap, or it measures itself: see ``connections``.
"""

import asyncio
import gc
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Literal

import uvloop

from loadtest.generator.connections import Connection, Load, Pool, Target

Arrivals = Literal["poisson", "uniform"]

SPIN_S = 0.002  # nearer than this the next request is waited for without sleeping
SLEEP_S = 0.001


def closed_loop(
    targets: Sequence[Target], clients: int, seconds: float, warm_up_s: float = 0.3
) -> tuple[Load, int]:
    """So many clients that each wait for their answer before they ask again.

    Args:
        targets: One server, different requests; the clients take them in turn, so that an answer
            that batching gave to the wrong one is noticed.
        clients: How many.
        seconds: For how long right answers are counted.
        warm_up_s: For how long they ask before.

    Returns:
        All that was answered, the warming up's too, and the right answers behind it.
    """
    load, seen, counted = Load(seconds), 0, 0
    begin_s = end_s = float("inf")

    async def run() -> None:
        nonlocal begin_s, end_s

        def again(connection: Connection) -> None:
            nonlocal seen, counted
            now_s = time.perf_counter()
            if begin_s <= now_s < end_s:
                counted += len(load.accepted_s) - seen
            seen = len(load.accepted_s)
            if now_s < end_s:
                connection.ask(now_s)

        share, rest = divmod(clients, len(targets))
        pools = [
            Pool(target, load, again, share + (number < rest))
            for number, target in enumerate(targets)
        ]
        for pool in pools:
            await pool.fill()
        begin_s = time.perf_counter() + warm_up_s  # the time to connect does not count
        end_s = begin_s + seconds
        for connection in [one for pool in pools for one in pool.connections]:
            connection.ask(time.perf_counter())
        await asyncio.sleep(end_s - time.perf_counter())
        await asyncio.gather(*(pool.settle() for pool in pools))

    _run(run)
    return load, counted


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
                await pool.close()
                raise
            load.late_s.append(time.perf_counter() - due_s)
            connection.ask(due_s)
            await asyncio.sleep(0)  # read what came
        load.seconds = max(seconds, time.perf_counter() - start_s)  # more if it could not keep up
        await pool.settle()

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
