"""The benchmark times every variant beside the fp32 ONNX file and prints ratios."""

import json
from pathlib import Path

import pytest

from export.__main__ import main
from export.bundle.session import cuda_device_count
from export.perf.benchmark import Timings, table
from export.perf.on_gpu import main as on_gpu


def test_every_variant_is_timed_and_shown_as_a_ratio(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are variants, columns batch sizes and threads, without absolute times on the CPU."""
    figures = tmp_path / "timings.json"
    command = ["benchmark", str(bundle), "--trust", "--rounds", "3", "--batch-sizes", "1", "8"]
    assert main([*command, "--threads", "1", "2", "--json", str(figures)]) == 0
    printed = capsys.readouterr().out
    assert "| variant | batch 1, 1 thread | batch 8, 1 thread | batch 1, 2 threads |" in printed
    rows = [line for line in printed.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [
        *("onnx", "onnx-fp16", "onnx-int8", "torchscript", "torchscript-frozen", "pt2")
    ]
    assert " us" not in printed
    timings = Timings.model_validate(json.loads(figures.read_text()))
    assert len(timings.timings) == 6 * 2 * 2
    assert all(t.ratio == 1 for t in timings.timings if t.variant == "onnx")
    assert all(t.us_per_sample > 0 and t.ratio_low <= t.ratio_high for t in timings.timings)
    on_cuda = timings.model_copy(update={"device": "cuda"})
    assert " us" in table(on_cuda)


@pytest.mark.skipif(cuda_device_count() > 0, reason="this machine has a CUDA device")
def test_the_gpu_run_ends_at_once_without_a_gpu(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 3 with the reason, and no file of figures is written."""
    out = tmp_path / "gpu.json"
    assert on_gpu([str(bundle), "--out", str(out)]) == 3
    assert "no CUDA device" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.gpu
@pytest.mark.skipif(cuda_device_count() == 0, reason="no CUDA device on this machine")
def test_the_gpu_run_measures_everything(bundle: Path, data_dir: Path, tmp_path: Path) -> None:
    """The file covers TF32 off and on, CUDA graphs, fp16 and the benchmark."""
    out = tmp_path / "gpu.json"
    assert on_gpu([str(bundle), "--out", str(out), "--data-dir", str(data_dir)]) == 0
    (runs,) = json.loads(out.read_text()).values()
    assert all(run["figures"] for run in runs.values())
