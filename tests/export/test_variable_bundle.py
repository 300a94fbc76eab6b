"""A bundle with variable axes is declared on the command line, proven and checked again."""

import json
from pathlib import Path

import numpy as np

from export.__main__ import main
from export.bundle.manifest import Domain
from export.bundle.session import OnnxModel
from export.bundle.store import Bundle
from tests.export.catalogue import write_network


def test_a_text_encoder_is_built_and_checked_at_every_length(tmp_path: Path) -> None:
    """Two lengths come from files and a third is cropped; the manifest has axis and values."""
    command = write_network("text_encoder", tmp_path, samples=12)
    first = tmp_path / "text_encoder.npz"
    with np.load(first) as arrays:
        short = {name: array[:9, :3] for name, array in arrays.items()}
    np.savez(tmp_path / "short.npz", allow_pickle=False, **short)
    inputs = ["--inputs", str(first), str(tmp_path / "short.npz")]
    out = tmp_path / "bundle"
    build = ["build", *command, *inputs, "--out", str(out), "--variants", "onnx,pt2"]
    assert main(build) == 0
    manifest = Bundle.open(out).manifest
    ids, mask = manifest.inputs
    assert ids.axes == mask.axes == {1: "tokens"}
    assert ids.bounds == mask.bounds == {1: (3, 12)}
    assert ids.domain == Domain(kind="tokens", low=0, high=49)
    assert mask.domain == Domain(kind="mask")
    figures = json.loads((out / "parity.json").read_text())
    counts = {row["block"]: row["samples"] for row in figures["rows"]}
    assert counts == {"": 12, "tokens=3": 9, "tokens=7": 12, "edge cases": 3}
    check = ["check", str(out), *command[: command.index("--checkpoint")]]
    assert main([*check, *inputs]) == 0
    assert main([*check, *inputs[:2]]) == 66  # not all samples of the proof
    assert main(["check", str(out), "--trust", *inputs]) == 0  # the bundle's own program
    model = OnnxModel(Bundle.open(out).model_path("onnx"), "cpu")
    assert model({name: array[:, :5] for name, array in short.items()})["kind"].shape == (9, 3)


def test_an_optional_state_may_be_left_out(tmp_path: Path) -> None:
    """The state may be omitted, because the GRU's forward has a default for it."""
    command = write_network("gru_with_state", tmp_path, samples=8)
    with np.load(tmp_path / "gru_with_state.npz") as arrays:
        np.savez(tmp_path / "x.npz", allow_pickle=False, x=arrays["x"])
    given = command[: command.index("--input")]
    out = tmp_path / "bundle"
    build = ["build", *given, "--inputs", str(tmp_path / "x.npz"), "--out", str(out)]
    build += ["--variants", "onnx"]
    assert main(build) == 0
    manifest = Bundle.open(out).manifest
    assert [spec.name for spec in manifest.inputs] == ["x"]
    assert [str(spec) for spec in manifest.outputs] == [
        "output_0=FP32[-1,7,4]",
        "output_1=FP32[-1,2,8]",
    ]
