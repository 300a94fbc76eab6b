"""A bundle can be verified again anywhere, with the result as exit status."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export import __main__ as command_line
from export.__main__ import main
from export.bundle.session import cuda_device_count
from tests.export.faults import change_one_weight
from tests.rehash import rehash
from tests.tiny import SERVED_BUNDLES

FACTORS = [1.01, *(pytest.param(f, marks=pytest.mark.slow) for f in (0.99, -1.0, float("nan")))]
needs_cuda = pytest.mark.skipif(cuda_device_count() == 0, reason="no CUDA device on this machine")
without_cuda = pytest.mark.skipif(cuda_device_count() > 0, reason="this machine has a CUDA device")


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_an_honest_bundle_passes_both_checks(
    model: str, bundles: Path, data_dir: Path, tmp_path: Path
) -> None:
    """Quick and full checks give 0, and the JSON has a row for each format and batch size."""
    figures = tmp_path / "figures.json"
    assert main(["check", str(bundles / model), "--quick"]) == 0
    command = ["check", str(bundles / model), "--data-dir", str(data_dir)]
    assert main([*command, "--json", str(figures)]) == 0
    outcome = json.loads(figures.read_text())
    assert outcome["passed"] is True
    variants = ("onnx", "onnx-fp16", "onnx-int8", "torchscript", "torchscript-frozen", "pt2")
    assert {(row["variant"], row["batch_size"]) for row in outcome["rows"]} == {
        (name, size)
        for name in variants
        for size in (1, 2, 3, 7, 8, 16, 31, 32, 33, 64, 128, 256, 1024)
    }
    assert max(row["samples"] for row in outcome["rows"]) == 300
    edge_cases = [row["samples"] for row in outcome["rows"] if row["block"] == "edge cases"]
    assert set(edge_cases) == {7}
    assert len(outcome["edge_cases"]) == 7
    torchscript = [row for row in outcome["rows"] if row["variant"] == "torchscript"]
    assert all(row["outputs"]["logits"]["max_abs_error"] == 0 for row in torchscript)


@pytest.mark.parametrize("factor", FACTORS)
def test_one_changed_weight_is_caught_even_if_its_hash_agrees(
    factor: float, bundle: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A weight 1% off, negated or NaN in the ONNX file gives status 1 in both checks."""
    change_one_weight(bundle, factor)
    figures = bundle.parent / "figures.json"
    assert main(["check", str(bundle), "--quick", "--json", str(figures)]) == 1
    assert main(["check", str(bundle), "--data-dir", str(data_dir), "--json", str(figures)]) == 1
    assert json.loads(figures.read_text(), parse_constant=pytest.fail)["passed"] is False
    error = capsys.readouterr().err
    assert "scaled error" in error
    assert ("NaN or infinite" in error) == np.isnan(factor)


def test_answers_in_the_wrong_order_are_caught(bundle: Path) -> None:
    """Golden logits shifted by a class, with the hash updated, fail the quick check."""
    path = bundle / "golden.npz"
    with np.load(path) as content:
        arrays = dict(content)
    arrays["eager/logits"] = np.roll(arrays["eager/logits"], 1, axis=1)
    np.savez(path, **arrays)
    rehash(bundle, "golden.npz")
    assert main(["check", str(bundle), "--quick"]) == 1


def test_an_altered_or_missing_bundle_is_status_2(
    bundle: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong hash, a missing folder and truncated files with updated hashes give it."""
    assert main(["check", str(tmp_path / "nowhere"), "--quick"]) == 2
    for name in ("model.onnx", "model.ts", "model.pt2"):
        shutil.copytree(bundle, tmp_path / name)
        (tmp_path / name / name).write_bytes((bundle / name).read_bytes()[:500])
        rehash(tmp_path / name, name)
        command = ["check", str(tmp_path / name), "--data-dir", str(data_dir), "--trust"]
        assert main(command) == 2
    assert "is not a model that can be run" in capsys.readouterr().err
    cut = (bundle / "golden.npz").read_bytes()[:-40]
    (bundle / "golden.npz").write_bytes(cut)
    assert main(["check", str(bundle), "--quick"]) == 2
    rehash(bundle, "golden.npz")
    assert main(["check", str(bundle), "--quick"]) == 2
    assert "golden samples" in capsys.readouterr().err


def test_bisect_names_where_a_bundle_is_wrong(
    bundle: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An honest file gives 0; a changed weight gives 1 with node, module and line."""
    command = ["bisect", str(bundle), "--data-dir", str(data_dir)]
    assert main(command) == 0
    assert main([*command, "--variant", "onnx-fp16"]) == 0
    for vacuous in ("torchscript", "onnx-int8"):
        assert main([*command, "--variant", vacuous]) == 64
    change_one_weight(bundle, 1.05)
    capsys.readouterr()
    assert main(command) == 1
    found = capsys.readouterr().out
    assert "first wrong value: conv2d, of the ONNX node node_conv2d (Conv)" in found
    assert "module: classifier.features.0" in found
    assert "self.features(x_NCHW)" in found
    assert "the value before it (div_1) has 0.0e+00" in found


@without_cuda
@pytest.mark.parametrize("quick", [[], ["--quick"]])
def test_a_missing_device_is_status_3_and_never_a_fallback(
    quick: list[str], bundle: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--device cuda without a CUDA device checks nothing and explains it."""
    command = ["check", str(bundle), "--device", "cuda", "--data-dir", str(data_dir), *quick]
    assert main(command) == 3
    assert "CUDA" in capsys.readouterr().err


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_an_honest_bundle_passes_on_cuda(model: str, bundles: Path, data_dir: Path) -> None:
    """Both checks pass on the GPU, with the requested provider."""
    command = ["check", str(bundles / model), "--device", "cuda", "--data-dir", str(data_dir)]
    assert main([*command, "--quick"]) == 0
    assert main(command) == 0


def test_a_loosened_tolerance_is_refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A manifest with wider tolerances than the table's is refused."""
    change_one_weight(bundle, 1.05)
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    for row in manifest["tolerances"]:
        row["scaled_error"] = 10
    path.write_text(json.dumps(manifest))
    assert main(["check", str(bundle), "--quick"]) == 2
    assert "scaled_error: 10 instead of 2e-06" in capsys.readouterr().err


def test_what_says_nothing_about_the_bundle_has_its_own_status(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing images give 66, a missing package 69 and an internal error 70."""
    assert main(["check", str(bundle), "--data-dir", str(tmp_path / "nowhere")]) == 66
    monkeypatch.setattr(command_line, "quick_check", lambda *_: 1 / 0)
    assert main(["check", str(bundle), "--quick"]) == 70
    monkeypatch.setitem(sys.modules, "training.data", None)
    assert main(["check", str(bundle)]) == 69


def test_a_wrong_command_line_is_none_of_these() -> None:
    """Usage errors give 64, because argparse's own status 2 would mean a broken bundle."""
    with pytest.raises(SystemExit) as stopped:
        main(["check"])
    assert stopped.value.code == 64


def test_the_quick_check_needs_no_torch() -> None:
    """The quick check passes in a process that cannot import torch, training or onnx."""
    program = (
        "import sys\n"
        "for name in ('torch', 'training', 'onnx', 'safetensors'): sys.modules[name] = None\n"
        "from export.__main__ import main\n"
        f"sys.exit(main(['check', {str(SERVED_BUNDLES / 'cnn')!r}, '--quick']))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_the_bundles_in_the_repository_are_proven(
    model: str, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundles of the service's tests pass the full gate with this code."""
    command = ["check", str(SERVED_BUNDLES / model), "--data-dir", str(data_dir)]
    assert main([*command, "--trust"]) == 0
