"""Waiting for an answer no longer than the client does."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from export.parity.metrics import Arrays
from service.batcher import Batcher
from service.waiting import Ran


async def computed(request: Request, batcher: Batcher, inputs: Arrays) -> tuple[Arrays, Ran]:
    """Wait for the answer, and no longer than the client does.

    Raises:
        ClientDisconnect: It went away; what was not yet computed for it never is.
    """
    asked = asyncio.ensure_future(batcher.submit(inputs))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            return asked.result()
        raise ClientDisconnect
    finally:
        gone.cancel()
        asked.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
