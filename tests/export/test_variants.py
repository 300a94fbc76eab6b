"""Each variant has its own verdict, and one that cannot be made, opened or proven is omitted."""

import json
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from export import build as build_module
from export import formats
from export.__main__ import main
from export.bundle.store import Bundle, file_entry, staged
from export.convert.precision import convert_bytes
from tests.export.catalogue import write_network, write_samples


def _command(name: str, folder: Path, *further: str) -> list[str]:
    command = write_network(name, folder, samples=100)
    write_samples(name, folder / "calibration.npz", 64, seed=1)
    return ["build", *command, "--out", str(folder / "out" / name), *further]


def test_a_file_that_crashes_its_runtime_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime crashes on this float16 file; the bundle is built and reports it."""
    command = _command("vision_transformer", tmp_path, "--report", str(tmp_path / "report"))
    assert main([*command, "--variants", "onnx,onnx-fp16"]) == 0
    bundle = Bundle.open(tmp_path / "out" / "vision_transformer")
    assert "cannot be opened: SIGSEGV" in (tmp_path / "report" / "parity.md").read_text()
    assert "cannot be opened: SIGSEGV" in (tmp_path / "report" / "parity.html").read_text()
    assert list(bundle.variants) == ["onnx"]
    assert "cannot be opened: SIGSEGV" in bundle.manifest.not_built["onnx-fp16"]
    assert "onnx-fp16: left out of the bundle" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["vision_transformer"]
    assert main(["judge", str(bundle.path("parity"))]) == 0
    _smuggle_fp16(bundle)
    assert main(["check", str(bundle.folder), *command[1:5], *command[7:9]]) == 1
    printed = capsys.readouterr()
    assert "onnx-fp16: cannot be opened: SIGSEGV" in printed.err
    assert "onnx               cpu: passed" in printed.out


def _smuggle_fp16(bundle: Bundle) -> None:
    """Put the omitted file into the bundle, as older code would have done."""
    content = convert_bytes(bundle.model_path("onnx").read_bytes(), None)
    (bundle.folder / "model.fp16.onnx").write_bytes(content)
    entry = file_entry(
        bundle.folder / "model.fp16.onnx", role="model", format="onnx", precision="fp16"
    )
    files = (*bundle.manifest.files, entry)
    manifest = bundle.manifest.model_copy(update={"files": files})
    (bundle.folder / "manifest.json").write_text(manifest.model_dump_json())


def test_a_recurrent_network_ends_with_a_verdict_on_each_variant(tmp_path: Path) -> None:
    """Its float16 file is built, or omitted with the reason, whatever ONNX Runtime does."""
    command = _command("gru_with_state", tmp_path)
    assert main([*command, "--variants", "onnx,onnx-fp16,torchscript"]) == 0
    manifest = Bundle.open(tmp_path / "out" / "gru_with_state").manifest
    passed = {verdict.variant for verdict in manifest.parity}
    assert passed >= {"onnx", "torchscript"}
    assert ("onnx-fp16" in passed) != ("onnx-fp16" in manifest.not_built)


def test_what_cannot_be_converted_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If tracer and quantizer fail, their variants are omitted with the error messages."""
    monkeypatch.setattr(formats, "convert_bytes", convert_nothing)
    command = _command("untraceable", tmp_path, "--calibration", str(tmp_path / "calibration.npz"))
    assert main(command) == 0
    bundle = Bundle.open(tmp_path / "out" / "untraceable")
    assert list(bundle.variants) == ["onnx", "pt2"]
    reasons = bundle.manifest.not_built
    assert "cannot be made: no tracing, please" not in reasons["onnx-int8"]
    assert "no tracing, please" in reasons["torchscript"]
    assert "no tracing, please" in reasons["torchscript-frozen"]
    assert "no quantization, please" in reasons["onnx-int8"]
    assert bundle.manifest.calibration is None


def convert_nothing(content: bytes, calibration: object) -> bytes:
    """A converter that always fails."""
    raise ValueError(f"no quantization, please ({len(content)}, {calibration is None})")


def convert_badly(content: bytes, calibration: object) -> bytes:
    """Float16 of a model whose last bias is changed a little."""
    model = onnx.ModelProto.FromString(content)
    bias = next(t for t in model.graph.initializer if t.name.endswith("layer.bias"))
    values = numpy_helper.to_array(bias).copy()
    values[0] += 0.1
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    return convert_bytes(bytes(model.SerializeToString()), None)


@pytest.mark.parametrize("required", [[], ["--require", "onnx-fp16"]])
def test_a_wrong_variant_is_left_out_unless_it_is_required(
    required: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Figures and first wrong value are printed; --require gives status 1 and no bundle."""
    monkeypatch.setattr(formats, "convert_bytes", convert_badly)
    command = _command("untraceable", tmp_path, "--report", str(tmp_path / "report"))
    status = main([*command, "--variants", "onnx,onnx-fp16", *required])
    printed = capsys.readouterr()
    assert "scaled error" in (printed.err if required else printed.out)
    assert "onnx-fp16" in (tmp_path / "report" / "parity.md").read_text()
    if required:
        assert status == 1
        assert "onnx-fp16 is required: failed its proof" in printed.err
        assert list((tmp_path / "out").iterdir()) == []
        return
    assert status == 0
    bundle = Bundle.open(tmp_path / "out" / "untraceable")
    assert list(bundle.variants) == ["onnx"]
    assert [verdict.variant for verdict in bundle.manifest.parity] == ["onnx"]
    reason = bundle.manifest.not_built["onnx-fp16"]
    assert "failed its proof: onnx-fp16, batch 256" in reason
    assert "first wrong value: " in reason
    figures = json.loads(bundle.path("parity").read_text())
    assert {row["variant"] for row in figures["rows"]} == {"onnx"}
    assert main(["judge", str(bundle.path("parity"))]) == 0


def test_batches_that_the_samples_do_not_fill_are_filled_and_run(tmp_path: Path) -> None:
    """100 samples fill a batch of 1,024, which runs in one and two threads, as recorded."""
    assert main([*_command("untraceable", tmp_path), "--variants", "onnx"]) == 0
    (verdict,) = Bundle.open(tmp_path / "out" / "untraceable").manifest.parity
    assert max(verdict.batch_sizes) == 1024
    assert verdict.threads == (1, 2)


def test_a_first_look_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--quick prints verdicts of few samples and cannot be combined with --out."""
    command = _command("untraceable", tmp_path, "--quick")
    assert main(command) == 64
    position = command.index("--out")
    del command[position : position + 2]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "first look at 100 samples: passed; nothing is proven yet" in printed
    assert "onnx-fp16          cpu: passed" in printed
    assert not (tmp_path / "out").exists()


def test_weights_that_change_while_they_are_exported_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle must record the weights that were loaded into the module."""
    command = _command("untraceable", tmp_path)

    def meanwhile(target: Path) -> object:
        weights = tmp_path / "untraceable.safetensors"
        state = load_file(weights)
        state["layer.bias"] += 1
        save_file(state, weights)
        return staged(target)

    monkeypatch.setattr(build_module, "staged", meanwhile)
    assert main(command) == 64
    assert "was changed while it was exported" in capsys.readouterr().err
