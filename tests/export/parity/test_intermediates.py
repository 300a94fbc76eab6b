"""Values inside an ONNX file without a counterpart are counted and reported."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.bundle.tolerances import tolerance_for
from export.parity.intermediates import RecordedFile, onnx_values, without_shared_infinities
from export.parity.judge import explain, inside_words
from export.parity.run import ParityRun
from tests.export.subjects import tiny_subject

ONNX = tolerance_for("onnx", "cpu")


@pytest.fixture(scope="module")
def proof() -> ParityRun:
    """A tiny MLP, exported once; tests must not change it."""
    return ParityRun.of(tiny_subject("mlp", 16))


def _renamed(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """The same model with some inner values under names that the program does not have."""
    changed: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    for node in changed.graph.node:
        for values in (node.input, node.output):
            values[:] = [f"{v}_other" if v in names else v for v in values]
    del changed.graph.value_info[:]
    return changed


def test_values_without_a_match_are_counted(proof: ParityRun) -> None:
    """A renamed value is not compared, and its name is listed as unmatched."""
    model = proof.translation.model
    honest = proof.inside.compare(model)
    assert honest.unmatched == ()
    renamed = proof.inside.compare(_renamed(model, {"relu"}))
    assert renamed.unmatched == ("relu_other",)
    assert len(renamed.layers) == len(honest.layers) - 1


def test_nothing_compared_is_no_pass(proof: ParityRun) -> None:
    """If no name matches, the explanation says so instead of claiming that all is well."""
    assert "no intermediate value was compared" in explain((), ONNX, 12)
    assert "no intermediate value exceeds" not in explain((), ONNX, 12)
    honest = proof.inside.compare(proof.translation.model)
    words = explain(honest.layers, ONNX, 3)
    assert f"{len(honest.layers)} of {len(honest.layers) + 3} float values" in words


def test_a_file_whose_inside_is_hardly_compared_is_said_to_be() -> None:
    """The note appears if less than half is compared."""
    assert "less than half" not in inside_words(5, 5)
    assert "less than half" in inside_words(5, 6)


def test_the_same_infinity_is_no_error() -> None:
    """Equal infinities, as in attention masks, are no error, and different ones are."""
    values = np.array([[-np.inf, 1]], np.float32)
    found, fp32, fp64 = without_shared_infinities(values, values, values.astype(np.float64))
    assert (found.tolist(), fp32.tolist(), fp64.tolist()) == ([[0, 1]],) * 3
    assert [a.dtype.name for a in (found, fp64)] == ["float32", "float64"]
    other, *_ = without_shared_infinities(-values, values, values.astype(np.float64))
    assert other.tolist() == (-values).tolist()


def _spoilt(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """A copy with a changed weight in its first product, and the name of the product's value."""
    changed: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    node = next(node for node in changed.graph.node if node.op_type == "Gemm")
    weight = next(t for t in changed.graph.initializer if t.name == node.input[1])
    values = numpy_helper.to_array(weight).copy()
    values *= 1.01
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return changed, str(node.output[0])


def test_of_a_copy_only_what_differs_is_run(proof: ParityRun) -> None:
    """It starts from the file's own values, so results after a known value do not change."""
    model, inputs = proof.translation.model, proof.reference.first(8)
    file = RecordedFile(model, inputs)
    assert file.changed_values(model, known=()) == {}
    spoilt, name = _spoilt(model)
    whole = onnx_values(spoilt, inputs)
    found = file.changed_values(spoilt, known=file.values.keys())
    assert found.keys() == {name}
    assert np.array_equal(found[name], whole[name])
    assert not np.array_equal(found[name], file.values[name])


def test_a_change_reaches_the_values_behind_an_unknown_one(proof: ParityRun) -> None:
    """A change reaches the next known value, and a graph of other nodes is run as a whole."""
    model, inputs = proof.translation.model, proof.reference.first(8)
    file = RecordedFile(model, inputs)
    spoilt, name = _spoilt(model)
    whole = onnx_values(spoilt, inputs)
    found = file.changed_values(spoilt, known=file.values.keys() - {name})
    behind = {v for node in spoilt.graph.node if name in node.input for v in node.output}
    assert found.keys() == {name, *behind}
    assert all(np.array_equal(values, whole[key]) for key, values in found.items())
    assert file.changed_values(spoilt, known=()).keys() > found.keys()
    renamed = _renamed(model, {"relu"})
    assert file.changed_values(renamed, known=()).keys() == onnx_values(renamed, inputs).keys()


def test_the_error_of_exact_values_needs_no_other_values(proof: ParityRun) -> None:
    """The error equals that of a run of the whole file, 0 unless an exact value changed."""
    model = proof.translation.model
    assert proof.inside.exact_error(model) == 0
    other: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    node = next(node for node in other.graph.node if node.op_type == "Sub")
    mean = next(t for t in other.graph.initializer if t.name == node.input[1])
    mean.CopyFrom(numpy_helper.from_array(np.float32(0.13).reshape(mean.dims), mean.name))
    errors = [x.max_abs_error for x in proof.inside.layers(other) if x.exact]
    assert proof.inside.exact_error(other) == max(errors) > 1e-4
