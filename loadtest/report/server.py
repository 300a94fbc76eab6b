"""What the server said of itself at each load point, of the seconds that count."""

from typing import Any

from loadtest.measure.result import Result
from loadtest.telemetry.watch import ServerSample, summary


def samples(result: Result) -> list[ServerSample]:
    """All samples of a result."""
    return [ServerSample.model_validate(sample) for sample in result.server_samples]


def counting(result: Result) -> list[ServerSample]:
    """The samples under load without the warm-up; all of them if none is left.

    The generator's clock and the server's are not the same: what counts is taken to begin a
    warm-up after the first sample with work in it, and to end with the last one.
    """
    every = samples(result)
    busy = [
        i
        for i, sample in enumerate(every)
        if sample.requests_per_s or sample.batches_per_s or sample.refused_per_s
    ]
    if not busy:
        return every
    start_s = every[busy[0]].at_s + result.warmup_s
    return [s for s in every[busy[0] : busy[-1] + 1] if s.at_s - s.seconds / 2 > start_s] or every


def level(result: Result) -> dict[str, Any]:
    """The summary of the seconds that count; memory at its most.

    ``sizes`` are shares of the batches by their size in words ("3-4"), of all sizes up to the
    largest that occurred.
    """
    seconds = counting(result)
    found = summary(seconds)
    for name in ("rss_bytes", "gpu_bytes"):
        values = [getattr(s, name) for s in seconds if getattr(s, name) is not None]
        found[name] = max(values, default=None)
    return {**found, "sizes": _shares(found["batch_sizes"] or {})}


def _shares(counts: dict[str, int]) -> dict[str, float] | None:
    """Buckets by their upper bounds to shares by sizes in words."""
    total = sum(counts.values())
    if not total:
        return None
    bounds = sorted(counts, key=float)
    last = max(i for i, bound in enumerate(bounds) if counts[bound])
    words, below = {}, 0.0
    for bound in bounds[: last + 1]:
        top = float(bound)
        word = f"{top:g}" if top == below + 1 else f"{below + 1:g}-{top:g}"
        words[f"over {below:g}" if top == float("inf") else word] = counts[bound] / total
        below = top
    return words
