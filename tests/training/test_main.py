"""The training commands' output and error messages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from training.__main__ import main
from training.checkpoint import read_checkpoint
from training.loop.tensorboard import numbers
from training.models import model_names


def test_training_prints_its_figures_and_writes_pictures(
    checkpoints: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Device, accuracy, per-digit accuracy and calibration are printed; three plots are written."""
    arguments = ["train", "--model", "mlp", "--epochs", "1", "--arch", "hidden=[16]"]
    status = main([*arguments, "--data-dir", str(data_dir), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert status == 0
    for words in ("training mlp on c", "accuracy", "calibration error", "9: ", "parameters"):
        assert words in printed
    for picture in ("curves.png", "confusion.png", "misclassified.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_evaluate_measures_a_checkpoint_again(
    checkpoints: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The output names the images on which the checkpoint's accuracy was measured."""
    assert main(["evaluate", str(checkpoints / "cnn"), "--data-dir", str(data_dir)]) == 0
    assert "300 test images: accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--data-dir", "/nowhere"], "no data folder /nowhere"),
        (["--arch", "n1=many"], "got 'many'"),
        (["--arch", "n1=3 4"], "--arch n1=3 4: expected NAME=VALUE"),
        (["--arch", "n1"], "--arch n1: expected NAME=VALUE"),
        (["--arch", "n7=1"], "n7"),
        (["--epochs", "0"], "epochs"),
        (["--resume"], "nothing to resume"),
        (["--batch-size", "100000"], "batch_size"),
        (["--learning-rate", "0"], "max_learning_rate"),
        (["--out", "/dev/null/x"], "/dev/null"),
        (["--model", "cnn2"], "unknown model 'cnn2'; known: "),
        (["--model", "lecture502-sequential"], "lecture502-sequential is not trained here"),
        (["--model", "cnn-batch-norm", "--arch", "batch_norm=false"], "use the model cnn"),
    ],
)
def test_a_refusal_names_what_was_wrong(
    arguments: list[str],
    named: str,
    data_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wrong arguments end with status 1 and one line that names them, without a traceback."""
    base = ["train", "--model", "cnn", "--data-dir", str(data_dir), "--out", str(tmp_path)]
    assert main([*base, *arguments]) == 1
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 2


def test_a_variant_is_trained_into_a_folder_of_its_name(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record contains architecture and numbers, and --arch sets those that are not fixed."""
    monkeypatch.chdir(tmp_path)
    command = ["train", "--model", "cnn-batch-norm", "--epochs", "1", "--device", "cpu"]
    command += ["--arch", "n1=2", "--arch", "n2=4", "--arch", "n3=8"]
    assert main([*command, "--data-dir", str(data_dir)]) == 0
    record, _ = read_checkpoint(tmp_path / "artifacts" / "checkpoints" / "cnn-batch-norm")
    assert record.config.model == "cnn"
    assert record.config.architecture["batch_norm"] is True
    assert record.config.architecture["n1"] == 2


def test_each_epoch_says_how_fast_it_was_and_all_but_the_last_how_long_it_lasts(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each epoch prints images per second and, except the last one, the time left."""
    command = ["train", "--model", "mlp", "--epochs", "2", "--arch", "hidden=[8]"]
    assert main([*command, "--data-dir", str(data_dir), "--out", str(tmp_path)]) == 0
    first, last = [line for line in capsys.readouterr().out.splitlines() if "epoch " in line]
    assert "images/s, " in first
    assert first.endswith(" left")
    assert last.endswith("images/s")


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["describe", "cnn"], ["matplotlib", "training.compare", "training.loop", "scipy"]),
        (["--help"], ["torch", "pydantic", "matplotlib"]),
    ],
)
def test_a_command_imports_what_it_needs_alone(arguments: list[str], absent: list[str]) -> None:
    """Describing a network imports no plots or comparison, and the help imports no torch."""
    program = (
        "import contextlib, io, sys, training.__main__ as command_line\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    command_line.main({arguments})\n"
        f"print([name for name in {absent} if name in sys.modules], end='')"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "[]"), ran.stderr


def test_an_old_name_of_a_network_works_with_a_note(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """train, describe and speed accept old names for one more release, and record the new one."""
    command = ["train", "--model", "rows", "--epochs", "1", "--arch", "n1=2", "--arch", "n2=2"]
    assert main([*command, "--data-dir", str(data_dir), "--out", str(tmp_path)]) == 0
    assert "note: the network rows is now called conv1d;" in capsys.readouterr().err
    assert read_checkpoint(tmp_path)[0].config.model == "conv1d"
    assert main(["describe", "large-subclass"]) == 0
    assert "lecture502-subclass" in capsys.readouterr().err


def test_help_names_every_network_and_shows_an_example(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The help lists all networks that can be trained, and no others."""
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    for name in model_names():
        assert (name in shown) == (not name.startswith("lecture502-")), name
    assert "python -m training train --model cnn" in shown


def test_a_missing_viewer_is_named_with_the_line_that_installs_it(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without the requested viewer's package nothing is trained."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    command = ["train", "--model", "mlp", "--epochs", "1", "--data-dir", str(data_dir)]
    assert main([*command, "--out", str(tmp_path), "--track", "tensorboard"]) == 1
    assert "pip install -c constraints.txt -e '.[track]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from TensorBoard's own imports
def test_a_viewer_gets_the_figures_of_the_record(data_dir: Path, tmp_path: Path) -> None:
    """TensorBoard's file contains the scalar metrics of each epoch and of the test images."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import event_accumulator  # noqa: PLC0415

    command = ["train", "--model", "mlp", "--epochs", "2", "--arch", "hidden=[8]"]
    command += ["--data-dir", str(data_dir), "--out", str(tmp_path), "--track", "tensorboard"]
    assert main(command) == 0
    record, _ = read_checkpoint(tmp_path)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    written = [event.value for event in events.Scalars("train_loss")]
    assert written == pytest.approx([entry.train_loss for entry in record.history])
    (accuracy,) = events.Scalars("test/accuracy")
    assert accuracy.value == pytest.approx(record.test.accuracy)


def test_only_single_numbers_are_figures(checkpoints: Path) -> None:
    """Lists and names of an evaluation are not written as scalars."""
    record, _ = read_checkpoint(checkpoints / "cnn")
    content = json.loads(record.test.model_dump_json())
    assert numbers(record.test) == {
        name: content[name]
        for name in ("images", "accuracy", "loss", "brier_score", "expected_calibration_error")
    }
