"""Right and wrong versions of a tiny classifier: x FP32 [-1, 4] to logits FP32 [-1, 3]."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from export.bundle.metrics import Array, Arrays
from service.rollout.changes import set_candidate, stage
from service.versions.state import RolloutFolder
from tests.rehash import rehash
from tests.service.made_bundles import make_bundle, make_model
from tests.tiny import SERVED_BUNDLES

NAME = "tiny"
LABELS = ("a", "b", "c")
# The version of ``make_failing`` fails for an input whose first number is this.
UNLUCKY = 1000.0
HIDDEN = 4096


def weights(seed: int = 0) -> Array:
    """The weights of a version, float32 [4, 3]."""
    return np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)


def samples(count: int, seed: int = 1) -> Array:
    """Inputs, float32 [count, 4]."""
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def make_version(
    folder: Path,
    version: str,
    seed: int = 0,
    *,
    nodes: list[NodeProto] | None = None,
    constants: Arrays | None = None,
    classes: int = 3,
) -> Path:
    """Write a version to ``folder / VERSION / NAME``; it computes x @ weights(seed).

    Args:
        folder: The folder of all sources.
        version: Its name.
        seed: Seed of its weights.
        nodes: Nodes that compute "logits", in place of the one matrix product.
        constants: Constants of these nodes, besides "weights".
        classes: Number of columns that it keeps.
    """
    model = make_model(
        nodes or [helper.make_node("MatMul", ["x", "weights"], ["logits"])],
        [("x", "FP32", [None, 4])],
        [("logits", "FP32", [None, classes])],
        {"weights": weights(seed)[:, :classes]} | (constants or {}),
    )
    fields: dict[str, Any] = {"version": version, "labels": LABELS[:classes]}
    make_bundle(
        folder / version,
        NAME,
        model,
        {"x": samples(12, seed=2)},
        kinds={"logits": "logits"},
        **fields,
    )
    return folder / version / NAME


def make_slow(folder: Path, version: str) -> Path:
    """A version with the same answers that takes many times as long."""
    generator = np.random.default_rng(0)
    wide = {
        "up": generator.normal(size=(4, HIDDEN)).astype(np.float32),
        "deep": generator.normal(size=(HIDDEN, 256)).astype(np.float32),
        "down": np.zeros((256, 3), np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["right"]),
        helper.make_node("MatMul", ["x", "up"], ["hidden"]),
        helper.make_node("Sin", ["hidden"], ["bent"]),
        helper.make_node("MatMul", ["bent", "deep"], ["deeper"]),
        helper.make_node("MatMul", ["deeper", "down"], ["nothing"]),
        helper.make_node("Add", ["right", "nothing"], ["logits"]),
    ]
    return make_version(folder, version, nodes=nodes, constants=wide)


def make_failing(folder: Path, version: str) -> Path:
    """A version with the same answers, whose engine fails for inputs that contain ``UNLUCKY``."""
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["right"]),
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["position"], to=TensorProto.INT64),
        helper.make_node("Gather", ["zeros", "position"], ["zero"]),
        helper.make_node("Add", ["right", "zero"], ["logits"]),
    ]
    zeros = np.zeros(100, np.float32)
    return make_version(folder, version, nodes=nodes, constants={"zeros": zeros})


def make_digits_version(folder: Path, version: str) -> Path:
    """The small CNN of the repository under another version; its weights stay the same."""
    bundle = Path(shutil.copytree(SERVED_BUNDLES / "cnn", folder / version))
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": version}))
    return bundle


def make_digits_rollout(folder: Path, share: float = 0.5) -> Path:
    """A bundles folder with the MLP, and two versions of the CNN, one of them a canary."""
    bundles = folder / "bundles"
    shutil.copytree(SERVED_BUNDLES / "mlp", bundles / "mlp")
    for version in ("v1", "v2"):
        stage(RolloutFolder(bundles / "cnn"), make_digits_version(folder / "sources", version))
    set_candidate(RolloutFolder(bundles / "cnn"), "canary", "v2", share, {})
    return bundles


def flip_byte(bundle: Path) -> None:
    """Change one byte of the model's file."""
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(content)


def swap_model(bundle: Path, other: Path) -> None:
    """Put another version's model into a bundle and update its hash."""
    shutil.copy(other / "model.onnx", bundle / "model.onnx")
    rehash(bundle, "model.onnx")
