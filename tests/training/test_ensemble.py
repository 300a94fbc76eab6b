"""Ensembles of networks, and a network that is distilled from them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.tiny import train_tiny
from training.__main__ import main
from training.checkpoint import read_checkpoint
from training.config import DistilConfig
from training.data import load_dataset, mnist, standardise, to_pixels
from training.evaluation.ensemble import joint
from training.evaluation.prediction import predict_logits
from training.loop.distillation import Teachers


def test_what_networks_reach_together_is_counted() -> None:
    """Mean, vote and any-right match counts by hand; the likelier label wins a tie."""
    logits_MNK = torch.log(
        torch.tensor(
            [
                [[0.9, 0.1, 0.0001], [0.4, 0.6, 0.0001], [0.9, 0.1, 0.0001]],
                [[0.4, 0.6, 0.0001], [0.3, 0.7, 0.0001], [0.2, 0.8, 0.0001]],
                [[0.4, 0.6, 0.0001], [0.0001, 0.0001, 1.0], [0.0001, 0.4, 0.6]],
            ]
        )
    )
    found = joint(logits_MNK, torch.tensor([0, 1, 1]), "three images")
    assert found.alone == pytest.approx([2 / 3, 2 / 3, 0])
    assert found.mean == pytest.approx(3 / 3)  # image 2: 1.1, 1.3, .6 of 3
    assert found.vote == pytest.approx(2 / 3)  # image 0: two votes against one; 2: one each
    assert found.any_right == 1
    assert found.interval.low < 1 == found.interval.high


def test_an_ensemble_is_measured_by_command(
    checkpoints: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each network's metrics are its record's, and the ensemble's are written as JSON."""
    folders = [str(checkpoints / "mlp"), str(checkpoints / "cnn")]
    command = ["ensemble", *folders, "--data-dir", str(data_dir)]
    assert main([*command, "--json", str(tmp_path / "both.json")]) == 0
    assert "2 networks" in capsys.readouterr().out
    found = json.loads((tmp_path / "both.json").read_text())
    records = [read_checkpoint(Path(folder))[0] for folder in folders]
    for part in ("validation", "test"):
        alone = [getattr(record, part).accuracy for record in records]
        assert found[part]["alone"] == pytest.approx(alone)
        assert max(alone) <= found[part]["any_right"] <= 1
    assert found["weights_sha256"] == [record.weights.sha256 for record in records]


def test_all_ensembles_of_a_size_are_measured(
    checkpoints: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mean and range cover all subsets; for size 1 they are those of the single networks."""
    folders = [checkpoints / "mlp", checkpoints / "cnn"]
    folders.append(train_tiny("mlp", data_dir, tmp_path / "mlp", "--seed", "1"))
    command = ["ensemble", *map(str, folders), "--data-dir", str(data_dir)]
    for size, count in ((1, 3), (2, 3), (3, 1)):
        out = tmp_path / f"{size}.json"
        assert main([*command, "--size", str(size), "--json", str(out)]) == 0
        found = json.loads(out.read_text())["test"]["subsets"]
        assert (found["size"], found["count"]) == (size, count)
        assert found["accuracy"]["low"] <= found["accuracy"]["mean"] <= found["accuracy"]["high"]
    assert "all 3 ensembles of 2" in capsys.readouterr().out
    alone = [read_checkpoint(folder)[0].test.accuracy for folder in folders]
    single = json.loads((tmp_path / "1.json").read_text())["test"]["subsets"]["accuracy"]
    assert single["mean"] == pytest.approx(sum(alone) / 3)
    assert (single["low"], single["high"]) == pytest.approx((min(alone), max(alone)))
    assert main([*command, "--size", "4"]) == 1
    assert "--size 4: expected 1 to 3," in capsys.readouterr().err


@pytest.fixture
def of_another_split(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that held out the usual number of images, but different ones."""
    with monkeypatch.context() as patch:
        patch.setattr(mnist, "SPLIT_SEED", 1)
        return train_tiny("mlp", data_dir, tmp_path / "other-split")


def test_a_changed_split_is_noticed_wherever_held_out_images_are_used(
    of_another_split: Path,
    data_dir: Path,
    checkpoints: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ensembles, teachers and compare refuse a checkpoint with another validation split."""
    images, cnn = ["--data-dir", str(data_dir)], str(checkpoints / "cnn")
    out = ["--out", str(tmp_path / "out")]
    for command in (
        ["ensemble", str(of_another_split)],
        ["train", "--model", "cnn", "--teachers", str(of_another_split), *out],
        ["compare", str(of_another_split), cnn, *out],
    ):
        assert main([*command, *images]) == 1
        assert "held out other images" in capsys.readouterr().err


def test_a_checkpoint_from_before_splits_were_recorded_is_taken_and_said_so(
    checkpoints: Path, data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a recorded split only the number of held-out images is compared, with a note."""
    old = shutil.copytree(checkpoints / "mlp", tmp_path / "old")
    content = json.loads((old / "checkpoint.json").read_text())
    del content["data"]["split_sha256"]
    (old / "checkpoint.json").write_text(json.dumps(content))
    assert main(["ensemble", str(old), "--data-dir", str(data_dir)]) == 0
    assert any("which images it held out" in message for message in caplog.messages)


def test_the_loss_is_the_labels_and_the_teachers_by_their_shares(checkpoints: Path) -> None:
    """At temperature 1 the teachers' loss is the cross-entropy with their mean probabilities."""
    modules = [read_checkpoint(checkpoints / model)[1] for model in ("mlp", "cnn")]
    config = DistilConfig(teachers=("a", "b"), share=0.25, temperature=1)
    x_NCHW, logits_NK = torch.randn(5, 1, 28, 28), torch.randn(5, 10)
    told_NK = (modules[0](x_NCHW).softmax(1) + modules[1](x_NCHW).softmax(1)) / 2
    expected = -(told_NK * logits_NK.log_softmax(1)).sum(1).mean()
    teachers = Teachers(modules, config)
    found = teachers.mixed_loss(torch.tensor(8.0), logits_NK, teachers.soft_targets(x_NCHW))
    torch.testing.assert_close(found, 0.75 * 8.0 + 0.25 * expected)


def test_a_network_learns_what_its_teachers_say(
    checkpoints: Path, data_dir: Path, tmp_path: Path
) -> None:
    """Distillation brings outputs nearer to the teacher's, and the record names the teacher."""
    taught = train_tiny("mlp", data_dir, tmp_path, "--teachers", str(checkpoints / "cnn"))
    teacher, teaching = read_checkpoint(checkpoints / "cnn")
    record, module = read_checkpoint(taught)
    assert record.config.distil is not None
    assert record.config.distil.teachers == (teacher.weights.sha256,)
    images = load_dataset(data_dir).test.images

    def distance(other: torch.nn.Module) -> float:
        answers = [predict_logits(network, images).softmax(1) for network in (teaching, other)]
        return float((answers[0] - answers[1]).abs().sum(1).mean())

    assert distance(module) < 0.9 * distance(read_checkpoint(checkpoints / "mlp")[1])
    assert teaching(standardise(to_pixels(images[:1]))).requires_grad  # gradients flow again


def test_who_cannot_teach_is_refused_in_words(
    checkpoints: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another split, a pair network and a repeated checkpoint are refused as teachers."""
    cnn = str(checkpoints / "cnn")
    base = ["train", "--data-dir", str(data_dir), "--out", str(tmp_path), "--epochs", "1"]
    assert main([*base, "--model", "two-input", "--teachers", cnn]) == 1
    assert "two-input is not a digit classifier" in capsys.readouterr().err
    assert main([*base, "--model", "mlp", "--teachers", cnn, cnn]) == 1
    assert "have the same config and seed" in capsys.readouterr().err
