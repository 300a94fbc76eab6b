"""Requests that arrive together run together, and each gets its own answer."""

import asyncio
import threading

import numpy as np
import pytest

from export.parity.metrics import Array
from service.batcher import Batcher, BatchRecord
from service.errors import OverloadedError


class _Engine:
    """Answers each image with its first pixel; can be held up; remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, images: Array) -> tuple[Array, Array]:
        assert self.go.wait(10)
        self.batches.append(len(images))
        if (images == 255).any():
            raise RuntimeError("the engine broke")
        first = images[:, 0, 0].astype(np.float32)
        return first[:, None], first[:, None] + 1


def _images(*values: int) -> Array:
    images = np.zeros((len(values), 28, 28), np.uint8)
    images[:, 0, 0] = values
    return images


async def _held(engine: _Engine, batcher: Batcher) -> asyncio.Task[object]:
    """Make the engine busy with one image and return that request."""
    engine.go.clear()
    first = asyncio.ensure_future(batcher.submit(_images(1)))
    await asyncio.sleep(0.05)
    return first


def test_what_queued_while_the_engine_was_busy_is_one_batch() -> None:
    """Ten requests behind a busy engine run as one batch, and each gets its own answers."""
    engine, records = _Engine(), list[BatchRecord]()

    async def scenario() -> None:
        batcher = Batcher(engine, max_batch_images=64, max_queue_images=64, on_batch=records.append)
        first = await _held(engine, batcher)
        rest = [asyncio.ensure_future(batcher.submit(_images(i, i + 50))) for i in range(10)]
        await asyncio.sleep(0)
        assert batcher.queued_images == 20
        engine.go.set()
        for i, answer in enumerate(await asyncio.gather(*rest)):
            assert answer[0].ravel().tolist() == [i, i + 50]
            assert answer[1].ravel().tolist() == [i + 1, i + 51]
        await first
        assert batcher.queued_images == 0
        batcher.close()

    asyncio.run(scenario())
    assert engine.batches == [1, 20]
    assert [record.images for record in records] == [1, 20]
    assert all(waited > 0 for waited in records[1].queue_s)
    assert [record.queued_images for record in records] == [20, 0]


def test_batches_keep_to_their_limit_and_large_requests_are_split() -> None:
    """A request of 10 images with batches of at most 4 comes back whole and in order."""
    engine = _Engine()

    async def scenario() -> None:
        batcher = Batcher(engine, max_batch_images=4, max_queue_images=64)
        logits, _ = await batcher.submit(_images(*range(10)))
        assert logits.ravel().tolist() == list(range(10))
        batcher.close()

    asyncio.run(scenario())
    assert engine.batches == [4, 4, 2]


def test_a_full_queue_refuses_and_loses_nothing() -> None:
    """With room for 8 images behind a busy engine, of 10 requests exactly 2 are refused."""
    engine = _Engine()

    async def scenario() -> None:
        batcher = Batcher(engine, max_batch_images=4, max_queue_images=8)
        first = await _held(engine, batcher)
        waiting = [asyncio.ensure_future(batcher.submit(_images(i))) for i in range(10)]
        await asyncio.sleep(0)
        engine.go.set()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
        assert len(refused) == 2
        assert [int(a[0][0, 0]) for a in answers if not isinstance(a, BaseException)] == list(
            range(8)
        )
        await first
        batcher.close()

    asyncio.run(scenario())


def test_a_request_that_was_given_up_is_not_computed() -> None:
    """A cancelled request leaves the queue without ever reaching the engine."""
    engine = _Engine()

    async def scenario() -> None:
        batcher = Batcher(engine, max_batch_images=64, max_queue_images=64)
        first = await _held(engine, batcher)
        gone = asyncio.ensure_future(batcher.submit(_images(2, 3, 4)))
        stays = asyncio.ensure_future(batcher.submit(_images(5)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        engine.go.set()
        assert (await stays)[0].ravel().tolist() == [5]
        await first
        assert batcher.queued_images == 0
        batcher.close()

    asyncio.run(scenario())
    assert engine.batches == [1, 1]


def test_a_broken_batch_is_reported_and_the_next_one_runs() -> None:
    """An engine's failure reaches those who wait for it; the batcher goes on."""
    engine = _Engine()

    async def scenario() -> None:
        batcher = Batcher(engine, max_batch_images=64, max_queue_images=64)
        with pytest.raises(RuntimeError, match="the engine broke"):
            await batcher.submit(_images(255))
        assert (await batcher.submit(_images(7)))[0].ravel().tolist() == [7]
        batcher.close()

    asyncio.run(scenario())
