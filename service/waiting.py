"""Who waits for a batch, and what is known of it once it ran."""

import asyncio
from typing import NamedTuple, Protocol

import numpy as np

from export.parity.metrics import Arrays


class Ran(NamedTuple):
    """How a request was computed.

    Attributes:
        batch_samples: Samples of the batch that it was in (of the largest, if it took several).
        queue_s: How long it waited for the engine.
        compute_s: How long the engine took (all its batches).
    """

    batch_samples: int
    queue_s: float
    compute_s: float


class BatchRecord(NamedTuple):
    """One batch that ran, for the metrics."""

    samples: int
    compute_s: float
    longest_queue_s: float


class Waiter(Protocol):
    """Who waits for an answer; called in the event loop."""

    def waits(self) -> bool:
        """False if nobody is there any more: nothing is computed for it."""

    def answer(self, outputs: Arrays, ran: Ran) -> None:
        """The outputs for this waiter's samples; raises nothing."""

    def fail(self, error: Exception) -> None:
        """There will be no answer."""


class Future:
    """A coroutine that waits."""

    def __init__(self, future: "asyncio.Future[tuple[Arrays, Ran]]") -> None:
        self.future = future

    def waits(self) -> bool:
        """False once it was answered or given up."""
        return not self.future.done()

    def answer(self, outputs: Arrays, ran: Ran) -> None:
        """Wake the coroutine."""
        if not self.future.done():
            self.future.set_result((outputs, ran))

    def fail(self, error: Exception) -> None:
        """Raise in the coroutine."""
        if not self.future.done():
            self.future.set_exception(error)


def merged(parts: list[tuple[Arrays, Ran]]) -> tuple[Arrays, Ran]:
    """The answer to a request that took several batches, in their order."""
    if len(parts) == 1:
        return parts[0]
    outputs = {name: np.concatenate([part[name] for part, _ in parts]) for name in parts[0][0]}
    rans = [ran for _, ran in parts]
    return outputs, Ran(
        max(ran.batch_samples for ran in rans),
        max(ran.queue_s for ran in rans),
        sum(ran.compute_s for ran in rans),
    )


class EngineError(RuntimeError):
    """The engine failed at a batch."""

    def __init__(self, cause: Exception) -> None:
        """Keep the cause for the log."""
        super().__init__(repr(cause))
        self.__cause__ = cause
