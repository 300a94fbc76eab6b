"""A checkpoint opens complete and correct, or not at all."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from training.checkpoint import CheckpointError, read_checkpoint, write_record, write_weights
from training.data import load_dataset
from training.evaluation.classification import evaluate


@pytest.fixture
def checkpoint(checkpoints: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoints / "cnn", tmp_path / "cnn")


def test_the_recorded_accuracy_is_what_the_weights_reach(checkpoint: Path, data_dir: Path) -> None:
    """Measuring the opened module again gives exactly the record's metrics."""
    record, module = read_checkpoint(checkpoint)
    again = evaluate(module, load_dataset(data_dir).test, record.test.images_name)
    assert again.confusion == record.test.confusion
    assert again.accuracy == record.test.accuracy > 0.5


def test_the_record_says_what_a_reader_needs(checkpoint: Path) -> None:
    """The JSON contains config, seed, data hash, versions, commit and history."""
    content = json.loads((checkpoint / "checkpoint.json").read_text())
    assert content["config"]["seed"] == 0
    assert content["config"]["architecture"]["n1"] == 2
    assert len(content["data"]["sha256"]) == 64
    assert {"torch", "python"} <= set(content["versions"])
    assert content["commit"]
    assert [entry["epoch"] for entry in content["history"]] == list(range(6))
    assert content["weights"]["parameters"] == 1466


def test_altered_weights_are_refused(checkpoint: Path) -> None:
    """The hash detects one changed byte in the weights."""
    weights = next(checkpoint.glob("weights-*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="was altered"):
        read_checkpoint(checkpoint)


def test_weights_of_another_architecture_are_refused(checkpoint: Path) -> None:
    """A checkpoint does not open if its record gives other sizes than the weights have."""
    path = checkpoint / "checkpoint.json"
    path.write_text(path.read_text().replace('"n3": 16', '"n3": 17'))
    with pytest.raises(CheckpointError, match="does not fit the architecture"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("content", ["", "{}", '{"schema_version": 1}', "nonsense"])
def test_a_broken_record_is_refused(checkpoint: Path, content: str) -> None:
    """An invalid record is refused with its path."""
    (checkpoint / "checkpoint.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
        read_checkpoint(checkpoint)


def test_a_newer_record_is_called_newer_whatever_else_is_in_it(checkpoint: Path) -> None:
    """The version is checked first, so unknown fields of a newer record do not count as damage."""
    path = checkpoint / "checkpoint.json"
    content = json.loads(path.read_text())
    newer = {**content, "schema_version": 99, "config": {"model": "of another age"}, "more": 1}
    path.write_text(json.dumps(newer))
    with pytest.raises(CheckpointError, match=r"version 99, .* update"):
        read_checkpoint(checkpoint)


def test_a_record_of_the_first_version_opens(checkpoint: Path) -> None:
    """A record without the newer fields opens, even one that says "misread"."""
    path = checkpoint / "checkpoint.json"
    content = json.loads(path.read_text())
    content["schema_version"] = 1
    content["data"].pop("split_sha256")
    for part in ("validation", "test"):
        content[part].pop("brier_score")
        content[part]["misread"] = content[part].pop("misclassified")
    path.write_text(json.dumps(content))
    record, _ = read_checkpoint(checkpoint)
    assert record.data.split_sha256 is None
    assert record.test.brier_score is None
    wrong = round((1 - record.test.accuracy) * record.test.images)
    assert len(record.test.misclassified) == wrong


def test_an_empty_folder_says_how_to_make_one(tmp_path: Path) -> None:
    """Without a record, the message names the command that writes a checkpoint."""
    with pytest.raises(CheckpointError, match="python -m training train"):
        read_checkpoint(tmp_path)


def test_an_interruption_between_weights_and_record_leaves_the_old_checkpoint(
    checkpoint: Path,
) -> None:
    """New weights without a new record leave the old checkpoint intact."""
    record, module = read_checkpoint(checkpoint)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        next(module.parameters()).add_(1)
    new = write_weights(checkpoint, module)  # the power fails before the record is written
    _, reopened = read_checkpoint(checkpoint)
    assert all(torch.equal(before[name], t) for name, t in reopened.state_dict().items())
    write_record(checkpoint, record.model_copy(update={"weights": new}))
    assert [path.name for path in checkpoint.glob("weights-*")] == [new.path]


def test_a_record_from_before_a_number_was_added_opens_the_same(checkpoint: Path) -> None:
    """A number that an old record lacks has its default, which is what the network had then."""
    record, module = read_checkpoint(checkpoint)
    path = checkpoint / "checkpoint.json"
    content = json.loads(path.read_text())
    for name in set(content["config"]["architecture"]) - {"n1", "n2", "n3", "dropout"}:
        del content["config"]["architecture"][name]
    path.write_text(json.dumps(content))
    reopened, again = read_checkpoint(checkpoint)
    assert reopened == record
    pairs = zip(module.state_dict().items(), again.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
