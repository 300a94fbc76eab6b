"""This gate catches faults that two random images do not reveal, and no gate has false alarms."""

from pathlib import Path

import pytest

from export.bundle.store import Bundle
from export.check import Origin, rebuild
from tests.export.other_gates import GATES, HONEST, Outcome, compare_gates, markdown

SEEDS = range(3)
INVISIBLE = "x * (1/255) for x / 255"


@pytest.fixture(scope="module", params=["cnn", "mlp"])
def outcomes(request: pytest.FixtureRequest, bundles: Path, data_dir: Path) -> list[Outcome]:
    """Results of every gate for every fault in a tiny bundle."""
    bundle = Bundle.open(bundles / request.param)
    return compare_gates(bundle, rebuild(bundle, Origin(data_dir=data_dir)), SEEDS)


def test_the_honest_file_passes_every_gate(outcomes: list[Outcome]) -> None:
    """No gate, ours or another, raises a false alarm."""
    honest, *faults = outcomes
    assert honest.fault == HONEST
    assert honest.caught == dict.fromkeys(GATES, 0)
    assert honest.caught_by == ()
    assert HONEST not in {outcome.fault for outcome in faults}


def test_this_gate_catches_every_fault_and_the_table_names_each(outcomes: list[Outcome]) -> None:
    """Each fault has a row, and our gate misses none that applies."""
    table = markdown("tiny", outcomes, len(SEEDS))
    for outcome in outcomes:
        assert f"| {outcome.fault} |" in table
    faults = [o for o in outcomes if o.fault != HONEST and o.not_applicable is None]
    assert faults
    assert all(outcome.caught_by for outcome in faults)
    assert "- this gate: 0" in table
    assert "FALSE ALARM" not in table


def test_a_last_bit_passes_the_other_gates_alone(outcomes: list[Outcome]) -> None:
    """Multiplying by a reciprocal is within other gates' tolerances, but not bit-equal."""
    (outcome,) = (o for o in outcomes if o.fault == INVISIBLE)
    assert outcome.caught == dict.fromkeys(GATES, 0)
    assert outcome.caught_by == ("exact values",)


def test_other_gates_do_catch_what_random_images_show(outcomes: list[Outcome]) -> None:
    """Each other gate really runs: it catches shifted outputs in each draw."""
    (outcome,) = (o for o in outcomes if o.fault == "outputs shifted by one")
    assert outcome.caught == dict.fromkeys(GATES, len(SEEDS))
