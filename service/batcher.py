"""One queue and one engine: what queued while the engine was busy runs as the next batch.

There is no waiting time to tune: an idle engine starts at once with what is there, a busy one
finds a fuller batch when it is done. Sizes are counted in images, not in requests.

Shape suffixes: N images of a request, B images of a batch, H and W 28 pixels, K classes.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from export.parity.metrics import Array
from service.errors import OverloadedError


@dataclass(frozen=True)
class BatchRecord:
    """One batch that ran, and how many images waited when it was done: for metrics."""

    images: int
    compute_s: float
    queue_s: tuple[float, ...]
    queued_images: int


@dataclass(frozen=True)
class _Item:
    """A part of a request, of at most one batch's size, and who waits for its answer."""

    images: Array
    answer: asyncio.Future[tuple[Array, Array]]
    arrived_s: float


class Batcher:
    """Collects images from concurrent requests into batches; lives in one event loop."""

    def __init__(
        self,
        predict: Callable[[Array], tuple[Array, Array]],
        *,
        max_batch_images: int,
        max_queue_images: int,
        on_batch: Callable[[BatchRecord], None] = lambda record: None,
    ) -> None:
        """Make a batcher; it starts with the first request.

        Args:
            predict: Runs one batch; called from one thread of its own, never twice at a time.
            max_batch_images: Images that run as one batch at most.
            max_queue_images: Images that may wait; a request that does not fit is refused.
            on_batch: Called in the event loop after each batch.
        """
        self._predict = predict
        self._max_batch_images = max_batch_images
        self._max_queue_images = max_queue_images
        self._on_batch = on_batch
        self._queue: deque[_Item] = deque()
        self._queued_images = 0
        self._running: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    @property
    def queued_images(self) -> int:
        """Images that wait, those of the running batch not counted."""
        return self._queued_images

    async def submit(self, images_NHW: Array) -> tuple[Array, Array]:
        """Answer one request.

        Args:
            images_NHW: uint8 [N, 28, 28], checked.

        Returns:
            (logits, probabilities), float32 [N, K] each, in the request's order.

        Raises:
            OverloadedError: The queue has no room for so many images.
        """
        count = len(images_NHW)
        if self._queued_images + count > self._max_queue_images:
            raise OverloadedError(
                f"{self._queued_images} images wait already and {count} more do not fit "
                f"(at most {self._max_queue_images}); try again in a second"
            )
        loop, now = asyncio.get_running_loop(), time.perf_counter()
        items = [
            _Item(images_NHW[start : start + self._max_batch_images], loop.create_future(), now)
            for start in range(0, count, self._max_batch_images)
        ]
        self._queue.extend(items)
        self._queued_images += count
        if self._running is None or self._running.done():
            self._running = loop.create_task(self._run())
        try:
            answers = [await item.answer for item in items]
        finally:
            for item in items:  # a request that was given up is not computed
                item.answer.cancel()
        if len(answers) == 1:
            return answers[0]
        return np.concatenate([a[0] for a in answers]), np.concatenate([a[1] for a in answers])

    def close(self) -> None:
        """End the engine's thread after the batch that runs."""
        self._thread.shutdown(wait=True)

    async def _run(self) -> None:
        """Batch after batch until the queue is empty."""
        loop = asyncio.get_running_loop()
        while batch := self._take():
            start = time.perf_counter()
            try:
                images_BHW = np.concatenate([item.images for item in batch])
                logits_BK, probabilities_BK = await loop.run_in_executor(
                    self._thread, self._predict, images_BHW
                )
                compute_s = time.perf_counter() - start
                _hand_out(batch, logits_BK, probabilities_BK)
                queue_s = tuple(start - item.arrived_s for item in batch)
                self._on_batch(
                    BatchRecord(len(images_BHW), compute_s, queue_s, self._queued_images)
                )
            except Exception as error:  # noqa: BLE001 - who waits must know, whatever it was
                for item in batch:
                    if not item.answer.done():
                        item.answer.set_exception(error)

    def _take(self) -> list[_Item]:
        """The oldest items that fit into one batch; those that nobody waits for are dropped."""
        batch: list[_Item] = []
        images = 0
        while self._queue:
            item = self._queue[0]
            if item.answer.done():
                self._drop()
            elif images + len(item.images) <= self._max_batch_images:
                self._drop()
                batch.append(item)
                images += len(item.images)
            else:
                break
        return batch

    def _drop(self) -> None:
        self._queued_images -= len(self._queue.popleft().images)


def _hand_out(batch: list[_Item], logits_BK: Array, probabilities_BK: Array) -> None:
    start = 0
    for item in batch:
        end = start + len(item.images)
        if not item.answer.done():
            item.answer.set_result((logits_BK[start:end], probabilities_BK[start:end]))
        start = end
