"""Faults that must prevent the service's start, each with the words that its error must contain."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.bundle.signature import sign_bundle
from tests.keys import make_key_pair, public_half
from tests.rehash import rehash

LIBRARY = "libcudart.so.12: cannot open shared object file: No such file or directory"


@dataclass(frozen=True)
class Fault:
    """A change to a folder with the two bundles, which may return settings, and the error text."""

    plant: Callable[[Path], dict[str, str] | None]
    named: tuple[str, ...]


def _set(**settings: str) -> Callable[[Path], dict[str, str]]:
    return lambda bundles: {f"INFERENCE_{name}": value for name, value in settings.items()}


def _altered(name: str) -> Callable[[Path], None]:
    def fault(bundles: Path) -> None:
        content = bytearray((bundles / "cnn" / name).read_bytes())
        content[len(content) // 2] ^= 1
        (bundles / "cnn" / name).write_bytes(content)

    return fault


def _removed(name: str) -> Callable[[Path], None]:
    return lambda bundles: (bundles / "cnn" / name).unlink()


def _written(name: str, content: str) -> Callable[[Path], None]:
    def fault(bundles: Path) -> None:
        (bundles / "cnn" / name).write_text(content)

    return fault


def _manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def fault(bundles: Path) -> None:
        path = bundles / "cnn" / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return fault


def _looser(manifest: dict[str, Any]) -> None:
    for row in manifest["tolerances"]:
        row["scaled_error"] = 0.5


def _golden(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def fault(bundles: Path) -> None:
        path = bundles / "cnn" / "golden.npz"
        with np.load(path) as content:
            arrays = dict(content)
        change(arrays)
        np.savez(path, allow_pickle=False, **arrays)
        rehash(bundles / "cnn", "golden.npz")

    return fault


def _other_answer(arrays: dict[str, np.ndarray]) -> None:
    arrays["eager/logits"] = arrays["eager/logits"] * np.float32(1.0001)


def _other_shape(arrays: dict[str, np.ndarray]) -> None:
    arrays["inputs/images"] = arrays["inputs/images"][:, 1:, 1:]


def _no_guard(bundles: Path) -> None:
    np.savez(bundles / "cnn" / "guard.npz", mean=np.zeros(784, np.uint8))
    rehash(bundles / "cnn", "guard.npz")


def _not_onnx(bundles: Path) -> None:
    (bundles / "cnn" / "model.onnx").write_bytes(b"this is no model")
    rehash(bundles / "cnn", "model.onnx")


def _no_onnx_runtime(bundles: Path) -> dict[str, str]:
    """Make ``import onnxruntime`` fail as with a missing CUDA library."""
    package = bundles.parent / "path" / "onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"raise ImportError({LIBRARY!r})\n")
    return {"PYTHONPATH": str(package.parent)}


def _unsigned(bundles: Path) -> dict[str, str]:
    """One bundle is signed, the other is not."""
    key = make_key_pair(bundles.parent, "key")
    sign_bundle(bundles / "cnn", key)
    return {"INFERENCE_SIGNING_KEY": str(public_half(key))}


def _altered_after_signing(bundles: Path) -> dict[str, str]:
    """Change one byte of a signed bundle and update the manifest's hash."""
    settings = _unsigned(bundles)
    _altered("model.onnx")(bundles)
    rehash(bundles / "cnn", "model.onnx")
    return settings


def _one_name_twice(bundles: Path) -> None:
    shutil.copytree(bundles / "cnn", bundles / "copy")


def _emptied(bundles: Path) -> None:
    for path in bundles.iterdir():
        shutil.rmtree(path)


WITHOUT_GPU = {"INFERENCE_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}
FAULTS = {
    "model altered": Fault(_altered("model.onnx"), ("cnn/model.onnx was altered", "build")),
    "golden samples altered": Fault(_altered("golden.npz"), ("cnn/golden.npz was altered",)),
    "file missing": Fault(_removed("parity.json"), ("cnn/parity.json is missing", "build")),
    "stranger file": Fault(_written("notes.txt", ""), ("cnn", "notes.txt", "manifest")),
    "model is not ONNX": Fault(_not_onnx, ("cnn/model.onnx is not a model",)),
    "manifest missing": Fault(_removed("manifest.json"), ("cnn", "manifest.json")),
    "manifest is no JSON": Fault(
        _written("manifest.json", '{"name": '), ("cnn/manifest.json is not a manifest",)
    ),
    "manifest of another schema": Fault(
        _manifest(lambda m: m.update(schema_version=99)),
        ("cnn/manifest.json has schema version 99", "build"),
    ),
    "manifest without a field": Fault(
        _manifest(lambda m: m.pop("version")), ("cnn/manifest.json is not a manifest", "version")
    ),
    "looser tolerance": Fault(
        _manifest(_looser), ("cnn has a looser tolerance than the table", "scaled_error: 0.5")
    ),
    "parity failed": Fault(
        _manifest(lambda m: [verdict.update(passed=False) for verdict in m["parity"]]),
        ("cnn has no passed parity verdict",),
    ),
    "no verdicts": Fault(
        _manifest(lambda m: m.update(parity=[])), ("cnn has no passed parity verdict",)
    ),
    "wrong golden answer": Fault(
        _golden(_other_answer), ("cnn", "fails its golden samples", "scaled error")
    ),
    "golden samples of another shape": Fault(_golden(_other_shape), ("cnn", "27")),
    "guard altered": Fault(_altered("guard.npz"), ("cnn/guard.npz was altered",)),
    "guard that is none": Fault(_no_guard, ("cnn/guard.npz is not a file of a guard",)),
    "guard without a file": Fault(
        _manifest(lambda m: m.update(files=[f for f in m["files"] if f["role"] != "guard"])),
        ("cnn/manifest.json is not a manifest", "a guard and its file together"),
    ),
    "not signed": Fault(_unsigned, ("mlp is not signed", "model.sig is missing", "export sign")),
    "altered after signing": Fault(
        _altered_after_signing, ("cnn is not what was signed", "model.onnx", "export sign")
    ),
    "no signing key": Fault(
        _set(SIGNING_KEY="/nowhere.pem"), ("/nowhere.pem is not a public key in PEM",)
    ),
    "two bundles of one name": Fault(
        _one_name_twice,
        ("two bundles", "the name cnn"),
    ),
    "empty folder": Fault(
        _emptied,
        ("no bundle in", "make bundles", "INFERENCE_BUNDLES"),
    ),
    "folder missing": Fault(_set(BUNDLES="/nowhere"), ("no bundle in /nowhere", "make bundles")),
    "unknown default model": Fault(
        _set(DEFAULT_MODEL="rnn"), ("INFERENCE_DEFAULT_MODEL=rnn", "cnn, mlp")
    ),
    "CUDA without a GPU": Fault(
        lambda bundles: WITHOUT_GPU, ("cuda was requested", "no CUDA device", "use cpu")
    ),
    "no ONNX Runtime": Fault(_no_onnx_runtime, (LIBRARY,)),
    "workers no number": Fault(_set(WORKERS="none"), ("INFERENCE_WORKERS='none'", "integer")),
    "no workers": Fault(_set(WORKERS="0"), ("INFERENCE_WORKERS='0'", "greater")),
    "device of no kind": Fault(_set(DEVICE="tpu"), ("INFERENCE_DEVICE='tpu'", "'cuda'")),
    "switch of no kind": Fault(_set(FAST_PATH="maybe"), ("INFERENCE_FAST_PATH='maybe'", "boolean")),
    "time not a number": Fault(_set(TIMEOUT_S="nan"), ("INFERENCE_TIMEOUT_S='nan'", "finite")),
    "threads beyond any machine": Fault(
        _set(THREADS="1000000000000"), ("INFERENCE_THREADS='1000000000000'",)
    ),
    "key too short": Fault(_set(API_KEY="short"), ("INFERENCE_API_KEY: ", "16")),
    "two settings wrong": Fault(
        _set(WORKERS="x", TIMEOUT_S="-1"), ("INFERENCE_WORKERS='x'", "INFERENCE_TIMEOUT_S='-1'")
    ),
    "limits that contradict": Fault(
        _set(MAX_QUEUE_SAMPLES="4", MAX_REQUEST_SAMPLES="8"),
        ("INFERENCE_MAX_QUEUE_SAMPLES=4", "INFERENCE_MAX_REQUEST_SAMPLES=8"),
    ),
}
