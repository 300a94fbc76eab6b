"""Going live, refusals and rollbacks are decided only by the workers' reports."""

from typing import Any

from export.bundle.manifest import TensorSpec
from export.bundle.store import Bundle
from service.versions.decisions import (
    Decision,
    Fault,
    all_are_prepared,
    decide,
    find_contract_changes,
    is_pending,
)
from service.versions.state import DesiredState, Record, VersionFigures, WorkerReport
from tests.tiny import SERVED_BUNDLES

NOW_S = 1000.0


def _state(generation: int = 1, **fields: Any) -> DesiredState:
    base = {"stable": "a", "reason": "test", "changed_s": 0.0}
    return DesiredState.model_validate({"generation": generation, **base, **fields})


def _report(pid: int = 1, **fields: Any) -> WorkerReport:
    return WorkerReport.model_validate({"pid": pid, "service": 9, "workers": 2, **fields})


def _decide(
    desired: DesiredState, live: DesiredState, *reports: WorkerReport, **more: Any
) -> Decision:
    record = more.pop("record", Record(live=live, live_s=0.0))
    arguments: dict[str, Any] = {"dead": [], "faults": [], "now_s": NOW_S} | more
    return decide(desired, record, list(reports), **arguments)


CANARY = {"canary": {"version": "b", "share": 0.5}}


def test_a_state_goes_live_when_all_workers_are_prepared() -> None:
    """Of two workers, neither a single report nor one prepared worker is enough."""
    desired, live = _state(2, **CANARY), _state()
    prepared = [_report(1, prepared=2), _report(2, prepared=2)]
    for reports in ([prepared[0]], [prepared[0], _report(2, prepared=1)]):
        assert _decide(desired, live, *reports).record.live == live
    assert _decide(desired, live, *prepared).record.live == desired
    assert not all_are_prepared([], 2)


def test_a_failure_in_one_worker_refuses_the_state_for_all() -> None:
    """The stable version stays live, and the refused state is no longer pending."""
    desired, live = _state(2, stable="b"), _state()
    failed = _report(2, failed=2, failure="b was altered")
    found = _decide(desired, live, _report(1, prepared=2), failed)
    assert found.record.live == live
    assert found.record.refused is not None
    assert found.record.refused.reason == "b was altered"
    assert not is_pending(desired, found.record)
    assert found.record.events[-1].event == "refused"
    later = _decide(_state(3, stable="c"), live, record=found.record)
    assert is_pending(later.desired, later.record)


def test_a_state_that_ends_workers_is_refused() -> None:
    """One worker's death may have any cause; a second death counts against the version."""
    desired, live = _state(2, stable="b"), _state()
    once = _decide(desired, live, dead=[_report(1)])
    assert is_pending(desired, once.record)
    twice = _decide(desired, live, dead=[_report(2)], record=once.record)
    assert twice.record.is_refused(2)


def test_a_canary_that_ends_workers_is_taken_back() -> None:
    """The next state has no canary, and its reason gives the cause."""
    live = _state(2, **CANARY)
    once = _decide(live, live, dead=[_report(1, active=2)])
    assert once.desired == live
    twice = _decide(live, live, dead=[_report(2, active=2)], record=once.record)
    assert twice.desired.generation == 3
    assert twice.desired.canary is None
    assert "2 workers ended unexpectedly" in twice.desired.reason
    assert twice.taken_back == ("canary",)


def test_deaths_of_workers_are_not_counted_while_nothing_is_new() -> None:
    """A worker killed long after a promotion changes nothing."""
    live = _state(2, previous="z")
    found = _decide(live, live, dead=[_report(1), _report(2)])
    assert found == Decision(live, Record(live=live, live_s=0.0))


def test_engine_errors_of_a_canary_take_it_back() -> None:
    """Only counts of workers that serve this generation are added up."""
    live = _state(2, **CANARY)
    figures = {"b": VersionFigures(requests=99, engine_errors=1)}
    other = _report(1, active=1, figures=figures)
    assert _decide(live, live, other).desired == live
    found = _decide(live, live, _report(1, active=2, figures=figures))
    assert found.desired.canary is None
    assert "engine failed for 1 requests" in found.desired.reason


def test_a_wrong_golden_answer_takes_each_role_back() -> None:
    """While it is observed, a new stable version is replaced by the previous one."""
    live = _state(2, **CANARY)
    faults = [Fault("b", "logits: scaled error")]
    assert _decide(live, live, faults=faults).desired.canary is None
    promoted = _state(3, stable="b", previous="a")
    new = Record(live=promoted, live_s=NOW_S - 1)
    found = _decide(promoted, promoted, record=new, faults=faults)
    assert (found.desired.stable, found.desired.previous) == ("a", None)
    assert found.taken_back == ("stable",)
    old = Record(live=promoted, live_s=NOW_S - promoted.limits.watch_s - 1)
    assert _decide(promoted, promoted, record=old, faults=faults).desired == promoted


def test_errors_of_a_new_stable_version_bring_the_previous_one_back() -> None:
    """Failures of a tenth of requests are clearly above one in a hundred; one failure is not."""
    promoted = _state(3, stable="b", previous="a")
    new = Record(live=promoted, live_s=NOW_S - 1)
    for errors, stable in ((1, "b"), (50, "a")):
        figures = {"b": VersionFigures(requests=500, engine_errors=errors)}
        report = _report(1, active=3, figures=figures)
        assert _decide(promoted, promoted, report, record=new).desired.stable == stable


def test_a_pending_state_is_superseded_when_the_canary_is_taken_back() -> None:
    """A state pending on top of a removed canary is replaced by one with the next number."""
    live, desired = _state(2, **CANARY), _state(3, stable="b", previous="a")
    found = _decide(desired, live, faults=[Fault("b", "wrong")])
    assert found.desired.generation == 4
    assert (found.desired.stable, found.desired.canary) == ("a", None)
    assert found.record.is_refused(3)


def test_a_version_is_taken_back_once() -> None:
    """While the state without it is pending, the same counts create no further states."""
    live = _state(2, **CANARY)
    figures = {"b": VersionFigures(requests=99, engine_errors=1)}
    report = _report(1, active=2, figures=figures)
    first = _decide(live, live, report)
    again = _decide(first.desired, live, report, record=first.record)
    assert again == Decision(first.desired, first.record)


def test_a_canary_that_a_new_worker_cannot_load_is_taken_back() -> None:
    """A respawned worker that cannot serve the live state does not stay behind for ever."""
    live = _state(2, **CANARY)
    found = _decide(live, live, _report(1, failed=2, failure="it was altered"))
    assert found.desired.canary is None
    assert "it was altered" in found.desired.reason


def test_contract_changes_are_named() -> None:
    """Changes of tensors, labels and task are listed; equal manifests have none."""
    manifest = Bundle.open(SERVED_BUNDLES / "cnn").manifest
    assert find_contract_changes(manifest, manifest) == []
    other = manifest.model_copy(
        update={
            "labels": ("a", "b"),
            "inputs": (TensorSpec(name="images", datatype="UINT8", shape=(-1, 32, 32)),),
        }
    )
    changes = find_contract_changes(manifest, other)
    assert "input images=UINT8[-1,28,28] became images=UINT8[-1,32,32]" in changes
    assert any(change.startswith("labels") for change in changes)
