"""Builds the output of ``python -m service.rollout status``, and implements ``--wait``."""

import time
from collections import defaultdict
from typing import Any, Literal

import numpy as np

from export.bundle.metrics import Array
from service.rollout.changes import list_versions
from service.versions.decisions import count_missing, is_pending, sum_figures
from service.versions.evidence import find_percentile
from service.versions.state import RolloutFolder, VersionFigures, WorkerReport

POLL_S = 0.05
EVENTS_SHOWN = 5

Outcome = Literal["live", "refused", "pending"]


def read_status(folder: RolloutFolder) -> dict[str, Any]:
    """Return a model's desired state, decisions and worker reports, as JSON types.

    Raises:
        RolloutError: A file cannot be read.
    """
    desired, record = folder.read_desired(), folder.read_record()
    reports = sorted(folder.live_reports().values(), key=lambda report: report.pid)
    live = record.live if record else None
    outcome: Outcome = "live"
    if record is None or is_pending(desired, record):
        outcome = "pending"
    elif record.is_refused(desired.generation):
        outcome = "refused"
    return {
        "model": folder.name,
        "versions": list_versions(folder),
        "desired": desired.model_dump(mode="json"),
        "outcome": outcome,
        "refused": record.refused.model_dump() if record and record.refused else None,
        "live": live.model_dump(mode="json") if live else None,
        "workers": [
            report.model_dump(mode="json", exclude={"figures", "service", "workers"})
            for report in reports
        ],
        "missing_workers": count_missing(reports),
        "figures": {
            version: _describe_figures(figures)
            for version, figures in sum_figures(reports, live.generation if live else 0).items()
        },
        "events": [event.model_dump() for event in (record.events if record else ())],
    }


def wait_for(folder: RolloutFolder, generation: int, seconds: float) -> tuple[Outcome, str]:
    """Wait until a generation is live in every worker or refused, or the time runs out.

    Returns:
        The outcome and the reason.
    """
    give_up_s = time.monotonic() + seconds
    while True:
        record, reports = folder.read_record(), list(folder.live_reports().values())
        if record is not None and record.is_refused(generation) and record.refused is not None:
            return "refused", record.refused.reason
        live = record is not None and record.live.generation >= generation
        if live and reports and all(report.active >= generation for report in reports):
            if record is not None and record.live.generation > generation:
                return "refused", record.live.reason
            return "live", f"in {len(reports)} workers"
        if time.monotonic() >= give_up_s:
            return "pending", _explain_pending(reports, generation)
        time.sleep(POLL_S)


def read_samples(folder: RolloutFolder) -> list[dict[str, Any]]:
    """Return the worst shadow disagreements that the workers kept, the worst first.

    Each has "file", "number", "difference", and the arrays as lists, named "GROUP/TENSOR".
    """
    found = []
    for path in sorted(folder.samples.glob("[!.]*.npz")):
        samples = defaultdict[str, dict[str, Any]](dict)
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                number, _, name = key.partition("/")
                samples[number][name] = _to_json(arrays[key])
        found += [{"file": str(path), "number": int(n), **part} for n, part in samples.items()]
    return sorted(found, key=lambda sample: -sample["difference"])


def describe_status(status: dict[str, Any]) -> str:
    """Return a status as text for the terminal."""
    desired, live = status["desired"], status["live"]
    lines = [f"{status['model']}: generation {desired['generation']} is {status['outcome']}"]
    if status["outcome"] == "refused":
        lines.append(f"  refused: {status['refused']['reason']}")
    state = live or desired
    lines.append(f"  stable {state['stable']}, previous {state['previous'] or 'none'}")
    lines += [
        f"  {role} {state[role]['version']}, share {state[role]['share']:g}"
        for role in ("canary", "shadow")
        if state[role]
    ]
    lines.append(f"  versions: {', '.join(status['versions'])}")
    generations = [str(worker["active"]) for worker in status["workers"]]
    serving = f"serve generation {', '.join(generations)}" if generations else "none is running"
    lines.append(f"  workers: {len(generations)} ({serving})")
    if status["missing_workers"]:
        lines.append(f"  {status['missing_workers']} more workers are expected")
    for version, figures in status["figures"].items():
        words = f"{figures['requests']} requests, {figures['engine_errors']} engine errors"
        if figures["p99_ms"] is not None:
            words += f", p99 at most {figures['p99_ms']:.3g} ms"
        if figures["compared"]:
            words += f", {figures['disagreed']} of {figures['compared']} shadow answers disagree"
        lines.append(f"  {version}: {words}")
    lines += [
        f"  {time.strftime('%H:%M:%S', time.localtime(event['at_s']))} generation "
        f"{event['generation']} {event['event']}: {event['reason']}"
        for event in status["events"][-EVENTS_SHOWN:]
    ]
    return "\n".join(lines)


def _explain_pending(reports: list[WorkerReport], generation: int) -> str:
    if not reports:
        return "no worker follows this model: is the service running, with this bundles folder?"
    waiting = [str(report.pid) for report in reports if report.prepared < generation]
    missing = count_missing(reports)
    words = [f"not loaded yet in the workers {', '.join(waiting)}"] if waiting else []
    words += [f"{missing} more workers are expected"] if missing else []
    return "; ".join(words) or "loaded, and about to go live"


def _describe_figures(figures: VersionFigures) -> dict[str, Any]:
    p99_ms = None
    if sum(figures.durations):
        p99_ms = 1000 * find_percentile(figures.durations, 0.99)
    return {
        "requests": figures.requests,
        "engine_errors": figures.engine_errors,
        "p99_ms": p99_ms,
        "compared": figures.compared,
        "disagreed": figures.disagreed,
        "skipped": figures.skipped,
        "worst": figures.worst_words,
    }


def _to_json(array: Array) -> Any:
    return array.tolist()
