"""Requests that arrive together run in one batch, and each gets its own answer."""

import asyncio
import threading

import numpy as np
import pytest

from export.bundle.metrics import Arrays
from service.engine.batcher import Batcher, EngineError
from service.observability.records import BatchTiming
from service.protocol.errors import DeadlineError, OverloadedError


class _Engine:
    """Answers each image with its first pixel, can be blocked and records its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, inputs: Arrays) -> Arrays:
        images = inputs["images"]
        assert self.go.wait(10)
        self.batches.append(len(images))
        if (images == 255).any():
            raise RuntimeError("the engine broke")
        first = images[:, 0, 0].astype(np.float32)
        return {"logits": first[:, None], "probabilities": first[:, None] + 1}


def _images(*values: int) -> Arrays:
    images = np.zeros((len(values), 28, 28), np.uint8)
    images[:, 0, 0] = values
    return {"images": images}


def _batcher(
    engine: _Engine, *, batch: int = 64, queue: int = 64, in_loop: bool = False
) -> Batcher:
    return Batcher(
        engine,
        max_batch_samples=batch,
        max_queue_samples=queue,
        max_loop_samples=None if in_loop else 0,
    )


def _values(answer: tuple[Arrays, BatchTiming]) -> list[float]:
    values: list[float] = answer[0]["logits"].ravel().tolist()
    return values


async def _held(engine: _Engine, batcher: Batcher) -> asyncio.Task[object]:
    """Occupy the engine with one image and return that request."""
    engine.go.clear()
    first = asyncio.ensure_future(batcher.submit(_images(1)))
    await asyncio.sleep(0.05)
    return first


def test_what_queued_while_the_engine_was_busy_is_one_batch() -> None:
    """Ten requests queued behind a busy engine run as one batch, each with its own answers."""
    engine, records = _Engine(), list[BatchTiming]()

    async def scenario() -> None:
        batcher = Batcher(
            engine,
            max_batch_samples=64,
            max_queue_samples=64,
            max_loop_samples=0,
            on_batch=records.append,
        )
        first = await _held(engine, batcher)
        rest = [asyncio.ensure_future(batcher.submit(_images(i, i + 50))) for i in range(10)]
        await asyncio.sleep(0)
        assert batcher.queued_samples == 20
        engine.go.set()
        for i, answer in enumerate(await asyncio.gather(*rest)):
            assert _values(answer) == [i, i + 50]
            assert answer[0]["probabilities"].ravel().tolist() == [i + 1, i + 51]
            assert answer[1].batch_samples == 20
            assert 0 < answer[1].queue_s <= records[1].queue_s
            assert answer[1].compute_s == records[1].compute_s
        await first
        assert batcher.queued_samples == 0
        batcher.close()

    asyncio.run(scenario())
    assert engine.batches == [1, 20]
    assert [record.batch_samples for record in records] == [1, 20]


def test_in_the_event_loop_what_arrived_together_is_one_batch() -> None:
    """Requests of one event loop iteration share a batch; the engine runs in the loop's thread."""
    engine, threads = _Engine(), set[int]()

    def engine_here(inputs: Arrays) -> Arrays:
        threads.add(threading.get_ident())
        return engine(inputs)

    async def scenario() -> None:
        batcher = Batcher(engine_here, max_batch_samples=8, max_queue_samples=64)
        answers = await asyncio.gather(*(batcher.submit(_images(i)) for i in range(10)))
        assert [_values(answer) for answer in answers] == [[i] for i in range(10)]
        assert _values(await batcher.submit(_images(3))) == [3]

    asyncio.run(scenario())
    assert engine.batches == [8, 2, 1]
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("in_loop", [False, True])
def test_an_idle_engine_waits_for_a_fuller_batch_if_it_is_told_to(in_loop: bool) -> None:
    """With a batching delay successive requests share a batch; a full batch runs at once."""
    engine = _Engine()

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        batcher = Batcher(
            engine,
            max_batch_samples=4,
            max_queue_samples=64,
            max_loop_samples=None if in_loop else 0,
            wait_s=0.2,
        )
        first = asyncio.ensure_future(batcher.submit(_images(1)))
        await asyncio.sleep(0.02)
        assert engine.batches == []
        assert _values(await batcher.submit(_images(2))) == [2]
        assert _values(await first) == [1]
        batcher = Batcher(
            engine,
            max_batch_samples=4,
            max_queue_samples=64,
            max_loop_samples=None if in_loop else 0,
            wait_s=60,
        )
        begun_s = loop.time()
        asked = [batcher.submit(_images(i)) for i in range(4)]
        assert [_values(answer) for answer in await asyncio.gather(*asked)] == [[0], [1], [2], [3]]
        assert loop.time() - begun_s < 30
        batcher.close()

    asyncio.run(scenario())
    assert engine.batches == [2, 4]


@pytest.mark.parametrize("in_loop", [False, True])
def test_batches_keep_to_their_limit_and_large_requests_are_split(in_loop: bool) -> None:
    """With batches of at most 4, a request of 10 images is answered complete and in order."""
    engine = _Engine()

    async def scenario() -> None:
        batcher = _batcher(engine, batch=4, in_loop=in_loop)
        assert _values(await batcher.submit(_images(*range(10)))) == list(range(10))
        batcher.close()

    asyncio.run(scenario())
    assert engine.batches == [4, 4, 2]


def test_a_full_queue_refuses_and_loses_nothing() -> None:
    """With room for 8 images behind a busy engine, exactly 2 of 10 requests are refused."""
    engine = _Engine()

    async def scenario() -> None:
        batcher = _batcher(engine, batch=4, queue=8)
        first = await _held(engine, batcher)
        waiting = [asyncio.ensure_future(batcher.submit(_images(i))) for i in range(10)]
        await asyncio.sleep(0)
        engine.go.set()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
        assert len(refused) == 2
        assert int(refused[0].headers["Retry-After"]) >= 1
        assert [_values(a) for a in answers if isinstance(a, tuple)] == [[i] for i in range(8)]
        await first
        batcher.close()

    asyncio.run(scenario())


def test_a_request_that_was_given_up_is_not_computed() -> None:
    """A cancelled request leaves the queue without reaching the engine."""
    engine = _Engine()

    async def scenario() -> None:
        batcher = _batcher(engine)
        first = await _held(engine, batcher)
        gone = asyncio.ensure_future(batcher.submit(_images(2, 3, 4)))
        stays = asyncio.ensure_future(batcher.submit(_images(5)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        engine.go.set()
        assert _values(await stays) == [5]
        await first
        assert batcher.queued_samples == 0
        batcher.close()

    asyncio.run(scenario())
    assert engine.batches == [1, 1]


def test_what_waited_too_long_is_not_computed() -> None:
    """A request that waits for a busy engine beyond its deadline is refused with an explanation."""
    engine = _Engine()

    async def scenario() -> None:
        batcher = Batcher(
            engine, max_batch_samples=4, max_queue_samples=8, max_loop_samples=0, deadline_s=0.1
        )
        first = await _held(engine, batcher)
        late = asyncio.ensure_future(batcher.submit(_images(2)))
        await asyncio.sleep(0.2)
        engine.go.set()
        with pytest.raises(DeadlineError, match=r"no answer within 0\.1 s"):
            await late
        with pytest.raises(DeadlineError, match=r"no answer within 0\.1 s$"):
            await first  # its batch ran longer than the deadline
        batcher.close()

    asyncio.run(scenario())
    assert engine.batches == [1]


@pytest.mark.parametrize("in_loop", [False, True])
def test_a_bad_item_does_not_harm_its_neighbours(in_loop: bool) -> None:
    """A failed batch is rerun item by item, so one request fails and the others are answered."""
    engine = _Engine()

    async def scenario() -> None:
        batcher = _batcher(engine, in_loop=in_loop)
        asked = [batcher.submit(_images(value)) for value in (1, 255, 3)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [_values(a) for a in answers if isinstance(a, tuple)] == [[1], [3]]
        (broken,) = [answer for answer in answers if isinstance(answer, EngineError)]
        assert "the engine broke" in str(broken)
        assert _values(await batcher.submit(_images(7))) == [7]
        batcher.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("in_loop", [False, True])
def test_a_request_of_which_a_part_fails_fails_once(in_loop: bool) -> None:
    """If the second of three parts fails, there is one error and the third is not computed."""
    engine = _Engine()

    async def scenario() -> None:
        batcher = _batcher(engine, batch=4, in_loop=in_loop)
        with pytest.raises(EngineError, match="the engine broke"):
            await batcher.submit(_images(0, 1, 2, 3, 4, 255, 6, 7, 8, 9))
        assert _values(await batcher.submit(_images(7))) == [7]
        assert batcher.queued_samples == 0
        batcher.close()

    asyncio.run(scenario())
    assert engine.batches == [4, 4, 1]
