"""A bundle opens complete and unaltered, or not at all."""

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from export.bundle.manifest import BundleError
from export.bundle.store import Bundle, find_bundles, staged, write_bundle
from export.bundle.tolerances import tolerance_for

FALSE_VERDICT = {
    "format": "onnx",
    "precision": "fp32",
    "device": "cpu",
    "passed": True,
    "scaled_error": 0.1,
    "rms_ratio": 2,
    "sqnr_db": 20,
    "label_flips": 0,
    "accuracy": 1,
    "certificate": 1,
    "samples": 1,
    "batch_sizes": [1],
    "tolerance": tolerance_for("onnx", "cpu").model_dump(),
}


def test_the_manifest_says_what_a_service_needs(bundle: Path) -> None:
    """It has name, version, tensors, labels, files with hashes, parity and training."""
    manifest = Bundle.open(bundle).manifest
    assert manifest.name == "cnn"
    assert manifest.version == next(f.sha256 for f in manifest.files if f.role == "weights")[:12]
    assert [(t.name, t.datatype, t.shape) for t in manifest.inputs] == [
        ("images", "UINT8", (-1, 28, 28))
    ]
    assert [t.name for t in manifest.outputs] == ["logits", "probabilities"]
    assert manifest.labels == tuple("0123456789")
    assert {f.path for f in manifest.files} == {
        *("model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.ts", "model.frozen.ts"),
        *("model.pt2", "weights.safetensors", "golden.npz", "guard.npz", "parity.json"),
        *("model.features.onnx", "golden.features.npz"),
    }
    assert next(f.opset for f in manifest.files if f.format == "onnx") == 20
    assert {v.variant for v in manifest.parity if v.passed} == {
        *("onnx", "onnx-fp16", "onnx-int8", "torchscript", "torchscript-frozen", "pt2")
    }
    assert all(v.tolerance.reason for v in manifest.parity)
    assert manifest.training is not None
    assert (manifest.training.test_accuracy or 0) > 0.5
    assert manifest.calibration is not None
    assert manifest.calibration.samples == 512
    assert manifest.proof.samples == 300


@pytest.mark.parametrize(
    "name",
    [
        *("model.onnx", "model.int8.onnx", "model.ts", "weights.safetensors", "golden.npz"),
        *("model.features.onnx", "golden.features.npz"),
    ],
)
def test_one_altered_byte_is_found_and_the_file_named(bundle: Path, name: str) -> None:
    """A bundle with a flipped bit in any file does not open."""
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name} was altered"):
        Bundle.open(bundle)


def test_a_missing_file_and_a_stranger_are_named(bundle: Path) -> None:
    """A missing or additional file is refused by name."""
    (bundle / "extra.bin").write_bytes(b"?")
    with pytest.raises(BundleError, match=r"does not list: extra\.bin"):
        Bundle.open(bundle)
    (bundle / "extra.bin").unlink()
    (bundle / "model.ts").unlink()
    with pytest.raises(BundleError, match=r"model\.ts is missing"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"name": "../evil"}, "name"),
        ({"surprise": 1}, "surprise"),
        ({"parity": [FALSE_VERDICT]}, "its figures exceed the tolerance"),
        ({"files": [{"path": "../../etc/passwd"}]}, "path"),
    ],
)
def test_a_strange_manifest_is_refused(bundle: Path, change: dict[str, object], named: str) -> None:
    """Unknown versions, unknown fields and paths outside the folder are refused."""
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BundleError, match=named):
        Bundle.open(bundle)


def test_an_interrupted_build_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    """Staged files that were never sealed are removed, and earlier files stay."""
    target = tmp_path / "out" / "cnn"
    shutil.copytree(bundle, target)
    with suppress(KeyboardInterrupt), staged(target) as staging:
        (staging / "model.onnx").write_bytes(b"half a model")
        raise KeyboardInterrupt
    assert [path.name for path in target.parent.iterdir()] == ["cnn"]
    Bundle.open(target)


def test_only_a_bundle_is_overwritten(bundle: Path, tmp_path: Path) -> None:
    """A target folder that is not a bundle is refused and left unchanged."""
    target = tmp_path / "home"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    manifest = Bundle.open(bundle).manifest
    with staged(target) as staging, pytest.raises(BundleError, match="not overwritten"):
        write_bundle(staging, target, manifest)
    assert (target / "thesis.txt").read_text() == "years of work"


def test_finds_bundles_by_their_manifests(bundles: Path, tmp_path: Path) -> None:
    """Folders without a manifest, such as staging folders, are not bundles."""
    assert [path.name for path in find_bundles(bundles)] == ["cnn", "mlp"]
    (tmp_path / "half").mkdir()
    shutil.copytree(bundles / "cnn", tmp_path / ".cnn.staged")
    assert find_bundles(tmp_path) == []
    assert find_bundles(tmp_path / "nowhere") == []


def _killed_build(target: Path) -> None:
    """Run a build in its own process and kill it while it stages."""
    program = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from export.bundle.store import staged\n"
        f"with staged(Path({str(target)!r})) as staging:\n"
        "    (staging / 'model.onnx').write_bytes(b'half a model')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=False)


def test_what_a_killed_build_left_is_swept_by_the_next_one(tmp_path: Path) -> None:
    """Its staging folder is removed; those of live builds and of other targets stay."""
    target, other = tmp_path / "cnn", tmp_path / "mlp"
    _killed_build(target)
    _killed_build(other)
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 2
    with staged(target) as first, staged(target) as second:
        names = {path.name for path in tmp_path.iterdir()}
        assert {first.name, second.name} <= names
        assert len(names & left) == 1
        assert next(iter(names & left)).startswith(".mlp.")


def test_a_bundle_that_a_killed_build_was_replacing_comes_back(
    bundle: Path, tmp_path: Path
) -> None:
    """The old bundle is restored if the build dies between moving it away and replacing it."""
    target = tmp_path / "out" / "cnn"
    _killed_build(target)
    (left,) = target.parent.iterdir()
    shutil.copytree(bundle, left.with_name(left.name.replace(".new-", ".old-")) / "cnn")
    with staged(target):
        pass
    Bundle.open(target)
    assert [path.name for path in target.parent.iterdir()] == ["cnn"]
