"""Decides what goes live and what is rolled back, without access to files, clocks or processes.

Each worker calls ``decide`` under the roll-out's lock. The result depends only on the arguments, so
it does not matter which worker makes the call.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from export.bundle.manifest import Manifest
from service.versions.evidence import add_figures, judge, judge_promoted
from service.versions.state import DesiredState, Record, Refusal, VersionFigures, WorkerReport

# One worker may be killed for any reason, but a version that crashes workers crashes another one.
MOST_DEATHS = 2


class Fault(NamedTuple):
    """A version that failed its golden samples in a worker, and the reason."""

    version: str
    reason: str


class Decision(NamedTuple):
    """The desired state and the record after a decision.

    Attributes:
        taken_back: The roles of the versions that this decision takes back.
    """

    desired: DesiredState
    record: Record
    taken_back: tuple[str, ...] = ()


def decide(
    desired: DesiredState,
    record: Record,
    reports: Sequence[WorkerReport],
    dead: Sequence[WorkerReport],
    faults: Sequence[Fault],
    now_s: float,
) -> Decision:
    """Decide on the pending generation, and on the versions that are live.

    Args:
        desired: The desired state.
        record: The earlier decisions.
        reports: The reports of the live workers.
        dead: The reports of workers that ended unexpectedly since the last decision.
        faults: The faults that this worker found.
        now_s: The current Unix time.
    """
    record = _count_deaths(desired, record, dead, now_s)
    if is_pending(desired, record):
        record = _settle(desired, record, reports, now_s)
    return _take_back(desired, record, reports, faults, now_s)


def is_pending(desired: DesiredState, record: Record) -> bool:
    """Whether the desired state is waiting to go live."""
    generation = desired.generation
    return generation > record.live.generation and not record.is_refused(generation)


def is_watched(record: Record, now_s: float) -> bool:
    """Whether a promotion is so recent that the previous version may return automatically."""
    live = record.live
    return live.previous is not None and now_s - record.live_s < live.limits.watch_s


def all_are_prepared(reports: Iterable[WorkerReport], generation: int) -> bool:
    """Whether there are workers, and each worker of each service has loaded a generation."""
    found = list(reports)
    return (
        bool(found)
        and count_missing(found) == 0
        and all(report.prepared >= generation for report in found)
    )


def count_missing(reports: Iterable[WorkerReport]) -> int:
    """Return how many workers of these reports' services have no report."""
    services = defaultdict[int, list[WorkerReport]](list)
    for report in reports:
        services[report.service].append(report)
    return sum(max(0, group[0].workers - len(group)) for group in services.values())


def find_contract_changes(old: Manifest, new: Manifest) -> list[str]:
    """Describe each difference between the tensors, labels or tasks of two versions."""
    changes = []
    for what in ("inputs", "outputs"):
        before, after = (
            {spec.name: spec for spec in getattr(manifest, what)} for manifest in (old, new)
        )
        for name in before.keys() | after.keys():
            if before.get(name) != after.get(name):
                words = [str(part.get(name, "nothing")) for part in (before, after)]
                if words[0] == words[1]:
                    words = [f"{part[name].model_dump()}" for part in (before, after)]
                changes.append(f"{what[:-1]} {words[0]} became {words[1]}")
    for what in ("labels", "task"):
        pair = getattr(old, what), getattr(new, what)
        if pair[0] != pair[1]:
            changes.append(f"{what} {pair[0]} became {pair[1]}")
    return sorted(changes)


def _count_deaths(
    desired: DesiredState, record: Record, dead: Sequence[WorkerReport], now_s: float
) -> Record:
    live = record.live
    for report in dead:
        if is_pending(desired, record):
            generation = desired.generation
        elif live.canary or live.shadow or is_watched(record, now_s):
            generation = live.generation
        else:
            continue
        deaths = {generation: record.deaths.get(generation, 0) + 1}
        record = record.with_event(
            generation, "worker ended", f"process {report.pid} ended unexpectedly", deaths=deaths
        )
    return record


def _settle(
    desired: DesiredState, record: Record, reports: Sequence[WorkerReport], now_s: float
) -> Record:
    """Let the pending generation go live, refuse it, or leave it pending."""
    generation = desired.generation
    failures = [report.failure for report in reports if report.failed == generation]
    deaths = record.deaths.get(generation, 0)
    if deaths >= MOST_DEATHS:
        failures.append(f"{deaths} workers ended unexpectedly while it was loading")
    if failures:
        refused = Refusal(generation=generation, reason=failures[0])
        return record.with_event(generation, "refused", failures[0], refused=refused)
    if all_are_prepared(reports, generation):
        return record.with_event(generation, "live", desired.reason, live=desired, live_s=now_s)
    return record


def _take_back(
    desired: DesiredState,
    record: Record,
    reports: Sequence[WorkerReport],
    faults: Sequence[Fault],
    now_s: float,
) -> Decision:
    """Replace the desired state with one without the versions that have to be rolled back."""
    live = record.live
    versions = {
        "stable": live.stable,
        "canary": live.canary.version if live.canary else None,
        "shadow": live.shadow.version if live.shadow else None,
    }
    found = _find_roles_to_take_back(record, reports, faults, now_s)
    if is_pending(desired, record):  # a version may have been rolled back already
        found = {role: why for role, why in found.items() if versions[role] in desired.versions}
    if not found:
        return Decision(desired, record)
    changes: dict[str, Any] = {}
    if "stable" in found:
        changes = {"stable": live.previous, "previous": None, "canary": None, "shadow": None}
    else:
        changes = dict.fromkeys(found)
    reason = "; ".join(
        f"the service rolled back the {role} version {versions[role]}: {why}"
        for role, why in found.items()
    )
    base = live.model_copy(update={"generation": max(live.generation, desired.generation)})
    successor = base.successor(reason, **changes)
    record = record.with_event(successor.generation, "taken back", reason)
    if is_pending(desired, record):
        superseded = Refusal(generation=desired.generation, reason=f"superseded: {reason}")
        record = record.model_copy(update={"refused": superseded})
    return Decision(successor, record, tuple(found))


def _find_roles_to_take_back(
    record: Record, reports: Sequence[WorkerReport], faults: Sequence[Fault], now_s: float
) -> dict[str, str]:
    """Return the reason for each role (stable, canary, shadow) that has to be rolled back."""
    live = record.live
    roles = {found.version: role for role, found in _candidates(live)}
    if is_watched(record, now_s):
        roles[live.stable] = "stable"
    found = {
        roles[fault.version]: f"golden samples: {fault.reason}"
        for fault in faults
        if fault.version in roles
    }
    deaths = record.deaths.get(live.generation, 0)
    if deaths >= MOST_DEATHS:
        why = f"{deaths} workers ended unexpectedly while it was served"
        found = dict.fromkeys(roles.values(), why) | found
    for report in reports:
        if report.failed == live.generation:
            found = {role: report.failure for role, _ in _candidates(live)} | found
    figures = sum_figures(reports, live.generation)
    if judged := judge(live, figures):
        role, reason = judged
        found.setdefault(role, reason)
    if "stable" in roles.values() and live.stable in figures:
        failed = judge_promoted(figures[live.stable])
        if failed is not None:
            found.setdefault("stable", failed)
    return found


def _candidates(state: DesiredState) -> list[tuple[str, Any]]:
    pairs = (("canary", state.canary), ("shadow", state.shadow))
    return [(role, found) for role, found in pairs if found is not None]


def sum_figures(reports: Iterable[WorkerReport], generation: int) -> dict[str, VersionFigures]:
    """Return the figures of each version, summed over the workers that serve a generation."""
    parts = defaultdict[str, list[VersionFigures]](list)
    for report in reports:
        if report.active == generation:
            for version, figures in report.figures.items():
                parts[version].append(figures)
    return {version: add_figures(found) for version, found in parts.items()}
