"""Runs repeat exactly, resumed or not, and a killed run leaves no misleading checkpoint."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import ARCHITECTURES, train_tiny
from training import train as command
from training.__main__ import main
from training.checkpoint import CheckpointError, EpochRecord, read_checkpoint
from training.data import mnist
from training.loop import fit as fit_module
from training.loop.tasks import DigitTask


def _weights_sha256(folder: Path) -> str:
    return hashlib.sha256(next(folder.glob("weights-*")).read_bytes()).hexdigest()


def test_the_same_seed_gives_the_same_weights(
    checkpoints: Path, data_dir: Path, tmp_path: Path
) -> None:
    """Two runs with one seed are bit-equal, and another seed gives other weights."""
    again = train_tiny("cnn", data_dir, tmp_path / "again")
    other = train_tiny("cnn", data_dir, tmp_path / "other", "--seed", "1")
    assert _weights_sha256(again) == _weights_sha256(checkpoints / "cnn")
    assert _weights_sha256(other) != _weights_sha256(checkpoints / "cnn")


@pytest.mark.parametrize("model", ["cnn", pytest.param("mlp", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_the_same_weights(
    model: str, checkpoints: Path, data_dir: Path, tmp_path: Path
) -> None:
    """A killed run leaves no checkpoint, and --resume gives the weights of an uninterrupted run."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "training", "train", "--model", model]
    command += ["--epochs", "6", "--batch-size", "32", "--device", "cpu", *ARCHITECTURES[model]]
    command += ["--data-dir", str(data_dir), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = out / "resume.safetensors"
    give_up = time.monotonic() + 60
    while not state.exists() and time.monotonic() < give_up:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert state.exists()
    with pytest.raises(CheckpointError, match="--resume"):
        read_checkpoint(out)
    train_tiny(model, data_dir, out, "--resume")
    assert _weights_sha256(out) == _weights_sha256(checkpoints / model)
    assert not state.exists()


def test_resuming_with_other_settings_is_refused(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Resuming with other settings is refused with the settings that differ."""
    arguments = _short_run(data_dir, tmp_path)
    _interrupted(arguments, monkeypatch)
    assert main([*arguments, "--resume", "--seed", "3"]) == 1
    assert "seed: 0 then, 3 now" in capsys.readouterr().err


def test_the_last_epoch_is_kept_however_good_an_earlier_one_looked(
    checkpoints: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last epoch is kept, so the recorded metric is not a maximum of noisy ones."""
    validate = DigitTask.validate

    def flattering_the_first(task: DigitTask, *arguments: Any) -> EpochRecord:
        record = validate(task, *arguments)
        assert isinstance(record, EpochRecord)
        return record.model_copy(update={"validation_accuracy": 1 - record.epoch / 10})

    monkeypatch.setattr(DigitTask, "validate", flattering_the_first)
    out = train_tiny("cnn", data_dir, tmp_path)
    assert _weights_sha256(out) == _weights_sha256(checkpoints / "cnn")
    record, _ = read_checkpoint(checkpoints / "cnn")
    assert record.epoch_kept == len(record.history) - 1
    assert record.validation.accuracy == record.history[-1].validation_accuracy


def _short_run(data_dir: Path, out: Path) -> list[str]:
    """The command line of a run of one epoch."""
    arguments = ["train", "--model", "mlp", "--data-dir", str(data_dir), "--device", "cpu"]
    arguments += ["--out", str(out), "--epochs", "1", "--batch-size", "64"]
    return arguments


def _interrupted(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command and interrupt it after its last epoch, when its state is saved."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "write_weights", interrupt)
        assert main(arguments) == 130


def test_an_unfinished_run_is_not_overwritten_unasked(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without --resume or --restart the state is kept, and the message names both options."""
    arguments = _short_run(data_dir, tmp_path)
    _interrupted(arguments, monkeypatch)
    state = (tmp_path / "resume.safetensors").read_bytes()
    assert main(arguments) == 1
    refused = capsys.readouterr().err
    assert "--resume" in refused
    assert "--restart" in refused
    assert (tmp_path / "resume.safetensors").read_bytes() == state
    assert main([*arguments, "--restart"]) == 0
    assert (tmp_path / "checkpoint.json").exists()


def test_two_runs_do_not_share_a_folder(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A folder is locked while a run writes to it, and free afterwards."""
    arguments = _short_run(data_dir, tmp_path)
    evaluate, statuses = DigitTask.evaluate, list[int]()

    def starting_another(task: DigitTask, *further: Any) -> Any:
        if not statuses:
            statuses.append(0)  # reached by the other run, too, if it is not refused
            statuses[0] = main([*arguments, "--restart"])
        return evaluate(task, *further)

    monkeypatch.setattr(DigitTask, "evaluate", starting_another)
    assert main(arguments) == 0
    assert statuses == [1]
    assert "another run" in capsys.readouterr().err
    assert main(arguments) == 0


def test_a_run_is_not_resumed_on_another_split(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A changed split of the same size is refused, because it contains trained images."""
    arguments = _short_run(data_dir, tmp_path)
    _interrupted(arguments, monkeypatch)
    monkeypatch.setattr(mnist, "SPLIT_SEED", 1)
    assert main([*arguments, "--resume"]) == 1
    assert "other validation images" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_the_run_in_words(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A diverged run names the epoch and the option to change, and leaves no checkpoint."""
    monkeypatch.setattr(fit_module, "standardise", lambda pixels: pixels * float("nan"))
    arguments = ["train", "--model", "mlp", "--epochs", "1", "--data-dir", str(data_dir)]
    assert main([*arguments, "--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "became nan in epoch 1; try a lower --learning-rate" in capsys.readouterr().err
    assert not (tmp_path / "checkpoint.json").exists()


@pytest.mark.slow
def test_half_precision_learns_and_repeats(data_dir: Path, tmp_path: Path) -> None:
    """bfloat16 gives other weights than float32, repeatably, and no worse accuracy."""
    folders = [
        train_tiny("cnn", data_dir, tmp_path / name, "--precision", precision)
        for name, precision in (("a", "bfloat16"), ("b", "bfloat16"), ("c", "float32"))
    ]
    first, again, single = map(_weights_sha256, folders)
    assert first == again != single
    records = [read_checkpoint(folder)[0] for folder in folders]
    assert records[0].config.precision == "bfloat16"
    assert records[0].test.accuracy > records[2].test.accuracy - 0.05


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler: c++")
def test_a_compiled_step_learns_the_same(checkpoints: Path, data_dir: Path, tmp_path: Path) -> None:
    """The losses of a compiled run equal those of a plain run up to rounding."""
    compiled, _ = read_checkpoint(train_tiny("mlp", data_dir, tmp_path, "--compiled"))
    plain, _ = read_checkpoint(checkpoints / "mlp")
    assert compiled.config.compiled
    losses = [entry.train_loss for entry in plain.history]
    assert [entry.train_loss for entry in compiled.history] == pytest.approx(losses, rel=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("further", [[], ["--precision", "bfloat16"], ["--compiled"]])
def test_a_gpu_trains_as_the_cpu_does(
    further: list[str], checkpoints: Path, data_dir: Path, tmp_path: Path
) -> None:
    """In each precision, captured or not, the accuracy is within a few images of the CPU's."""
    train_tiny("cnn", data_dir, tmp_path, *further, "--device", "cuda")
    found, there = read_checkpoint(tmp_path)[0], read_checkpoint(checkpoints / "cnn")[0]
    assert found.device.startswith("cuda")
    assert found.test.accuracy > there.test.accuracy - 0.05
