"""Describes the measuring machine and pins the service and the client to its cores."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def machine() -> str:
    """A short description of this machine: CPU, cores, operating system, Python version."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [ln for ln in cpuinfo.read_text().splitlines() if ln.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    )


def cores() -> tuple[set[int], set[int]]:
    """The service's cores and the client's core; both sets are empty with fewer than two cores."""
    if not hasattr(os, "sched_getaffinity"):
        return set(), set()
    *others, last = sorted(os.sched_getaffinity(0))
    return (set(others), {last}) if others else (set(), set())


@contextmanager
def pinned(wanted: set[int]) -> Iterator[None]:
    """Pin this thread, and what it starts, to these cores; an empty set means no pinning."""
    if not wanted:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
