"""The comparison of training speed with PyTorch's example, including missed targets."""

import math
from pathlib import Path

import pytest
import torch

from training import speed
from training.__main__ import main
from training.data import load_dataset


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_both_reach_the_target_and_are_compared(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each round prints both accuracies and their ratio, followed by the median."""
    command = ["speed", "--data-dir", str(data_dir), "--rounds", "1", "--target", "30"]
    assert main([*command, "--epochs", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line.split(" | ") for line in lines if line.startswith("| 1 |")]
    _, epochs, accuracy, own_epochs, own_accuracy, ratio = row
    assert (epochs, own_epochs) == ("1", "6")
    assert float(accuracy.rstrip("%")) >= 30
    assert float(own_accuracy.rstrip("%")) >= 30
    assert lines[-1] == f"median of 1 rounds: {ratio.removesuffix(' x |')} times as fast"


def test_a_target_that_is_missed_gives_no_ratio(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missed target ends with status 1 and without a median."""
    monkeypatch.setattr(speed, "EXAMPLE_EPOCHS", 1)
    command = ["speed", "--data-dir", str(data_dir), "--rounds", "1", "--target", "99.99"]
    assert main([*command, "--epochs", "1"]) == 1
    out = capsys.readouterr().out
    assert "| not reached |" in out
    assert "median" not in out


def test_a_round_that_missed_the_target_counts(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two missed rounds of five count in the median, which is 1 x instead of 2 x."""
    own = iter([(0.99, 1.0), (0.5, 1.0), (0.99, 0.5), (0.5, 1.0), (0.99, 0.25)])

    def ours(*_: object) -> speed.Reached:
        accuracy, seconds = next(own)
        return speed.Reached(seconds, 2, accuracy)

    monkeypatch.setattr(speed, "ours", ours)
    monkeypatch.setattr(speed, "example", lambda *_: speed.Reached(1.0, 4, 0.99))
    command = ["speed", "--data-dir", str(data_dir), "--rounds", "5", "--target", "99"]
    assert main(command) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("median of 5 rounds: 1.0 times as fast")
    assert "2 missed the target" in last
    assert "4.0" in last  # the range
    # Half of the rounds missed it, so the median is unknown.
    assert "no ratio" in speed.verdict([0.0, 3.0])
    assert "median of 2 rounds: 3.0 times" in speed.verdict([3.0, math.inf])


def test_numbers_that_cannot_be_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Zero rounds and more images than there are get refused."""
    assert main(["speed", "--rounds", "0"]) == 1
    assert main(["speed", "--target", "100"]) == 1
    assert capsys.readouterr().err.count("--rounds must be at least 1") == 2


def test_the_example_is_the_published_one(data_dir: Path) -> None:
    """It has the published 1,199,882 parameters and gets the standardised images one by one."""
    assert sum(p.numel() for p in speed.ExampleNet().parameters()) == 1_199_882
    images = load_dataset(data_dir).train
    x_CHW, label = speed._OneByOne(images)[3]
    assert label == int(images.labels[3])
    expected = (images.images[3].float() / 255 - 0.1307) / 0.3081
    assert torch.equal(x_CHW[0], expected)
