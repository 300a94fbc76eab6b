"""A checkpoint becomes the same proven bundle each time, or none."""

import hashlib
import shutil
from pathlib import Path

import onnx
import pytest

from export import build as build_module
from export.__main__ import main
from export.bundle import Bundle
from tests.export.faults import change_one_weight


def _hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_two_builds_of_a_checkpoint_are_byte_identical(
    model: str, bundles: Path, checkpoints: Path, data_dir: Path, tmp_path: Path
) -> None:
    """Every file of a second build, in another folder, hashes like the first one's."""
    command = ["build", str(checkpoints / model), "--out", str(tmp_path / "again")]
    assert main([*command, "--data-dir", str(data_dir)]) == 0
    assert _hashes(tmp_path / "again") == _hashes(bundles / model)


def test_a_rebuild_replaces_the_bundle_and_leaves_nothing_beside_it(
    bundle: Path, checkpoints: Path, data_dir: Path
) -> None:
    """Building over a bundle, with a name and a version given, gives one bundle of that name."""
    command = ["build", str(checkpoints / "mlp"), "--out", str(bundle), "--name", "digits"]
    assert main([*command, "--version", "2.1", "--data-dir", str(data_dir)]) == 0
    manifest = Bundle.open(bundle).manifest
    assert (manifest.name, manifest.version, manifest.architecture) == ("digits", "2.1", "mlp")
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_the_onnx_file_is_as_asked_and_names_no_path(bundle: Path) -> None:
    """Opset 20, a free batch axis, one file, and neither stack traces nor metadata in it."""
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    assert {entry.version for entry in model.opset_import if not entry.domain} == {20}
    (images,) = model.graph.input
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == [
        "batch",
        28,
        28,
    ]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    for path in bundle.iterdir():
        assert str(Path(__file__).parent.parent.parent).encode() not in path.read_bytes()


def test_a_fault_made_by_the_exporter_writes_no_bundle(
    checkpoints: Path,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An exporter that changes one weight by 1% ends with status 1, words, and no folder."""
    honest = build_module._write_models

    def faulty(model: object, folder: Path) -> object:
        entries = honest(model, folder)  # type: ignore[arg-type]
        (folder / "manifest.json").write_text('{"files": []}')
        change_one_weight(folder, 1.01)
        (folder / "manifest.json").unlink()
        return entries

    monkeypatch.setattr(build_module, "_write_models", faulty)
    target = tmp_path / "out" / "cnn"
    command = ["build", str(checkpoints / "cnn"), "--out", str(target)]
    assert main([*command, "--data-dir", str(data_dir)]) == 1
    error = capsys.readouterr().err
    for words in ("parity failed", "onnx, batch 256", "image", "off by", "RMS error"):
        assert words in error
    assert "torchscript" not in error
    assert list(target.parent.iterdir()) == []


def test_a_missing_checkpoint_is_refused(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Building from nothing says which command makes a checkpoint."""
    command = ["build", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*command, "--data-dir", str(data_dir)]) == 2
    assert "python -m training train" in capsys.readouterr().err


def test_images_that_the_checkpoint_was_not_trained_with_are_refused(
    checkpoints: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Golden samples and accuracy must be of one data set: status 66 names both."""
    other = shutil.copytree(data_dir, tmp_path / "other")
    labels = bytearray((other / "t10k-labels-idx1-ubyte").read_bytes())
    labels[-1] = (labels[-1] + 1) % 10
    (other / "t10k-labels-idx1-ubyte").write_bytes(labels)
    command = ["build", str(checkpoints / "cnn"), "--out", str(tmp_path / "out")]
    assert main([*command, "--data-dir", str(other)]) == 66
    assert "was trained on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
