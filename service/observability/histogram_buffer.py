"""Histogram observations buffered in plain numbers and added to Prometheus in bulk.

With several processes prometheus_client writes each observation into a memory-mapped file under a
lock, which costs more than parsing a small request.
"""

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import Histogram


class BulkHistogram(Histogram):
    """A histogram that takes many observations at once."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add observations.

        Args:
            counts: Observations of each bucket alone; the last bucket has no bound.
            total: The sum of the observed values.
        """
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


class HistogramBuffer:
    """Observations that were not yet added to a series of a histogram."""

    def __init__(self, series: BulkHistogram, bounds: Sequence[float]) -> None:
        """Begin empty.

        Args:
            series: The series to add to.
            bounds: The bounds of its buckets, without infinity.
        """
        self._series, self._bounds = series, bounds
        self._counts, self._total = [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        """Buffer one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def flush(self) -> int:
        """Add the buffered observations to the series and return their number."""
        counts, total = self._counts, self._total
        observed = sum(counts)
        if observed:
            self._series.add(counts, total)
            self._counts, self._total = [0] * len(counts), 0.0
        return observed
