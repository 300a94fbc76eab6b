"""Collects samples of concurrent requests into batches: one queue and one engine per model.

Each batch takes everything that arrived while the previous one ran, so there is no waiting time to
tune. Sizes are counted in samples, not in requests. Samples of different shapes (a variable axis)
never share a batch.

A short batch runs in the event loop: handing it to a thread and back costs more than computing it.
A long batch runs in the batcher's thread, so that the event loop can read more requests meanwhile.
"""

import asyncio
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

import numpy as np

from export.bundle.golden import Predict
from export.bundle.metrics import Arrays
from service.observability.records import BatchTiming
from service.protocol.errors import DeadlineError, OverloadedError

# Weight of the newest batch in the running estimate of seconds per sample.
NEWEST_WEIGHT = 0.1
# While connections are still being accepted, a batch that is not full waits this long at most.
ACCEPT_GRACE_S = 0.002

_SampleShapes = tuple[tuple[int, ...], ...]
_Result = tuple[Arrays, BatchTiming]
# Outputs or the engine's exception, the time when the engine began, and the seconds that it took.
_Computed = tuple[Arrays | Exception, float, float]


class ResultSink(Protocol):
    """The receiver of one request's result: ``succeed`` or ``fail``, once, in the event loop."""

    def is_waiting(self) -> bool:
        """Return False once the result was delivered or is not needed; then it is not computed."""

    def succeed(self, outputs: Arrays, timing: BatchTiming) -> None:
        """Receive the outputs of this request's samples; must not raise."""

    def fail(self, error: Exception) -> None:
        """Receive the error if there is no result; must not raise."""


class EngineError(RuntimeError):
    """The engine raised an exception for a batch; it is kept as the cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(repr(cause))
        self.__cause__ = cause


@dataclass(slots=True)
class _Item:
    """A request, or a part of one, that fits into one batch."""

    inputs: Arrays
    samples: int
    sink: ResultSink
    arrived_s: float


class Batcher:
    """Runs one model's batches; all methods are called in one event loop."""

    def __init__(
        self,
        predict: Predict,
        *,
        max_batch_samples: int,
        max_queue_samples: int,
        max_loop_samples: int | None = None,
        deadline_s: float = float("inf"),
        wait_s: float = 0.0,
        on_batch: Callable[[BatchTiming], None] = lambda timing: None,
        count_accepted: Callable[[], int] = lambda: 0,
    ) -> None:
        """Make a batcher; its thread ends when the batcher is garbage-collected.

        Args:
            predict: Runs one batch; never called concurrently.
            max_batch_samples: The largest number of samples in one batch.
            max_queue_samples: The largest number of queued samples; further requests are refused.
            max_loop_samples: Batches of at most this many samples run in the event loop, larger
                ones in a thread. None: all run in the event loop; 0: none.
            deadline_s: Seconds after which a request that has no result fails.
            wait_s: Seconds that an idle engine waits for a fuller batch.
            on_batch: Called in the event loop after each batch.
            count_accepted: Returns the number of connections accepted so far. While it grows, a
                batch waits for a short time: uvloop accepts one connection per loop iteration, and
                each batch would delay the next connection.
        """
        self._predict = predict
        self._max_batch_samples = max_batch_samples
        self._max_queue_samples = max_queue_samples
        self._max_loop_samples = max_batch_samples if max_loop_samples is None else max_loop_samples
        self._deadline_s, self._wait_s = deadline_s, wait_s
        self._on_batch, self._count_accepted = on_batch, count_accepted
        self._queues: dict[_SampleShapes, deque[_Item]] = {}
        self._queued_samples = 0
        self._retries: deque[_Item] = deque()
        self._is_running = False
        self._recent_samples = self._recent_s = 0.0
        self._wait_timer: asyncio.TimerHandle | None = None
        self._accepted, self._accepting_since_s = 0, 0.0
        self._thread: Thread | None = None
        self._thread_work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        weakref.finalize(self, self._thread_work.put, None)

    @property
    def queued_samples(self) -> int:
        """The number of queued samples, without those of the running batch."""
        return self._queued_samples

    @property
    def is_idle(self) -> bool:
        """Whether no batch is running and the queue is empty."""
        return not self._is_running

    def enqueue(
        self, inputs: Arrays, samples: int, sink: ResultSink, *, is_exempt: bool = False
    ) -> None:
        """Queue a request of any size without blocking.

        Args:
            inputs: Checked arrays by name, N samples each.
            samples: N, at least 1.
            sink: Receives the outputs in the request's order, or an error.
            is_exempt: Admit it even if the queue is full.

        Raises:
            OverloadedError: The queue has no room for this many samples.
        """
        if self._queued_samples + samples > self._max_queue_samples and not is_exempt:
            raise self._overloaded(samples)
        now_s, size = time.perf_counter(), self._max_batch_samples
        shapes = tuple([array.shape[1:] for array in inputs.values()])
        queue = self._queues.get(shapes)
        if queue is None:
            queue = self._queues[shapes] = deque()
        if samples <= size:
            queue.append(_Item(inputs, samples, sink, now_s))
        else:
            results: dict[int, _Result] = {}
            starts = range(0, samples, size)
            for start in starts:
                part = {name: array[start : start + size] for name, array in inputs.items()}
                part_sink = _PartSink(sink, start, len(starts), results)
                queue.append(_Item(part, min(size, samples - start), part_sink, now_s))
        self._queued_samples += samples
        self._start()

    async def submit(self, inputs: Arrays, *, is_exempt: bool = False) -> _Result:
        """Queue a request like ``enqueue``; return its outputs and the timing of its batch.

        If the caller is cancelled, the outputs are not computed.

        Raises:
            OverloadedError: The queue has no room for this many samples.
            DeadlineError: The request waited too long.
            EngineError: The engine failed.
        """
        samples = len(next(iter(inputs.values())))
        future = asyncio.get_running_loop().create_future()
        self.enqueue(inputs, samples, _FutureSink(future), is_exempt=is_exempt)
        result: _Result = await future
        return result

    def close(self) -> None:
        """End the thread after the running batch."""
        if self._thread is not None:
            self._thread_work.put(None)
            self._thread.join()

    def _overloaded(self, samples: int) -> OverloadedError:
        s_per_sample = self._recent_s / self._recent_samples if self._recent_samples else 0
        return OverloadedError(
            f"{self._queued_samples} samples are queued already and {samples} more do not fit (at "
            f"most {self._max_queue_samples}); try again later",
            retry_after_s=(self._queued_samples + samples) * s_per_sample,
        )

    def _start(self) -> None:
        """Schedule the next batch for the next loop iteration, or after the waiting time if set."""
        is_full = self._queued_samples >= self._max_batch_samples
        if self._wait_timer is not None and is_full:
            self._wait_timer.cancel()
            self._schedule()
        elif not self._is_running:
            self._is_running = True
            if self._wait_s and not is_full:
                loop = asyncio.get_running_loop()
                self._wait_timer = loop.call_later(self._wait_s, self._schedule)
            else:
                self._schedule()

    def _schedule(self) -> None:
        # Run in the next loop iteration, so that the batch includes all requests received by then.
        self._wait_timer = None
        asyncio.get_running_loop().call_soon(self._run_next)

    def _run_next(self) -> None:
        """Run one batch; the event loop reads new requests before the next batch."""
        if self._is_accepting():
            asyncio.get_running_loop().call_soon(self._run_next)
            return
        batch, samples = self._next_batch()
        if not batch:
            self._is_running = False
        elif samples > self._max_loop_samples:
            self._run_in_thread(batch, samples)
        else:
            self._finish(batch, samples, self._compute(batch))

    def _compute(self, batch: list[_Item]) -> _Computed:
        start_s, inputs = time.perf_counter(), batch[0].inputs
        outputs: Arrays | Exception
        try:
            if len(batch) > 1:
                inputs = {
                    name: np.concatenate([item.inputs[name] for item in batch]) for name in inputs
                }
            outputs = self._predict(inputs)
        except Exception as error:  # noqa: BLE001 - the clients must be answered, whatever it is
            outputs = error
        return outputs, start_s, time.perf_counter() - start_s

    def _run_in_thread(self, batch: list[_Item], samples: int) -> None:
        """Run a batch in the thread, and fail its requests if it takes longer than the deadline.

        Uses a plain queue and ``call_soon_threadsafe``, because an executor's futures cost more
        than a small batch.
        """
        loop = asyncio.get_running_loop()
        if self._thread is None:
            arguments = (self._thread_work,)
            self._thread = Thread(target=_run_thread, args=arguments, name="engine", daemon=True)
            self._thread.start()
        left_s = batch[0].arrived_s + self._deadline_s - time.perf_counter()
        expiry = loop.call_later(left_s, self._expire, batch)

        def receive(computed: _Computed) -> None:
            expiry.cancel()
            self._finish(batch, samples, computed)

        def work() -> None:
            computed = self._compute(batch)
            if not loop.is_closed():
                loop.call_soon_threadsafe(receive, computed)

        self._thread_work.put(work)

    def _is_accepting(self) -> bool:
        """Whether connections are still being accepted and the batch may wait for them."""
        accepted = self._count_accepted()
        if accepted == self._accepted or self._queued_samples >= self._max_batch_samples:
            self._accepting_since_s = 0.0
            return False
        self._accepted, now_s = accepted, time.perf_counter()
        if self._accepting_since_s == 0.0:
            self._accepting_since_s = now_s
        if now_s - self._accepting_since_s < ACCEPT_GRACE_S:
            return True
        self._accepting_since_s = 0.0
        return False

    def _next_batch(self) -> tuple[list[_Item], int]:
        """Take the oldest items of one shape that fit into a batch; drop expired or unneeded ones.

        Returns:
            The items, the oldest first, and their number of samples.
        """
        if self._retries:
            item = self._retries.popleft()
            return [item], item.samples
        batch: list[_Item] = []
        samples, expired_before_s = 0, time.perf_counter() - self._deadline_s
        while self._queues and not batch:
            shapes = next(iter(self._queues))
            if len(self._queues) > 1:
                shapes = min(self._queues, key=lambda key: self._queues[key][0].arrived_s)
            queue = self._queues[shapes]
            while queue:
                item = queue[0]
                is_dropped = not item.sink.is_waiting() or item.arrived_s < expired_before_s
                if batch and not is_dropped and samples + item.samples > self._max_batch_samples:
                    break
                queue.popleft()
                self._queued_samples -= item.samples
                if not is_dropped:
                    batch.append(item)
                    samples += item.samples
                elif item.sink.is_waiting():
                    item.sink.fail(self._deadline_error("; the request was not computed"))
            if not queue:
                del self._queues[shapes]
        return batch, samples

    def _deadline_error(self, more: str = "") -> DeadlineError:
        return DeadlineError(f"no answer within {self._deadline_s:g} s{more}")

    def _expire(self, batch: list[_Item]) -> None:
        """Fail the requests of a batch whose engine takes longer than the deadline."""
        for item in batch:
            if item.sink.is_waiting():
                item.sink.fail(self._deadline_error())

    def _fail(self, batch: list[_Item], error: Exception) -> None:
        """Retry each request alone, since one bad sample may have failed the whole batch."""
        if len(batch) > 1:
            self._retries.extend(batch)
        elif batch[0].sink.is_waiting():
            batch[0].sink.fail(EngineError(error))

    def _finish(self, batch: list[_Item], samples: int, computed: _Computed) -> None:
        """Scatter the outputs to the requests, record the batch, and schedule the next one."""
        self._schedule()
        outputs, start_s, compute_s = computed
        if isinstance(outputs, Exception):
            self._fail(batch, outputs)
            return
        self._recent_samples += samples - NEWEST_WEIGHT * self._recent_samples
        self._recent_s += compute_s - NEWEST_WEIGHT * self._recent_s
        start = 0
        for item in batch:
            end = start + item.samples
            if item.sink.is_waiting():
                part = outputs
                if len(batch) > 1:
                    part = {name: array[start:end] for name, array in outputs.items()}
                timing = BatchTiming(samples, start_s - item.arrived_s, compute_s)
                item.sink.succeed(part, timing)
            start = end
        self._on_batch(BatchTiming(samples, start_s - batch[0].arrived_s, compute_s))


def _run_thread(thread_work: "SimpleQueue[Callable[[], None] | None]") -> None:
    """Run queued work until None arrives; refers only to the queue, so a batcher can be freed."""
    while (work := thread_work.get()) is not None:
        work()
        del work  # refers to the batcher


@dataclass(slots=True)
class _FutureSink:
    """Sets the future that ``submit`` awaits."""

    future: "asyncio.Future[_Result]"

    def is_waiting(self) -> bool:
        return not self.future.done()

    def succeed(self, outputs: Arrays, timing: BatchTiming) -> None:
        self.future.set_result((outputs, timing))

    def fail(self, error: Exception) -> None:
        self.future.set_exception(error)


@dataclass(slots=True)
class _PartSink:
    """Receives one part of a request that takes several batches; the last part joins all."""

    whole: ResultSink
    start: int
    parts: int
    results: dict[int, _Result]  # by start; shared by all parts

    def is_waiting(self) -> bool:
        return self.whole.is_waiting()

    def succeed(self, outputs: Arrays, timing: BatchTiming) -> None:
        self.results[self.start] = outputs, timing
        if len(self.results) < self.parts:
            return
        arrays, timings = zip(*[self.results[start] for start in sorted(self.results)], strict=True)
        joined = BatchTiming(
            max(timing.batch_samples for timing in timings),
            max(timing.queue_s for timing in timings),
            sum(timing.compute_s for timing in timings),
        )
        self.whole.succeed(
            {name: np.concatenate([part[name] for part in arrays]) for name in outputs}, joined
        )

    def fail(self, error: Exception) -> None:
        self.whole.fail(error)
