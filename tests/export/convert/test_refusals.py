"""A refused export says what came, what was expected and what to do."""

from dataclasses import replace
from pathlib import Path

import pytest

from export.bundle.manifest import SubjectError, TensorSpec
from export.convert import onnx_export
from export.convert.pt2 import export_program
from export.model.sizes import with_sizes
from export.parity.run import ParityRun
from export.worker import Worker
from tests.export.catalogue import network_under_test
from tests.export.subjects import tiny_subject


def test_weights_beyond_one_protobuf_message_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are too large are refused with their size, before the export."""
    assert 2**31 - 2**25 < onnx_export.PROTOBUF_BYTES < 2**31
    monkeypatch.setattr(onnx_export, "PROTOBUF_BYTES", 1_000)
    with pytest.raises(SubjectError, match=r"0\.0 GB; expected at most .* split the network"):
        ParityRun.of(tiny_subject("mlp", 8))


def _variable(name: str, axes: dict[str, str], folder: Path) -> None:
    """Export a network whose inputs' second axes are variable, under the given names."""
    subject = network_under_test(name, folder, samples=4)
    inputs = tuple(
        TensorSpec(
            name=spec.name,
            datatype=spec.datatype,
            shape=(-1, -1, *spec.shape[2:]),
            bounds={1: (3, subject.samples.arrays[spec.name].shape[1])},
            axes={1: axes[spec.name]},
        )
        if spec.name in axes
        else spec
        for spec in subject.inputs
    )
    samples = with_sizes(inputs, [replace(subject.samples, others=())])
    export_program(replace(subject, inputs=inputs, samples=samples))


def test_axes_that_must_be_equal_need_one_name(tmp_path: Path) -> None:
    """Ids and mask of unequal lengths are refused, and the message shows the declaration."""
    with pytest.raises(SubjectError, match="Axes that must be equal need one name"):
        _variable("text_encoder", {"ids": "one", "mask": "other"}, tmp_path)


def test_a_recurrent_layer_s_steps_are_fixed(tmp_path: Path) -> None:
    """A variable number of steps is refused, because PyTorch's exporter unrolls the steps.

    The test needs a fresh process: converting a GRU to ONNX, as other tests do, leaves a loop
    behind that PyTorch then exports instead, and that fails.
    """
    with Worker() as worker, pytest.raises(SubjectError, match="as a recurrent layer's steps are"):
        worker.call(_variable, "gru_with_state", {"x": "steps"}, tmp_path, timeout_s=300)
