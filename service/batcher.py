"""One queue and one engine a model: what queued while the engine was busy runs as the next batch.

No waiting time has to be tuned: an idle engine starts at once with what is there, a busy one finds
a fuller batch when it is done. Sizes are counted in samples, not in requests.

A batch of microseconds runs in the event loop itself: handing it to a thread and back costs more
than computing it. A longer one runs in a thread, so that other requests are read meanwhile.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from export.golden import Predict
from export.parity.metrics import Arrays
from service.errors import DeadlineError, OverloadedError
from service.waiting import BatchRecord, EngineError, Future, Ran, Waiter, merged

# Of the measured rate, what a batch weighs against all before it.
NEWEST_SHARE = 0.1


@dataclass(frozen=True)
class _Item:
    """A part of a request, of at most one batch's size, and who waits for its answer."""

    inputs: Arrays
    samples: int
    waiter: Waiter
    arrived_s: float


class Batcher:
    """Collects samples from concurrent requests into batches; lives in one event loop."""

    def __init__(
        self,
        predict: Predict,
        *,
        max_batch_samples: int,
        max_queue_samples: int,
        in_loop: bool,
        deadline_s: float = float("inf"),
        wait_s: float = 0.0,
        on_batch: Callable[[BatchRecord], None] = lambda record: None,
    ) -> None:
        """Make a batcher; it starts with the first request.

        Args:
            predict: Runs one batch, never two at a time: in the event loop, or in a thread of its
                own.
            max_batch_samples: Samples that run as one batch at most.
            max_queue_samples: Samples that may wait; a request that does not fit is refused.
            in_loop: Run batches in the event loop.
            deadline_s: What waited longer is given up before it is computed.
            wait_s: How long an idle engine waits for a fuller batch.
            on_batch: Called in the event loop after each batch.
        """
        self._predict = predict
        self._max_batch_samples = max_batch_samples
        self._max_queue_samples = max_queue_samples
        self._deadline_s, self._wait_s = deadline_s, wait_s
        self._on_batch = on_batch
        self._queue: deque[_Item] = deque()
        self._queued_samples = 0
        self._suspects: deque[_Item] = deque()
        self._running = False
        self._recent_samples = self._recent_s = 0.0  # of the last batches, the newest weighs most
        self._waits_for_more: asyncio.TimerHandle | None = None
        self.in_loop = in_loop
        self._thread = (
            None if in_loop else ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def queued_samples(self) -> int:
        """Samples that wait, those of the running batch not counted."""
        return self._queued_samples

    @property
    def max_batch_samples(self) -> int:
        """Samples that run as one batch at most."""
        return self._max_batch_samples

    @property
    def full(self) -> bool:
        """Is there no room for even one sample?"""
        return self._queued_samples >= self._max_queue_samples

    def enqueue(self, inputs: Arrays, samples: int, waiter: Waiter) -> None:
        """Queue one item of at most one batch's size; returns at once.

        Raises:
            OverloadedError: The queue has no room for so many samples.
        """
        self._admit(samples)
        self._queue.append(_Item(inputs, samples, waiter, time.perf_counter()))
        self._queued_samples += samples
        self._start()

    async def submit(self, inputs: Arrays) -> tuple[Arrays, Ran]:
        """Answer one request of any size.

        Args:
            inputs: By name, checked, N samples each.

        Returns:
            Outputs by name, in the request's order, and how they were computed.

        Raises:
            OverloadedError: The queue has no room for so many samples.
            DeadlineError: It waited too long.
        """
        samples = len(next(iter(inputs.values())))
        self._admit(samples)
        loop, now = asyncio.get_running_loop(), time.perf_counter()
        size = self._max_batch_samples
        waiters = [Future(loop.create_future()) for _ in range(0, samples, size)]
        for start, waiter in zip(range(0, samples, size), waiters, strict=True):
            part = {name: array[start : start + size] for name, array in inputs.items()}
            self._queue.append(_Item(part, min(size, samples - start), waiter, now))
        self._queued_samples += samples
        self._start()
        try:
            answers = [await waiter.future for waiter in waiters]
        finally:
            for waiter in waiters:  # a request that was given up is not computed
                waiter.future.cancel()
        return merged(answers)

    def flush(self) -> None:
        """Run what waits now, if batches run in the event loop."""
        if self.in_loop:
            if self._waits_for_more is not None:
                self._waits_for_more.cancel()
                self._waits_for_more, self._running = None, False
            while self._run_one():
                pass

    def close(self) -> None:
        """End the engine's thread after the batch that runs."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)

    def overloaded(self, samples: int) -> OverloadedError:
        """What is said to who finds no room for so many samples; and when there will be."""
        s_per_sample = self._recent_s / self._recent_samples if self._recent_samples else 0
        return OverloadedError(
            f"{self._queued_samples} samples wait already and {samples} more do not fit "
            f"(at most {self._max_queue_samples}); try again later",
            retry_after_s=(self._queued_samples + samples) * s_per_sample,
        )

    def _admit(self, samples: int) -> None:
        if self._queued_samples + samples > self._max_queue_samples:
            raise self.overloaded(samples)

    def _start(self) -> None:
        """Run what queued, now or, if it may wait for more, a little later."""
        full = self._queued_samples >= self._max_batch_samples
        if self._waits_for_more is not None and full:
            self._waits_for_more.cancel()
            self._begin()
        elif not self._running:
            self._running = True
            if self._wait_s and not full:
                loop = asyncio.get_running_loop()
                self._waits_for_more = loop.call_later(self._wait_s, self._begin)
            else:
                self._begin()

    def _begin(self) -> None:
        self._waits_for_more = None
        loop = asyncio.get_running_loop()
        if self.in_loop:
            # After whatever else has arrived by now: that is in the same batch.
            loop.call_soon(self._run_in_loop)
        else:
            self._task = loop.create_task(self._run_in_thread())

    def _run_in_loop(self) -> None:
        """One batch; what is left runs when those were read that have arrived meanwhile."""
        try:
            self._run_one()
        finally:
            self._running = bool(self._queue or self._suspects)
            if self._running:
                asyncio.get_running_loop().call_soon(self._run_in_loop)

    def _run_one(self) -> bool:
        batch = self._take()
        if batch:
            start_s = time.perf_counter()
            try:
                outputs = self._predict(_joined(batch))
            except Exception as error:  # noqa: BLE001 - who waits must know, whatever it was
                self._failed(batch, error)
            else:
                self._hand_out(batch, outputs, start_s)
        return bool(batch)

    async def _run_in_thread(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batch := self._take():
                start_s = time.perf_counter()
                try:
                    joined = _joined(batch)
                    outputs = await loop.run_in_executor(self._thread, self._predict, joined)
                except Exception as error:  # noqa: BLE001 - the same
                    self._failed(batch, error)
                else:
                    self._hand_out(batch, outputs, start_s)
        finally:
            self._running = False

    def _take(self) -> list[_Item]:
        """The oldest items that fit into one batch; those that nobody waits for are dropped."""
        if self._suspects:
            return [self._suspects.popleft()]
        batch: list[_Item] = []
        samples, too_old_s = 0, time.perf_counter() - self._deadline_s
        while self._queue:
            item = self._queue[0]
            if not item.waiter.waits():
                self._drop()
            elif item.arrived_s < too_old_s:
                self._drop()
                item.waiter.fail(
                    DeadlineError(f"no answer within {self._deadline_s:g} s; it was not computed")
                )
            elif not batch or samples + item.samples <= self._max_batch_samples:
                self._drop()
                batch.append(item)
                samples += item.samples
            else:
                break
        return batch

    def _failed(self, batch: list[_Item], error: Exception) -> None:
        """One of a batch may have broken it: each is run again, by itself."""
        if len(batch) > 1:
            self._suspects.extend(batch)
        else:
            batch[0].waiter.fail(EngineError(error))

    def _drop(self) -> None:
        self._queued_samples -= self._queue.popleft().samples

    def _hand_out(self, batch: list[_Item], outputs: Arrays, start_s: float) -> None:
        compute_s = time.perf_counter() - start_s
        samples = sum(item.samples for item in batch)
        self._recent_samples += samples - NEWEST_SHARE * self._recent_samples
        self._recent_s += compute_s - NEWEST_SHARE * self._recent_s
        if len(batch) == 1:
            (item,) = batch
            item.waiter.answer(outputs, Ran(samples, start_s - item.arrived_s, compute_s))
        else:
            start = 0
            for item in batch:
                end = start + item.samples
                part = {name: array[start:end] for name, array in outputs.items()}
                item.waiter.answer(part, Ran(samples, start_s - item.arrived_s, compute_s))
                start = end
        longest_s = start_s - min(item.arrived_s for item in batch)
        self._on_batch(BatchRecord(samples, compute_s, longest_s))


def _joined(batch: list[_Item]) -> Arrays:
    if len(batch) == 1:
        return batch[0].inputs
    return {name: np.concatenate([i.inputs[name] for i in batch]) for name in batch[0].inputs}
