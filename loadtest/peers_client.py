"""A closed loop over different images at once that verifies every answer.

wrk asks for one image again and again and reads no answer. Here neighbours ask for different
images, so that an answer which a server's batching gave to the wrong one is noticed.
"""

import asyncio
import gc
import time
from collections.abc import Sequence

import uvloop

from loadtest.connections import Connection, Load, Pool, Target

WARM_UP_S = 0.3


def verified_load(targets: Sequence[Target], clients: int, seconds: float) -> tuple[Load, float]:
    """So many clients, each of which waits for its answer before it asks again.

    Args:
        targets: The clients take them in turn; one server, different images.
        clients: How many.
        seconds: For how long right answers are counted, after a moment of warming up.

    Returns:
        All that was answered, the warming up's too, and right answers a second.
    """
    load, counted = Load(seconds), [0]

    async def run() -> None:
        begin_s = time.perf_counter() + WARM_UP_S
        end_s = begin_s + seconds
        before = [0]

        def again(connection: Connection) -> None:
            now_s = time.perf_counter()
            if now_s < begin_s:
                before[0] = len(load.accepted_s)
            if now_s < end_s:
                connection.ask(now_s)
                counted[0] = len(load.accepted_s) - before[0]

        pools = [Pool(targets[i % len(targets)], load, again, 1) for i in range(clients)]
        for pool in pools:
            await pool.fill()
        for connection in [connection for pool in pools for connection in pool.connections]:
            connection.ask(time.perf_counter())
        await asyncio.sleep(WARM_UP_S + seconds)
        await asyncio.gather(*(pool.settle() for pool in pools))

    gc.collect()
    gc.disable()
    try:
        uvloop.run(run())
    finally:
        gc.enable()
    return load, counted[0] / seconds
