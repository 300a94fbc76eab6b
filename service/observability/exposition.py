"""Builds the content of GET /metrics: all workers' metrics combined, and each worker's process."""

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

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # set by BentoML for its workers
# Metric names before this release, exposed alongside the current ones until the next release.
PREFIX, OLD_PREFIX = "inference_", "digits_"
OLD_NAMES = {
    "inference_samples": "digits_images",
    "inference_batch_samples": "digits_batch_images",
    "inference_queued_samples": "digits_queued_images",
    "inference_queue_limit_samples": "digits_queue_limit_images",
}


def write_exposition() -> tuple[bytes, str]:
    """Return all workers' metrics in Prometheus' text format, and its content type."""
    registry = CollectorRegistry()
    collectors: list[Collector] = [REGISTRY]
    if folder := os.environ.get(FOLDER):
        workers = _list_live_workers(Path(folder))
        collectors = [
            MultiProcessCollector(CollectorRegistry(), folder),  # type: ignore[no-untyped-call]
            _Processes(workers),
        ]
    registry.register(_WithOldNames(collectors))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _WithOldNames(Collector):
    """Yields each metric under its current name and under its name in the previous release."""

    def __init__(self, collectors: Iterable[Collector]) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Metric]:
        for collector in self._collectors:
            for metric in collector.collect():
                yield metric
                if metric.name.startswith(PREFIX):
                    yield _rename(metric)


def _rename(metric: Metric) -> Metric:
    old = OLD_NAMES.get(metric.name, OLD_PREFIX + metric.name.removeprefix(PREFIX))
    renamed = Metric(old, f"Old name of {metric.name}.", metric.type)
    for sample in metric.samples:
        renamed.add_sample(old + sample.name.removeprefix(metric.name), sample.labels, sample.value)
    return renamed


def _list_live_workers(folder: Path) -> list[int]:
    """Return the process ids of live workers, after removing the gauges of dead ones.

    Nothing else removes them: a killed worker's last values would be exposed for ever.
    """
    written = {int(file.stem.rpartition("_")[2]) for file in folder.glob("*.db")}
    live = [pid for pid in sorted(written) if _is_worker(pid)]
    for pid in written.difference(live):
        with suppress(FileNotFoundError):  # another worker, scraped at the same time, did it
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
    return live


def _is_worker(pid: int) -> bool:
    """Whether the process is alive and has the same parent as this one."""
    try:
        process = psutil.Process(pid)
        return bool(process.ppid() == os.getppid() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class _Processes(Collector):
    """Collects CPU, memory, files and start time of each worker, with the label ``pid``."""

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
