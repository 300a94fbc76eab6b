"""Averaged weights, weight decay without biases, and undistorted images."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiny import train_tiny
from training.__main__ import main
from training.checkpoint import read_checkpoint
from training.config import AFFINE, TrainConfig
from training.data import load_dataset
from training.data.augment import augment
from training.evaluation.classification import evaluate
from training.loop.ema import averaged_model
from training.loop.fit import parameter_groups
from training.models import build_model

BATCH_NORM = ["--arch", "batch_norm=true", "--ema", "0.9"]


def _sha256(folder: Path) -> str:
    return hashlib.sha256(next(folder.glob("weights-*")).read_bytes()).hexdigest()


def test_an_average_is_that_computed_by_hand() -> None:
    """Weights and running statistics are averaged over a growing span; counts are copied."""
    module = nn.BatchNorm1d(2)
    averaged = averaged_model(module, decay=0.5)
    expected = 0.0
    for update, value in enumerate([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]):
        for name, tensor in module.state_dict().items():
            tensor.fill_(update if name == "num_batches_tracked" else value)
        averaged.update_parameters(module)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = value if update == 0 else decay * expected + (1 - decay) * value
        state = averaged.module.state_dict()
        for name in ("weight", "running_mean"):
            torch.testing.assert_close(state[name], torch.full((2,), expected))
        assert int(state["num_batches_tracked"]) == update


def test_the_average_is_what_is_measured_and_kept(data_dir: Path, tmp_path: Path) -> None:
    """Metrics and checkpoint use the averaged weights, and training itself is unchanged."""
    plain, _ = read_checkpoint(train_tiny("cnn", data_dir, tmp_path / "plain", *BATCH_NORM[:2]))
    record, module = read_checkpoint(train_tiny("cnn", data_dir, tmp_path / "ema", *BATCH_NORM))
    assert record.config.ema_decay == 0.9
    assert record.weights.parameters == plain.weights.parameters
    assert [entry.train_loss for entry in record.history] == [
        entry.train_loss for entry in plain.history
    ]
    assert record.history[-1].validation_loss != plain.history[-1].validation_loss
    assert record.validation.loss == pytest.approx(record.history[-1].validation_loss, rel=1e-5)
    again = evaluate(module, load_dataset(data_dir).test, record.test.images_name)
    assert again.confusion == record.test.confusion


def test_a_resumed_average_is_bit_equal(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after the second of six epochs, averages and their count go on as they were.

    So do an optimizer of two groups, and the draws of which images stay clean.
    """
    run = [*BATCH_NORM, "--spare-biases", "--clean-share", "0.3"]
    whole = train_tiny("cnn", data_dir, tmp_path / "whole", *run)

    def interrupted(_: object, epoch: int) -> str:
        if epoch == 1:
            raise KeyboardInterrupt
        return ""

    with monkeypatch.context() as patch:
        patch.setattr("training.train._Clock.after", interrupted)
        with pytest.raises(AssertionError):
            train_tiny("cnn", data_dir, tmp_path / "cut", *run)
    resumed = train_tiny("cnn", data_dir, tmp_path / "cut", *run, "--resume")
    assert _sha256(resumed) == _sha256(whole)


def test_weight_decay_spares_norms_and_biases_if_asked() -> None:
    """Without gradients, a step shrinks only matrices and kernels."""
    module = build_model("cnn-batch-norm", {"n1": 2, "n2": 4, "n3": 8})
    config = TrainConfig(model="cnn", weight_decay=0.1, decay_norms_and_biases=False)
    optimizer = torch.optim.AdamW(parameter_groups(module, config), lr=0.1)
    before = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, tensor in module.named_parameters():
        assert torch.equal(tensor, before[name]) == (tensor.ndim == 1), name
    (single,) = parameter_groups(module, config.with_changes(decay_norms_and_biases=True))
    assert len(single["params"]) == len(before)


def test_a_share_of_the_images_is_left_as_it_is() -> None:
    """About a quarter of the images is left undistorted, and the others are distorted as before."""
    pixels = torch.rand(2_000, 1, 28, 28)
    config = AFFINE.model_copy(update={"clean_share": 0.25})
    seen = augment(pixels, config, torch.Generator().manual_seed(0))
    clean = (seen == pixels).all(dim=(1, 2, 3))
    assert 0.2 < float(clean.double().mean()) < 0.3
    assert not AFFINE.model_copy(update={"clean_share": 1.0}).is_off
    assert AFFINE.model_copy(update={"rotation_deg": 0}).clean_share == 0


def test_the_options_are_recorded(data_dir: Path, tmp_path: Path) -> None:
    """The record contains the command line's options."""
    command = ["train", "--model", "mlp", "--epochs", "1", "--data-dir", str(data_dir)]
    command += ["--out", str(tmp_path), "--clean-share", "0.5", "--spare-biases"]
    command += ["--augment", "stroke=0.5", "--augment", "coarse_share=0.25"]
    assert main([*command, "--ema", "0.5"]) == 0
    config = read_checkpoint(tmp_path)[0].config
    assert (config.augment.clean_share, config.augment.stroke) == (0.5, 0.5)
    assert config.augment.coarse_share == 0.25
    assert config.augment.rotation_deg == AFFINE.rotation_deg
    assert not config.decay_norms_and_biases
    assert config.ema_decay == 0.5
