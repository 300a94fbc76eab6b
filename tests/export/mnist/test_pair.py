"""Networks for other tasks are exported by the same command and verified by the same gate."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from export.__main__ import main
from export.bundle.golden import Golden
from export.bundle.session import OnnxModel
from export.bundle.store import Bundle
from export.mnist.checkpoint import from_bundle, from_checkpoint
from export.parity.reference import eager_predict
from training.__main__ import main as training
from training.checkpoint import CheckpointError, open_checkpoint
from training.data import DataError, load_dataset, mnist, standardise, to_ink, to_pixels
from training.evaluation.two_input import fixed_pairs

NUMBERS = {
    "two-input": ["--arch", "n1=2", "--arch", "n2=4", "--arch", "n3=16", "--arch", "n4=16"],
    "autoencoder": ["--arch", "n1=2", "--arch", "n2=4", "--arch", "code=8"],
}

VARIANTS = {"two-input": "onnx,onnx-int8", "autoencoder": "onnx"}


@pytest.fixture(scope="module")
def made(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny checkpoint and its bundle, for each network."""
    folder = tmp_path_factory.mktemp("made")
    for model, numbers in NUMBERS.items():
        data = ["--data-dir", str(data_dir)]
        command = ["train", "--model", model, "--epochs", "1", "--batch-size", "32", *numbers]
        out = folder / "checkpoints" / model
        assert training([*command, *data, "--device", "cpu", "--out", str(out)]) == 0
        built = ["build", str(out), "--out", str(folder / model), "--variants", VARIANTS[model]]
        assert main([*built, *data]) == 0
    return folder


def test_a_pair_bundle_takes_two_images_and_gives_three_answers(made: Path) -> None:
    """It has the right tensors, labels up to 18, a passed verdict and no surviving mutant."""
    bundle = Bundle.open(made / "two-input")
    manifest = bundle.manifest
    assert [str(tensor) for tensor in manifest.inputs] == [
        *("first_images=UINT8[-1,28,28]", "second_images=UINT8[-1,28,28]")
    ]
    assert [(t.name, t.shape, t.kind) for t in manifest.outputs] == [
        ("first_logits", (-1, 10), "logits"),
        ("first_probabilities", (-1, 10), "probabilities"),
        ("second_logits", (-1, 10), "logits"),
        ("second_probabilities", (-1, 10), "probabilities"),
        ("sum_logits", (-1, 19), "logits"),
        ("sum_probabilities", (-1, 19), "probabilities"),
    ]
    assert manifest.labels == tuple(str(total) for total in range(19))
    assert {v.variant for v in manifest.parity if v.passed} == {"onnx", "onnx-int8"}
    figures = json.loads((made / "two-input" / "parity.json").read_text())
    assert set(figures["rows"][0]["outputs"]) == {"first_logits", "second_logits", "sum_logits"}
    assert all(fault["caught_by"] or fault["not_applicable"] for fault in figures["faults"])
    record, _ = open_checkpoint(made / "checkpoints" / "two-input")
    assert manifest.training is not None
    assert manifest.training.test_images == record.test.images_name
    assert manifest.proof.name.startswith("pairs of ")


def test_the_pair_file_answers_as_the_network_does(made: Path, data_dir: Path) -> None:
    """Raw pixels give the network's logits and their softmax, and the order of images matters."""
    pairs = fixed_pairs(load_dataset(data_dir).test)
    images = (pairs.first.images[:5], pairs.second.images[:5])
    model = OnnxModel(Bundle.open(made / "two-input").model_path("onnx"), "cpu")
    answers = model({"first_images": images[0].numpy(), "second_images": images[1].numpy()})
    _, network = open_checkpoint(made / "checkpoints" / "two-input")
    with torch.no_grad():
        expected = network(*(standardise(to_pixels(part)) for part in images))
    for name, logits in zip(("first", "second", "sum"), expected, strict=True):
        assert np.allclose(answers[f"{name}_logits"], logits.numpy(), atol=1e-5)
        softmax = logits.softmax(dim=1).numpy()
        assert np.allclose(answers[f"{name}_probabilities"], softmax, atol=1e-6)
    swapped = model({"first_images": images[1].numpy(), "second_images": images[0].numpy()})
    assert np.allclose(swapped["first_logits"], answers["second_logits"], atol=1e-5)


def test_an_autoencoder_gives_ink_between_0_and_1(made: Path, data_dir: Path) -> None:
    """One image gives an image in 0..1, and the proof passes without labels or accuracy."""
    bundle = Bundle.open(made / "autoencoder")
    manifest = bundle.manifest
    assert [str(tensor) for tensor in manifest.outputs] == ["ink=FP32[-1,28,28]"]
    assert manifest.labels == ()
    assert manifest.training is not None
    assert manifest.training.test_accuracy is None
    assert all(verdict.passed and verdict.certificate is None for verdict in manifest.parity)
    images = load_dataset(data_dir).test.images[:5]
    model = OnnxModel(bundle.model_path("onnx"), "cpu")
    _, network = open_checkpoint(made / "checkpoints" / "autoencoder")
    with torch.no_grad():
        expected = to_ink(network(standardise(to_pixels(images))))[:, 0].numpy()
    ink = model({"images": images.numpy()})["ink"]
    assert np.allclose(ink, expected, atol=1e-5)
    assert ink.min() == 0  # clipped: the network's own outputs go below 0
    assert ink.max() <= 1
    assert "softmax" not in model.metadata["pixels"]


def test_a_pair_bundle_can_be_proven_again_from_itself(made: Path, data_dir: Path) -> None:
    """Network and pairs are rebuilt from the bundle, and give the same answers."""
    bundle, dataset = Bundle.open(made / "two-input"), load_dataset(data_dir)
    then = from_checkpoint(made / "checkpoints" / "two-input", dataset)
    now = from_bundle(bundle, dataset)
    assert now.samples.summary() == then.samples.summary() == bundle.manifest.proof
    for name, array in then.samples.arrays.items():
        assert np.array_equal(now.samples.arrays[name], array)
    golden = Golden.load(bundle.path("golden"))
    assert len(golden) > 10
    for name, answer in eager_predict(now)(golden.inputs).items():
        assert np.array_equal(answer, golden.fp32[name])
    other = dataclasses.replace(dataset, test=dataset.train)
    with pytest.raises(DataError, match="give the same data"):
        from_bundle(bundle, other)


def test_a_bundle_that_names_its_network_by_an_older_name_is_rebuilt(
    made: Path, data_dir: Path, tmp_path: Path
) -> None:
    """Bundles from before the networks were renamed can be rebuilt."""
    shutil.copytree(made / "two-input", tmp_path / "pair")
    path = tmp_path / "pair" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["training"]["config"]["model"] = "pair"
    path.write_text(json.dumps(manifest))
    subject = from_bundle(Bundle.open(tmp_path / "pair"), load_dataset(data_dir))
    assert [output.name for output in subject.outputs][-1].startswith("sum")


def test_a_checkpoint_of_another_split_is_not_exported(
    made: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images that count as held out for the guard were partly trained on."""
    monkeypatch.setattr(mnist, "SPLIT_SEED", 1)
    with pytest.raises(CheckpointError, match="held out other images"):
        from_checkpoint(made / "checkpoints" / "autoencoder", load_dataset(data_dir))


def test_a_bundle_of_another_split_is_not_checked(
    made: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused by the split's hash, which an older manifest does not have."""
    bundle, dataset = Bundle.open(made / "two-input"), load_dataset(data_dir)
    monkeypatch.setattr(mnist, "SPLIT_SEED", 1)
    with pytest.raises(CheckpointError, match="two-input held out other images"):
        from_bundle(bundle, dataset)
    assert bundle.manifest.training is not None
    older = bundle.manifest.training.model_copy(update={"split_sha256": None})
    manifest = bundle.manifest.model_copy(update={"training": older})
    assert from_bundle(dataclasses.replace(bundle, manifest=manifest), dataset).training == older
