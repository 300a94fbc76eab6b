"""Figures in a file are judged again, under the same tolerances and under others."""

import json
from pathlib import Path
from typing import Any

import pytest

from export.__main__ import main
from export.parity.judge import judge
from export.parity.schema import ParityFigures

FIGURES = "parity.json"


def _read(path: Path) -> ParityFigures:
    return ParityFigures.model_validate_json(path.read_text())


def _changed(figures: ParityFigures, **update: Any) -> list[str]:
    return judge(figures.model_copy(update=update), figures.tolerances).failures


def test_the_file_gives_the_verdicts_of_its_bundle(bundle: Path) -> None:
    """Nothing but parity.json is needed to come to what the manifest says."""
    figures = _read(bundle / FIGURES)
    judgement = judge(figures, figures.tolerances)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert judgement.passed
    assert [v.model_dump(mode="json") for v in judgement.verdicts] == manifest["parity"]


def test_another_tolerance_gives_another_verdict(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1 under a bound that is too tight, named per batch size; 0 as it is."""
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
    """Another JSON file, and none at all."""
    assert main(["judge", str(bundle / "manifest.json")]) == 2
    assert main(["judge", str(tmp_path / "nowhere.json")]) == 2


def test_each_part_of_the_gate_can_fail_it(bundle: Path) -> None:
    """Coverage, exact values, the self-test, files, weights and neighbours: each in words."""
    figures = _read(bundle / FIGURES)
    dead = figures.coverage.model_copy(update={"active": 0})
    assert "faults in the others would not be seen" in _changed(figures, coverage=dead)[0]
    exact = next(layer for layer in figures.layers if layer.exact)
    layers = (exact.model_copy(update={"max_abs_error": 1e-9}),)
    assert "must be bit-equal" in _changed(figures, layers=layers)[0]
    faults = (figures.faults[0].model_copy(update={"caught_by": ()}),)
    assert "would not have caught one weight +1%" in _changed(figures, faults=faults)[0]
    neighbours = figures.neighbours | {"onnx": {"beside noise": 1e-9}}
    assert "an answer depends on its batch" in _changed(figures, neighbours=neighbours)[0]
    file = figures.files["onnx"].model_copy(update={"problems": ("opset: asked for 20",)})
    (failure,) = _changed(figures, files=figures.files | {"onnx": file})
    assert failure == "onnx: opset: asked for 20"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"non_finite": 3}, "3 values are NaN or infinite"),
        ({"scaled_error": float("nan")}, "scaled error nan"),
        ({"rms_ratio": float("inf")}, "RMS error inf"),
    ],
)
def test_non_finite_figures_never_pass(change: dict[str, Any], words: str, bundle: Path) -> None:
    """NaN compares as false with everything, and must fail all the same."""
    figures = _read(bundle / FIGURES)
    row = figures.rows[0]
    spoilt = row.outputs["logits"].model_copy(update=change)
    rows = (row.model_copy(update={"outputs": {"logits": spoilt}}), *figures.rows[1:])
    failures = _changed(figures, rows=rows)
    assert any(words in failure for failure in failures)


@pytest.mark.parametrize(
    ("variant", "change", "words"),
    [
        ("onnx", {"flips": 1, "largest_flip_margin": 0.5}, "where the reference's best leads by"),
        ("onnx-int8", {"flips": 9, "decided_flips": 9}, "where the reference does not waver"),
        ("onnx-int8", {"ties": 1}, "have two best logits"),
        ("onnx-int8", {"accuracy": 0.0}, "accuracy falls by"),
    ],
)
def test_labels_are_judged_by_their_variant(
    variant: str, change: dict[str, Any], words: str, bundle: Path
) -> None:
    """A sure label that flips, too many flips, ties, and accuracy that falls."""
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
