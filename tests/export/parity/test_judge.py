"""Figures from a file are judged again, with the same tolerances and with others."""

import json
from pathlib import Path
from typing import Any

import pytest

from export.__main__ import main
from export.bundle.tolerances import BOUNDS, Tolerance
from export.parity.judge import INCONCLUSIVE, Judgement, judge, kills
from export.parity.schema import EDGE_CASES, ParityFigures

FIGURES = "parity.json"


def _read(path: Path) -> ParityFigures:
    return ParityFigures.model_validate_json(path.read_text())


def _changed(figures: ParityFigures, **update: Any) -> list[str]:
    return judge(figures.model_copy(update=update), figures.tolerances).failures


def test_the_file_gives_the_verdicts_of_its_bundle(bundle: Path) -> None:
    """Judging parity.json alone gives the manifest's verdicts."""
    figures = _read(bundle / FIGURES)
    judgement = judge(figures, figures.tolerances)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert judgement.passed
    assert [v.model_dump(mode="json") for v in judgement.verdicts] == manifest["parity"]


def test_another_tolerance_gives_another_verdict(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bound that is too tight gives status 1 with the batch size, the default 0."""
    command = ["judge", str(bundle / FIGURES)]
    assert main(command) == 0
    outcome = tmp_path / "judged.json"
    tight = ["--tolerance", "onnx-fp16.cpu.scaled_error=1e-9", "--json", str(outcome)]
    assert main([*command, *tight]) == 1
    judged = json.loads(outcome.read_text())
    assert [v["passed"] for v in judged["verdicts"]] == [True, False, True, True, True, True]
    assert all(failure.startswith("onnx-fp16, batch") for failure in judged["failures"])
    assert main([*command, "--tolerance", "onnx.cpu.rms_ratio=99"]) == 64
    assert "--because" in capsys.readouterr().err
    assert main([*command, "--tolerance", "onnx.cpu.rms_ratio=99", "--because", "a test"]) == 0
    assert "LOOSENED rms_ratio: 99 instead of 8 because a test" in capsys.readouterr().out


def test_what_is_no_figures_file_is_status_2(bundle: Path, tmp_path: Path) -> None:
    """Another JSON file and a missing file give status 2."""
    assert main(["judge", str(bundle / "manifest.json")]) == 2
    assert main(["judge", str(tmp_path / "nowhere.json")]) == 2


def test_each_part_of_the_gate_can_fail_it(bundle: Path) -> None:
    """Coverage, exact values, mutants, files, weights and neighbours each fail with a message."""
    figures = _read(bundle / FIGURES)
    dead = figures.coverage.model_copy(update={"active": 0})
    assert "faults in the others would not be detected" in _changed(figures, coverage=dead)[0]
    exact = next(layer for layer in figures.layers if layer.exact)
    layers = (exact.model_copy(update={"max_abs_error": 1e-9}),)
    assert "must be bit-equal" in _changed(figures, layers=layers)[0]
    unseen: dict[str, Any] = {"figures": {}, "outputs": {}, "local": None}
    faults = (figures.faults[0].model_copy(update=unseen), *figures.faults[1:])
    assert "no check kills the mutant one weight +1%" in _changed(figures, faults=faults)[0]
    neighbours = figures.neighbours | {"onnx": {"beside noise": 1e-9}}
    assert "an output depends on its batch" in _changed(figures, neighbours=neighbours)[0]
    file = figures.files["onnx"].model_copy(update={"problems": ("opset: expected 20",)})
    (failure,) = _changed(figures, files=figures.files | {"onnx": file})
    assert failure == "onnx: opset: expected 20"


@pytest.mark.parametrize(
    ("floor_largest", "words"), [(1.0, ""), (9.0, "largest error 9.0 x"), (None, "scaled error")]
)
def test_edge_cases_are_judged_by_their_own_floor(
    floor_largest: float | None, words: str, bundle: Path
) -> None:
    """The samples' scaled error does not apply to answers far beyond them."""
    figures = _read(bundle / FIGURES)
    changed = []
    for row in figures.rows:
        if row.variant == "onnx" and row.block == EDGE_CASES:
            steep = {"scaled_error": 1e-3, "floor_largest": floor_largest}
            outputs = {n: c.model_copy(update=steep) for n, c in row.outputs.items()}
            changed.append(row.model_copy(update={"outputs": outputs}))
        else:
            changed.append(row)
    failures = _changed(figures, rows=tuple(changed))
    assert bool(failures) == bool(words)
    assert all("edge cases" in failure and words in failure for failure in failures)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"non_finite": 3}, "3 values are NaN or infinite"),
        ({"scaled_error": float("nan")}, "scaled error nan"),
        ({"rms_ratio": float("inf")}, "RMS error inf"),
    ],
)
def test_non_finite_figures_never_pass(change: dict[str, Any], words: str, bundle: Path) -> None:
    """NaN fails, although every comparison with it is false."""
    figures = _read(bundle / FIGURES)
    row = figures.rows[0]
    spoilt = row.outputs["logits"].model_copy(update=change)
    rows = (row.model_copy(update={"outputs": {"logits": spoilt}}), *figures.rows[1:])
    failures = _changed(figures, rows=rows)
    assert any(words in failure for failure in failures)


@pytest.mark.parametrize(
    ("variant", "change", "words"),
    [
        ("onnx", {"flips": 1, "largest_flip_margin": 0.5}, "where the reference's margin is"),
        ("onnx-int8", {"flips": 9, "decided_flips": 9}, "where the reference is not a near tie"),
        ("onnx-int8", {"ties": 1}, "have two equal largest logits"),
        ("onnx-int8", {"accuracy": 0.0}, "accuracy falls by"),
    ],
)
def test_labels_are_judged_by_their_variant(
    variant: str, change: dict[str, Any], words: str, bundle: Path
) -> None:
    """A certain label that flips, too many flips, ties and lower accuracy fail."""
    figures = _read(bundle / FIGURES)
    position, row = next((i, r) for i, r in enumerate(figures.rows) if r.variant == variant)
    found = row.outputs["logits"]
    assert found.labels is not None
    labels = found.labels.model_copy(update=change)
    outputs = {"logits": found.model_copy(update={"labels": labels})}
    rows = list(figures.rows)
    rows[position] = row.model_copy(update={"outputs": outputs})
    (failure,) = _changed(figures, rows=tuple(rows))
    assert words in failure
    assert failure.startswith(f"{variant}, batch 256")


def _under(figures: ParityFigures, **update: Any) -> Judgement:
    """Judge the figures with other numbers for the fp32 ONNX file."""
    rows = tuple(
        row.model_copy(update=update) if row.variant == "onnx" else row
        for row in figures.tolerances
    )
    return judge(figures, rows)


def test_kills_follow_the_tolerances_and_not_what_the_file_says(bundle: Path) -> None:
    """With unlimited tolerances, only bit-equality and NaN kill mutants."""
    figures = _read(bundle / FIGURES)
    assert judge(figures, figures.tolerances).killed == (12, 12)
    numbers = dict.fromkeys(set(BOUNDS) - {"evidence"}, 1e30) | {"sqnr_db": None}
    absurd = _under(figures, **numbers | {"weights": None})
    assert absurd.killed[0] < 5
    assert figures.faults[0].caught_by
    assert absurd.mutants[0].caught_by == ()


def test_weights_that_are_not_judged_silence_no_other_check(bundle: Path) -> None:
    """Only mutants that provenance alone would have killed are excused."""
    figures = _read(bundle / FIGURES)
    assert _under(figures, weights=None).passed
    unseen: dict[str, Any] = {"outputs": {}, "local": None}
    for weights, excused in ((1.0, True), (0.0, False)):
        mutant = figures.faults[0].model_copy(update=unseen | {"figures": {"weights": weights}})
        spoilt = figures.model_copy(update={"faults": (mutant, *figures.faults[1:])})
        assert _under(spoilt, weights=None).passed == excused


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ({"variation": {"logits": 5.9}}, "logits hardly varies: 5.9 x"),
        ({"distinct": 3}, "only 3 samples are distinct"),
        ({"layers": ()}, "no intermediate value was compared"),
        ({"faults": ()}, "no mutant could be planted"),
    ],
)
def test_what_could_show_no_fault_is_inconclusive(
    update: dict[str, Any], words: str, bundle: Path
) -> None:
    """If no check could have revealed a fault, the result is neither passed nor failed."""
    figures = _read(bundle / FIGURES).model_copy(update=update)
    judgement = judge(figures, figures.tolerances)
    assert not judgement.passed
    assert judgement.verdict == INCONCLUSIVE
    assert words in judgement.failures[-1]
    assert _under(figures, evidence=None).passed


def test_what_can_show_a_fault_is_not_inconclusive(bundle: Path) -> None:
    """Figures just above the last test's bounds pass; mutants of provenance alone do not count."""
    figures = _read(bundle / FIGURES)
    enough = figures.model_copy(update={"variation": {"logits": 6.1}, "distinct": 4})
    assert judge(enough, enough.tolerances).passed
    unseen: dict[str, Any] = {"outputs": {}, "local": None, "figures": {"weights": 1.0}}
    blind = tuple(fault.model_copy(update=unseen) for fault in figures.faults)
    (reason,) = judge(figures.model_copy(update={"faults": blind}), figures.tolerances).inconclusive
    assert "only the provenance of the weights can detect a fault" in reason


def test_evidence_is_given_up_with_a_reason_alone(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused without --because and recorded with it, like a looser tolerance."""
    figures = _read(bundle / FIGURES).model_copy(update={"variation": {"logits": 0.0}})
    path = tmp_path / "parity.json"
    path.write_text(figures.model_dump_json())
    command = ["judge", str(path)]
    assert main(command) == 1
    assert "INCONCLUSIVE" in capsys.readouterr().out
    command += ["--tolerance", "onnx.cpu.evidence=none"]
    assert main(command) == 64
    assert main([*command, "--because", "a constant is what it should be"]) == 0
    assert "evidence: not judged instead of 1" in capsys.readouterr().out


def test_blind_layers_are_said_and_fail_where_weights_are_not_judged(bundle: Path) -> None:
    """A layer in which samples do not reveal 1% of a weight is proven only by provenance."""
    figures = _read(bundle / FIGURES)
    layers = list(figures.layers)
    position = next(i for i, x in enumerate(layers) if x.local and x.local.visible is not None)
    local = layers[position].local
    assert local is not None
    blind = local.model_copy(update={"visible": 1.9})
    layers[position] = layers[position].model_copy(update={"local": blind})
    figures = figures.model_copy(update={"layers": tuple(layers)})
    judgement = judge(figures, figures.tolerances)
    assert judgement.passed
    assert len(judgement.blind) == 1
    assert any("SAMPLES BLIND, PROVENANCE ONLY" in line for line in judgement.summaries())
    assert _under(figures, weights=None).verdict == INCONCLUSIVE


@pytest.mark.parametrize(("active", "passes"), [(94, False), (95, True)])
def test_95_percent_of_the_units_must_be_active(active: int, passes: bool, bundle: Path) -> None:
    """The share is that of units that any sample activates, over every batch size."""
    figures = _read(bundle / FIGURES)
    coverage = figures.coverage.model_copy(update={"active": active, "active_in_all": 100})
    assert (_changed(figures, coverage=coverage) == []) == passes


@pytest.mark.parametrize(("multiple", "killed"), [(3.0, ()), (3.1, ("samples",))])
def test_a_mutant_is_killed_beyond_its_limit(
    multiple: float, killed: tuple[str, ...], bundle: Path
) -> None:
    """The limit of the answers' RMS is three times the floor."""
    figures = _read(bundle / FIGURES)
    row: Tolerance = figures.tolerances[0]
    honest = figures.rows[0].outputs["logits"].model_copy(update={"floor_rms": multiple})
    mutant = figures.faults[0].model_copy(
        update={"outputs": {"logits": honest}, "local": None, "figures": {}}
    )
    assert kills(mutant, row) == killed


def test_an_older_file_is_judged_by_what_it_has(bundle: Path) -> None:
    """A version 2 file has no floors, single operators or mutants' answers."""
    content = json.loads((bundle / FIGURES).read_text())
    content["schema_version"] = 2
    for name in ("reduced_faults", "variation", "distinct"):
        del content[name]
    for fault in content["faults"]:
        del fault["outputs"], fault["local"]
        fault["figures"].pop("softmax_error", None)
    for layer in content["layers"]:
        del layer["local"]
    for row in content["rows"]:
        for output in row["outputs"].values():
            del output["floor_rms"], output["floor_largest"], output["sample_spread"]
    for row in content["tolerances"]:
        del row["rms_multiple"], row["largest_multiple"], row["sample_spread"], row["evidence"]
    figures = ParityFigures.model_validate(content, strict=False)
    judgement = judge(figures, figures.tolerances)
    assert judgement.failures == []
    assert judgement.killed == (12, 12)
