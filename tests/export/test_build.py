"""A checkpoint gives the same proven bundle each time, or none."""

import hashlib
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from export import build as build_module
from export import formats
from export.__main__ import main
from export.bundle.manifest import BundleError
from export.bundle.session import OnnxModel
from export.bundle.store import Bundle
from export.parity.run import ParityRun
from tests.export.faults import change_one_weight


def _hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("model", ["cnn", pytest.param("mlp", marks=pytest.mark.slow)])
def test_two_builds_of_a_checkpoint_are_byte_identical(
    model: str, bundles: Path, checkpoints: Path, data_dir: Path, tmp_path: Path
) -> None:
    """Every file of a second build in another folder has the same hash."""
    command = ["build", str(checkpoints / model), "--out", str(tmp_path / "again")]
    assert main([*command, "--data-dir", str(data_dir)]) == 0
    assert _hashes(tmp_path / "again") == _hashes(bundles / model)


def test_a_rebuild_replaces_the_bundle_and_leaves_nothing_beside_it(
    bundle: Path, checkpoints: Path, data_dir: Path
) -> None:
    """A rebuild with a given name and version leaves exactly that bundle."""
    command = ["build", str(checkpoints / "mlp"), "--out", str(bundle), "--name", "digits"]
    assert main([*command, "--version", "2.1", "--data-dir", str(data_dir)]) == 0
    manifest = Bundle.open(bundle).manifest
    assert (manifest.name, manifest.version, manifest.architecture) == ("digits", "2.1", "mlp")
    assert manifest.task == "digits"
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx", "model.int8.onnx"])
def test_the_onnx_files_are_as_asked_and_say_what_they_are(name: str, bundle: Path) -> None:
    """They have opset 20, a free batch axis and metadata, and are single files."""
    model = onnx.load(bundle / name, load_external_data=False)
    assert {entry.version for entry in model.opset_import if not entry.domain} == {20}
    (images,) = model.graph.input
    axes = [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim]
    assert axes == ["batch", 28, 28]
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    manifest = Bundle.open(bundle).manifest
    said = OnnxModel(bundle / name, "cpu").metadata
    assert (said["name"], said["version"]) == (manifest.name, manifest.version)
    assert said["inputs"] == "images=UINT8[-1,28,28]"
    assert said["variant"] == next(f.variant for f in manifest.files if f.path == name)
    assert said["proven_on"] == manifest.proof.name


def _contents(path: Path) -> Iterator[bytes]:
    """A file's bytes and, for an archive, those of the files in it."""
    yield path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())


def test_no_artefact_names_a_path_of_this_machine(bundle: Path) -> None:
    """No file, or file within an archive, contains the repository's or packages' paths."""
    places = [str(Path(__file__).parents[2]), "site-packages", str(Path.home()) + "/"]
    for path in bundle.iterdir():
        for content in _contents(path):
            for place in places:
                assert place.encode() not in content, path.name


def test_a_fault_made_by_the_exporter_writes_no_bundle(
    checkpoints: Path,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An exporter that changes a weight by 1% gives status 1, its location and no folder."""
    honest = formats.write_models

    def faulty(proof: ParityRun, folder: Path, *further: Any) -> object:
        made = honest(proof, folder, *further)
        (folder / "manifest.json").write_text('{"files": []}')
        change_one_weight(folder, 1.01)
        (folder / "manifest.json").unlink()
        return made

    monkeypatch.setattr(build_module, "write_models", faulty)
    target = tmp_path / "out" / "cnn"
    command = ["build", str(checkpoints / "cnn"), "--out", str(target)]
    command += ["--data-dir", str(data_dir), "--report", str(tmp_path / "report")]
    assert main(command) == 1
    error = capsys.readouterr().err
    for words in (
        "parity failed",
        "onnx, batch 256",
        "worst at",
        "largest difference",
        "RMS error",
    ):
        assert words in error
    assert "first wrong value: conv2d, of the ONNX node node_conv2d (Conv)" in error
    assert "classifier.features.0" in error
    assert "training/models/cnn.py:" in error
    assert "torchscript" not in error
    assert list(target.parent.iterdir()) == []
    assert "FAILED" in (tmp_path / "report" / "parity.md").read_text()


def test_dynamic_int8_is_refused_with_its_reason(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 64, and the message gives the reason and the alternative."""
    command = ["build", str(checkpoints / "cnn"), "--out", str(tmp_path / "out")]
    assert main([*command, "--variants", "onnx,onnx-int8-dynamic"]) == 64
    error = capsys.readouterr().err
    assert "depends on the other samples in its batch" in error
    assert "use onnx-int8" in error


def test_only_the_variants_asked_for_are_built(
    checkpoints: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest and later errors give the reason why other variants are missing."""
    out = tmp_path / "cnn"
    command = ["build", str(checkpoints / "cnn"), "--out", str(out), "--data-dir", str(data_dir)]
    command += ["--tolerance", "onnx.cpu.scaled_error=1e-5", "--because", "to see it recorded"]
    assert main([*command, "--variants", "onnx,pt2"]) == 0
    bundle = Bundle.open(out)
    assert list(bundle.variants) == ["onnx", "pt2"]
    assert set(bundle.manifest.not_built) == {
        *("onnx-fp16", "onnx-int8", "torchscript", "torchscript-frozen")
    }
    assert bundle.manifest.guard is not None
    with pytest.raises(BundleError, match="was not requested"):
        bundle.model_path("onnx-int8")
    assert "to see it recorded" in (bundle.manifest.tolerance("cpu").loosened or "")
    assert "LOOSENED scaled_error: 1e-05" in capsys.readouterr().out
    assert main(["check", str(out), "--quick"]) == 0


def test_a_missing_checkpoint_is_refused(
    tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the command that writes a checkpoint."""
    command = ["build", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*command, "--data-dir", str(data_dir)]) == 2
    assert "python -m training train" in capsys.readouterr().err


def test_images_that_the_checkpoint_was_not_trained_with_are_refused(
    checkpoints: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Golden samples and accuracy need one data set, so status 66 names both."""
    other = shutil.copytree(data_dir, tmp_path / "other")
    labels = bytearray((other / "t10k-labels-idx1-ubyte").read_bytes())
    labels[-1] = (labels[-1] + 1) % 10
    (other / "t10k-labels-idx1-ubyte").write_bytes(labels)
    command = ["build", str(checkpoints / "cnn"), "--out", str(tmp_path / "out")]
    assert main([*command, "--data-dir", str(other)]) == 66
    assert "was trained on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--name", "--version"])
def test_a_name_that_cannot_stand_in_an_url_is_refused_at_once(
    option: str, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 64 with the rule, before anything is exported."""
    command = ["build", str(checkpoints / "cnn"), "--out", str(tmp_path / "out")]
    assert main([*command, option, "a name/with slashes"]) == 64
    assert "letters, digits" in capsys.readouterr().err
