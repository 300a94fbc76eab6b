"""What GET /metrics says: the figures of all workers together, and each worker's process."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Metric,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # BentoML gives its workers one


def exposition() -> tuple[bytes, str]:
    """All workers' figures in Prometheus' text format, and its content type."""
    registry, folder = REGISTRY, os.environ.get(FOLDER)
    if folder:
        workers = _live_workers(Path(folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        registry.register(_Processes(workers))
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _live_workers(folder: Path) -> list[int]:
    """The workers that live, by process; the gauges of those that died are removed.

    Nobody else does that: a worker that was killed would be shown as it was for ever.
    """
    written = {int(file.stem.rpartition("_")[2]) for file in folder.glob("*.db")}
    live = [pid for pid in sorted(written) if _is_worker(pid)]
    for pid in written.difference(live):
        with suppress(FileNotFoundError):  # another worker, asked at the same time, was faster
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
    return live


def _is_worker(pid: int) -> bool:
    """Is it a process of the same parent as this one?"""
    try:
        process = psutil.Process(pid)
        return bool(process.ppid() == os.getppid() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class _Processes(Collector):
    """CPU, memory, files and start of each worker, with the label that prometheus_client gives."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = pids

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for pid in self._pids:
            for found in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                described = Metric(found.name, found.documentation, found.type)
                family = families.setdefault(found.name, described)
                for sample in found.samples:
                    family.add_sample(sample.name, {"pid": str(pid)}, sample.value)
        yield from families.values()
