"""The command line says what it does and refuses in words."""

from pathlib import Path

import pytest

from training.__main__ import main


def test_training_prints_its_figures_and_writes_pictures(
    checkpoints: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Device, accuracy, per-digit accuracy and calibration are printed; three pictures written."""
    arguments = ["train", "--model", "mlp", "--epochs", "1", "--arch", "hidden=[16]"]
    status = main([*arguments, "--data-dir", str(data_dir), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert status == 0
    for words in ("training mlp on c", "accuracy", "calibration error", "9: ", "parameters"):
        assert words in printed
    for picture in ("curves.png", "confusion.png", "misread.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_evaluate_measures_a_checkpoint_again(
    checkpoints: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The accuracy printed for a checkpoint is on the images it names."""
    assert main(["evaluate", str(checkpoints / "cnn"), "--data-dir", str(data_dir)]) == 0
    assert "300 test images: accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--data-dir", "/nowhere"], "no data folder /nowhere"),
        (["--arch", "n1=many"], "--arch n1=many"),
        (["--arch", "n1"], "--arch n1="),
        (["--arch", "n7=1"], "n7"),
        (["--epochs", "0"], "epochs"),
        (["--resume"], "nothing to resume"),
        (["--batch-size", "100000"], "batch_size"),
        (["--learning-rate", "0"], "max_learning_rate"),
        (["--out", "/dev/null/x"], "/dev/null"),
    ],
)
def test_a_refusal_names_what_was_wrong(
    arguments: list[str],
    named: str,
    data_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wrong arguments end with status 1 and one line that names them, without a stack trace."""
    base = ["train", "--model", "cnn", "--data-dir", str(data_dir), "--out", str(tmp_path)]
    assert main([*base, *arguments]) == 1
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 2
