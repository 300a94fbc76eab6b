"""Every network of the course can be exported to proven ONNX, TorchScript and .pt2 files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from export.__main__ import main
from export.bundle.golden import Predict
from export.bundle.store import Bundle
from export.parity.candidates import Setting, choose_files
from training.data import load_dataset, standardise, to_pixels
from training.models import ARCHITECTURES, build_model, model_names, resolved

FAST = ["autoencoder", "lecture502-subclass", "two-input", "conv3d"]
FORMATS = ("onnx", "torchscript", "torchscript-frozen", "pt2")
SAMPLES = 64

CNN = {"n1": 2, "n2": 4, "n3": 16}
LARGE: dict[str, Any] = {"input_size": 30, "width": 1 / 8, "classes": 10}
NUMBERS: dict[str, dict[str, Any]] = {
    "autoencoder": {"n1": 2, "n2": 4, "code": 8},
    "inception": {"width": 2},
    "lecture502-sequential": LARGE,
    "lecture502-subclass": LARGE,
    "mlp": {"hidden": [16]},
    "two-input": {**CNN, "n4": 16},
    "conv1d": CNN,
    "vgg": {"a": 4, "b": 6, "c": 8},
    "resnet": {"channels": 4, "blocks": 1},
    "conv3d": CNN,
    **{name: CNN for name in model_names() if name.startswith("cnn")},
}
OUTPUTS = {
    "digit": ["logits"],
    "pair": ["first_logits", "second_logits", "sum_logits"],
    "image": ["image"],
    "none": ["logits"],
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread: with tensors this small, more threads only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _module(name: str, samples: dict[str, Any]) -> nn.Module:
    """A small network with the BatchNorm statistics of some samples, as after training."""
    torch.manual_seed(0)
    module = build_model(name, NUMBERS[name]).train()
    with torch.no_grad():
        for _ in range(20):  # a running mean forgets its first value slowly
            module(*map(torch.from_numpy, samples.values()))
    return module.eval()


def _samples(name: str, data_dir: Path, start: int) -> dict[str, Any]:
    """Real digits if the network takes digits, else noise of the large network's shape."""
    inputs = ARCHITECTURES[resolved(name, {})[0]].inputs
    if name.startswith("lecture502"):
        size = LARGE["input_size"]
        shape = (SAMPLES, 3, size, size)
        return {"image": np.random.default_rng(start).normal(size=shape).astype(np.float32)}
    images_NHW = load_dataset(data_dir).test.images[start:]
    return {
        f"image_{i}": standardise(to_pixels(images_NHW[i * SAMPLES :][:SAMPLES])).numpy()
        for i in range(len(inputs))
    }


def _built(name: str, data_dir: Path, folder: Path, variants: tuple[str, ...]) -> Bundle:
    """Build a network's bundle by the command line; a failure fails the test."""
    samples = _samples(name, data_dir, start=0)
    np.savez(folder / "samples.npz", **samples)
    save_file(_module(name, samples).state_dict(), folder / "weights.safetensors")
    task = ARCHITECTURES[resolved(name, {})[0]].task
    arguments = {"name": name, "numbers": NUMBERS[name]}
    command = ["build", "--model", "training.models:build_model", "--name", name]
    command += ["--arguments", json.dumps(arguments), "--variants", ",".join(variants)]
    command += ["--checkpoint", str(folder / "weights.safetensors")]
    command += ["--inputs", str(folder / "samples.npz"), "--out", str(folder / "bundle")]
    for output in OUTPUTS[task]:
        command += ["--output", output, *([] if task == "image" else ["--logits", output])]
    assert main(command) == 0
    return Bundle.open(folder / "bundle")


def _answers_alike(predict: Predict, module: nn.Module, samples: dict[str, Any]) -> bool:
    with torch.no_grad():
        answer = module(*map(torch.from_numpy, samples.values()))
    expected = answer if isinstance(answer, tuple) else (answer,)
    found = predict(samples).values()
    return all(
        np.abs(array - tensor.numpy()).max() <= 2e-6 * np.abs(tensor.numpy()).max()
        for array, tensor in zip(found, expected, strict=True)
    )


def _check(name: str, data_dir: Path, folder: Path, variants: tuple[str, ...]) -> None:
    bundle = _built(name, data_dir, folder, variants)
    manifest = bundle.manifest
    assert {verdict.variant for verdict in manifest.parity if verdict.passed} == set(variants)
    assert not [verdict for verdict in manifest.parity if verdict.tolerance.loosened]
    faults = json.loads(bundle.path("parity").read_text())["faults"]
    assert all(fault["caught_by"] or fault["not_applicable"] for fault in faults)
    outputs = tuple(spec.name for spec in manifest.outputs)
    files, left_out = choose_files(bundle.variants, outputs, Setting())
    assert not left_out
    module = build_model(name, NUMBERS[name]).eval()
    module.load_state_dict(load_file(folder / "weights.safetensors"))
    fresh = _samples(name, data_dir, start=2 * SAMPLES)
    for file in files:
        assert _answers_alike(file.open(), module, fresh)


@pytest.mark.parametrize("name", FAST)
def test_a_network_is_exported_and_proven(name: str, data_dir: Path, tmp_path: Path) -> None:
    """ONNX and .pt2 pass the gate, mutants are killed, and new samples get equal answers."""
    _check(name, data_dir, tmp_path, ("onnx", "pt2"))


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_every_network_is_exported_and_proven(name: str, data_dir: Path, tmp_path: Path) -> None:
    """All networks pass, in TorchScript, too."""
    _check(name, data_dir, tmp_path, FORMATS)


def test_every_name_has_its_numbers() -> None:
    """Every network has a row in the table above."""
    assert set(NUMBERS) == set(model_names())
