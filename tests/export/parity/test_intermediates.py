"""What is inside an ONNX file and has no counterpart is counted, never passed over in silence."""

import numpy as np
import onnx
import pytest

from export.bundle.tolerances import tolerance_for
from export.parity.intermediates import without_shared_infinities
from export.parity.judge import explain, inside_words
from export.parity.run import ParityRun
from tests.export.subjects import tiny_subject

ONNX = tolerance_for("onnx", "cpu")


@pytest.fixture(scope="module")
def proof() -> ParityRun:
    """A tiny MLP, exported once; not to be changed."""
    return ParityRun.of(tiny_subject("mlp", 16))


def _renamed(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """The same model, some of its inner values under names that the program does not know."""
    changed: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    for node in changed.graph.node:
        for values in (node.input, node.output):
            values[:] = [f"{v}_other" if v in names else v for v in values]
    del changed.graph.value_info[:]
    return changed


def test_values_without_a_match_are_counted(proof: ParityRun) -> None:
    """A renamed value is no longer compared; its name stands among the unmatched."""
    model = proof.translation.model
    honest = proof.inside.compare(model)
    assert honest.unmatched == ()
    renamed = proof.inside.compare(_renamed(model, {"relu"}))
    assert renamed.unmatched == ("relu_other",)
    assert len(renamed.layers) == len(honest.layers) - 1


def test_nothing_compared_is_no_pass(proof: ParityRun) -> None:
    """Where no name is known the explanation says so, not that all is within the tolerance."""
    assert "nothing was compared" in explain((), ONNX, 12)
    assert "no value inside is beyond" not in explain((), ONNX, 12)
    honest = proof.inside.compare(proof.translation.model)
    words = explain(honest.layers, ONNX, 3)
    assert f"{len(honest.layers)} of {len(honest.layers) + 3} float values" in words


def test_a_file_whose_inside_is_hardly_compared_is_said_to_be() -> None:
    """Below one half."""
    assert "hardly any" not in inside_words(5, 5)
    assert "hardly any" in inside_words(5, 6)


def test_the_same_infinity_is_no_error() -> None:
    """An attention mask holds -inf on all sides; another infinity stays wrong."""
    values = np.array([[-np.inf, 1]], np.float32)
    found, fp32, fp64 = without_shared_infinities(values, values, values.astype(np.float64))
    assert (found.tolist(), fp32.tolist(), fp64.tolist()) == ([[0, 1]],) * 3
    assert [a.dtype.name for a in (found, fp64)] == ["float32", "float64"]
    other, *_ = without_shared_infinities(-values, values, values.astype(np.float64))
    assert other.tolist() == (-values).tolist()
