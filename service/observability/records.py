"""Records of requests and batches, the source of metrics, log lines and traces."""

from dataclasses import dataclass
from typing import NamedTuple


class BatchTiming(NamedTuple):
    """How a request, or a batch, was computed.

    Attributes:
        batch_samples: Samples in the batch (the largest one, if a request took several).
        queue_s: Seconds that the request, or the oldest one of the batch, waited for the engine.
        compute_s: Seconds that the engine took (for all batches of the request).
    """

    batch_samples: int
    queue_s: float
    compute_s: float


@dataclass(slots=True)
class Exchange:
    """A request and its outcome.

    Attributes:
        request_id: The id in the response header.
        started_s: The time when its head had been read, from ``time.perf_counter``.
        client: The client's address and port.
        method: The HTTP method.
        path: The path as it was sent, with its query.
        model: The model that answered, if one did.
        timing: How it was computed, if it was.
    """

    request_id: bytes
    started_s: float
    client: tuple[str, int] | None
    method: str
    path: str
    model: str | None = None
    timing: BatchTiming | None = None
