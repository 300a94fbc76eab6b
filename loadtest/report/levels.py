"""What the server said of itself at each load point, of the seconds that count."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.measure.result import Result
from loadtest.telemetry.watch import ServerSample, summary


@dataclass(frozen=True)
class Level:
    """The server at one load point; a field is None where nothing is known.

    Attributes:
        sizes: Share of the batches, by their size in words ("3-4"); of all sizes up to the largest
            that occurred.
        samples_per_batch: Mean.
        queue_ms, compute_ms: Means over the batches, as in ``ServerSample``.
        cpu_cores: Mean.
        rss_bytes: Most.
        gpu_percent: Mean.
        gpu_bytes: Most.
    """

    sizes: dict[str, float] | None
    samples_per_batch: float | None
    queue_ms: float | None
    compute_ms: float | None
    cpu_cores: float | None
    rss_bytes: int | None
    gpu_percent: float | None
    gpu_bytes: int | None


def samples(result: Result) -> list[ServerSample]:
    """All samples of a result."""
    return [ServerSample.model_validate(sample) for sample in result.server_samples]


def counting(result: Result) -> list[ServerSample]:
    """The samples under load without the warm-up; all of them if none is left.

    The generator's clock and the server's are not the same: what counts is taken to begin a
    warm-up after the first sample with work in it, and to end with the last one.
    """
    every = samples(result)
    busy = [i for i, sample in enumerate(every) if _busy(sample)]
    if not busy:
        return every
    start_s = every[busy[0]].at_s + result.warmup_s
    return [s for s in every[busy[0] : busy[-1] + 1] if s.at_s - s.seconds / 2 > start_s] or every


def level(result: Result) -> Level:
    """The server's side of a result."""
    seconds = counting(result)
    means: dict[str, Any] = summary(seconds)
    return Level(
        sizes=_shares(means["batch_sizes"]),
        rss_bytes=max((s.rss_bytes for s in seconds if s.rss_bytes is not None), default=None),
        gpu_bytes=max((s.gpu_bytes for s in seconds if s.gpu_bytes is not None), default=None),
        **{
            name: means[name]
            for name in (
                *("samples_per_batch", "queue_ms", "compute_ms"),
                *("cpu_cores", "gpu_percent"),
            )
        },
    )


def said_nothing(results: Sequence[Result]) -> bool:
    """Does no sample of any of them know a counter of the server's?"""
    return all(s.samples_per_s is None for result in results for s in samples(result))


def _busy(sample: ServerSample) -> bool:
    return bool(sample.requests_per_s or sample.batches_per_s or sample.refused_per_s)


def _shares(counts: dict[str, int] | None) -> dict[str, float] | None:
    """Buckets by their upper bounds to shares by sizes in words."""
    total = sum((counts or {}).values())
    if not counts or not total:
        return None
    bounds = sorted(counts, key=float)
    last = max(i for i, bound in enumerate(bounds) if counts[bound])
    words, below = {}, 0.0
    for bound in bounds[: last + 1]:
        top = float(bound)
        if top == float("inf"):
            word = f"over {below:g}"
        else:
            word = f"{top:g}" if top == below + 1 else f"{below + 1:g}-{top:g}"
        words[word], below = counts[bound] / total, top
    return words
