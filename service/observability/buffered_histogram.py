"""A Prometheus histogram that buffers its observations as plain numbers and adds them in bulk.

With several processes, prometheus_client writes each observation to a memory-mapped file while
holding a lock, which costs more than parsing a small request.
"""

from bisect import bisect_left

from prometheus_client import Histogram


class BufferedHistogram(Histogram):
    """A histogram that exposes its observations once ``flush`` is called on each of its series."""

    def _metric_init(self) -> None:
        super()._metric_init()
        self._pending, self._pending_total = [0] * len(self._upper_bounds), 0.0

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Buffer one observation; exemplars are not kept."""
        self._pending[bisect_left(self._upper_bounds, amount)] += 1
        self._pending_total += amount

    def flush(self) -> int:
        """Add the buffered observations to the series and return their number."""
        observed = sum(self._pending)
        if observed:
            self._sum.inc(self._pending_total)
            for bucket, count in zip(self._buckets, self._pending, strict=True):
                if count:
                    bucket.inc(count)
            self._pending, self._pending_total = [0] * len(self._pending), 0.0
        return observed
