"""The table of checkpoints' metrics, made from their records."""

from pathlib import Path

import pytest

from training.__main__ import main
from training.checkpoint import CheckpointRecord, read_record
from training.config import DistilConfig
from training.evaluation.summary import table


def _seed(record: CheckpointRecord, seed: int, accuracy: float) -> CheckpointRecord:
    config = record.config.with_changes(seed=seed)
    test = record.test.model_copy(update={"accuracy": accuracy})
    return record.model_copy(update={"config": config, "test": test})


def test_seeds_of_a_network_are_one_row_with_mean_and_range(checkpoints: Path) -> None:
    """Seeds share a row, and another number of epochs is a row with a name of its own."""
    record = read_record(checkpoints / "cnn")
    assert isinstance(record, CheckpointRecord)
    longer = record.model_copy(update={"config": record.config.with_changes(epochs=60)})
    lines = list(table([_seed(record, 0, 0.9), longer, _seed(record, 1, 0.92)]))
    row = next(line for line in lines if "(epochs=6)" in line)
    assert "| 6 | 2 |" in row
    assert row.endswith("| 91.000% (90.00 to 92.00) |")
    assert sum("epochs=60" in line and "| 60 | 1 |" in line for line in lines) == 1


def test_the_teachers_of_a_distilled_network_are_named(checkpoints: Path) -> None:
    """A teacher is named by its weights, and by network and seed if its record is given, too."""
    cnn, mlp = read_record(checkpoints / "cnn"), read_record(checkpoints / "mlp")
    assert isinstance(cnn, CheckpointRecord)
    assert isinstance(mlp, CheckpointRecord)
    distil = DistilConfig(teachers=(cnn.weights.sha256, "0123456789abcdef" * 4))
    student = mlp.model_copy(update={"config": mlp.config.with_changes(distil=distil)})
    assert not any("distilled" in line for line in table([cnn, mlp]))
    assert [line for line in table([cnn, student]) if "distilled" in line] == [
        f"mlp was distilled from: cnn, seed 0, weights {cnn.weights.sha256[:12]}; "
        "weights 0123456789ab"
    ]
    rows = [line for line in table([mlp, student]) if line.startswith("| mlp ")]
    assert [f"teachers=[{cnn.weights.sha256[:12]}, 0123456789ab]" in row for row in rows] == [
        False,
        True,
    ]
    last = list(table([student]))[-1]
    assert last.startswith(f"mlp was distilled from: weights {cnn.weights.sha256[:12]}; ")


def test_the_command_names_the_images_and_refuses_a_seed_twice(
    checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Metrics are always printed with the images that they were measured on."""
    assert main(["summary", str(checkpoints / "cnn"), str(checkpoints / "mlp")]) == 0
    printed = capsys.readouterr().out
    assert "300 test images" in printed
    assert "| mlp | " in printed
    assert main(["summary", str(checkpoints / "cnn"), str(checkpoints / "cnn")]) == 1
    assert "two checkpoints of cnn have the same seed" in capsys.readouterr().err
