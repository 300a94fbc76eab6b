"""Counts in plain numbers, which the metrics are told now and then.

Where several processes share their figures, prometheus_client writes each into a file's memory,
under a lock; a request that is alone in its batch would pay more for that than for being parsed.
"""

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import Histogram


class BulkHistogram(Histogram):
    """A histogram that takes many observations at once."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add observations.

        Args:
            counts: How many in each bucket alone; the last one has no bound.
            total: Their sum.
        """
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


class Tally:
    """Observations that one series of a histogram was not told yet."""

    def __init__(self, series: BulkHistogram, bounds: Sequence[float]) -> None:
        """Begin with none.

        Args:
            series: Whom to tell.
            bounds: Of its buckets, without the last one's.
        """
        self._series, self._bounds = series, bounds
        self._counts, self._total = [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        """Note one."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def settle(self) -> int:
        """Tell them, and how many they were."""
        counts, total = self._counts, self._total
        told = sum(counts)
        if told:
            self._series.add(counts, total)
            self._counts, self._total = [0] * len(counts), 0.0
        return told
