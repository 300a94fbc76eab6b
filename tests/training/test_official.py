"""Tests on the official MNIST files in MNIST_DIR: the data and the promised accuracies."""

import json
from pathlib import Path

import pytest

from training.__main__ import main
from training.data import load_dataset


def test_the_official_files_are_called_mnist(official_mnist: Path) -> None:
    """The 60,000 training and 10,000 test images are identified by hash and named MNIST."""
    dataset = load_dataset(official_mnist)
    assert dataset.name == "MNIST"
    assert dataset.test_name == "MNIST's 10,000 test images"
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)


def _accuracy(model: str, preset: str, data: Path, out: Path, *further: str) -> float:
    command = ["train", "--model", model, "--preset", preset, "--data-dir", str(data)]
    assert main([*command, "--out", str(out), *further]) == 0
    return float(json.loads((out / "checkpoint.json").read_text())["test"]["accuracy"])


def test_one_epoch_learns_most_of_it(official_mnist: Path, tmp_path: Path) -> None:
    """One epoch of the MLP classifies more than 97% of the test images correctly."""
    assert _accuracy("mlp", "quick", official_mnist, tmp_path, "--epochs", "1") > 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "preset", "floor"),
    [
        ("mlp", "quick", 0.985),
        ("cnn", "quick", 0.993),
        ("mlp", "full", 0.991),
        ("cnn", "full", 0.995),
    ],
)
def test_presets_reach_what_they_promise(
    model: str, preset: str, floor: float, official_mnist: Path, tmp_path: Path
) -> None:
    """Each preset reaches its minimum accuracy on the official test images."""
    assert _accuracy(model, preset, official_mnist, tmp_path) >= floor
