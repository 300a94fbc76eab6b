"""Each mutant changes exactly what it describes, in ONNX models made by hand."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.bundle.metrics import Array, Arrays
from export.parity.mutants import Mutant, make_mutants, make_reduced_mutants
from export.provenance.forms import Fold

RNG = np.random.default_rng(0)
FIRST = RNG.normal(size=(4, 8)).astype(np.float32)
LAST = RNG.normal(size=(4, 3)).astype(np.float32)
STORED: dict[str, Any] = {
    "scale": np.float32(255),
    "mean": np.float32(0.1307),
    "w1": FIRST,
    "b1": np.array([0.0, 0.0, 0.0, 0.0], np.float32),
    "w2": LAST,
    "b2": np.array([0.5, -0.25, 0.125], np.float32),
}


def _model(stored: Arrays | None = None, norm: float | None = None) -> onnx.ModelProto:
    """Normalised pixels, a Gemm, optionally a BatchNormalization, and a MatMul."""
    stored = STORED | (stored or {})
    nodes = [
        helper.make_node("Div", ["x", "scale"], ["scaled"], "div"),
        helper.make_node("Sub", ["scaled", "mean"], ["centred"], "sub"),
        helper.make_node("Gemm", ["centred", "w1", "b1"], ["h"], "gemm", transB=1),
        helper.make_node("MatMul", ["h", "w2"], ["product"], "matmul"),
        helper.make_node("Add", ["product", "b2"], ["y"], "add"),
    ]
    if norm is not None:
        names = ["h", "gamma", "beta", "average", "variance"]
        nodes.insert(3, helper.make_node("BatchNormalization", names, ["n"], "norm", epsilon=norm))
        nodes[4].input[0] = "n"
        stored |= {name: np.ones(4, np.float32) for name in names[1:] if name not in stored}
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", None]) for n in ("x", "y")]
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in stored.items()]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _planted(model: onnx.ModelProto) -> dict[str, Mutant]:
    return {planted.name: planted for planted in make_mutants(model, [], {})}


def _changes(planted: Mutant, model: onnx.ModelProto) -> dict[str, Array]:
    """The stored tensors that differ from the model's."""
    assert planted.model is not None
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in planted.model.graph.initializer}
    return {name: a for name, a in after.items() if not np.array_equal(a, before[name])}


def test_twelve_kinds_are_planted() -> None:
    """One kind per type of product is included."""
    names = set(_planted(_model()))
    assert {"one weight +1% (Gemm)", "one weight +1% (MatMul)"} < names
    assert len(names) == 13


@pytest.mark.parametrize(
    ("name", "tensor", "factor"),
    [
        ("one weight +1% (Gemm)", "w1", 1.01),
        ("one weight +1% (MatMul)", "w2", 1.01),
        ("one sign flipped", "w1", -1),
        ("one NaN weight", "w2", np.nan),
    ],
)
def test_one_weight_of_middling_size_is_changed(name: str, tensor: str, factor: float) -> None:
    """The weight at the third quartile by size changes."""
    model = _model()
    planted = _planted(model)[name]
    ((changed, values),) = _changes(planted, model).items()
    (position,) = np.flatnonzero(values != STORED[tensor])
    assert changed == tensor
    order = np.argsort(np.abs(STORED[tensor]), axis=None)
    assert position == order[STORED[tensor].size * 3 // 4]
    expected = STORED[tensor].flat[position] * np.float32(factor)
    assert values.flat[position] == pytest.approx(expected, nan_ok=True)
    assert planted.what == f"{tensor}.flat[{position}] x {factor:g}"


def test_the_mean_is_rounded_to_two_digits() -> None:
    """0.1307 becomes 0.13, and a mean with no more digits does not apply."""
    model = _model()
    found = _changes(_planted(model)["mean rounded (.13 for .1307)"], model)
    assert found.keys() == {"mean"}
    assert found["mean"] == np.float32(0.13)
    planted = _planted(_model({"mean": np.array(0.25, np.float32)}))["mean rounded (.13 for .1307)"]
    assert (planted.model, planted.what) == (None, "it would change no number of this model")


def test_a_division_becomes_a_product_with_the_reciprocal() -> None:
    """It applies to 255, but not to a power of two, for which both are equal."""
    model = _model()
    planted = _planted(model)["x * (1/255) for x / 255"]
    assert _changes(planted, model) == {"scale": np.float32(1) / np.float32(255)}
    assert planted.model is not None
    assert planted.model.graph.node[0].op_type == "Mul"
    planted = _planted(_model({"scale": np.array(256, np.float32)}))["x * (1/255) for x / 255"]
    assert (planted.model, planted.what) == (None, "1/256 is exact")


def test_a_number_of_a_normalisation_stands_before_the_products() -> None:
    """A number after a product, or several numbers, do not normalise the inputs."""
    model = _model()
    node = model.graph.node[1]
    model.graph.node.remove(node)
    model.graph.node.insert(3, helper.make_node("Sub", ["h", "mean"], ["late"], "late"))
    planted = _planted(model)["mean rounded (.13 for .1307)"]
    assert planted.what == "the inputs are not normalised by a Sub with one number"
    several = _planted(_model({"mean": np.full(3, 0.1307, np.float32)}))
    assert several["mean rounded (.13 for .1307)"].model is None


def test_channels_are_swapped_silenced_and_shifted() -> None:
    """Channels are rows of a Gemm's weight and bias, and columns of a MatMul's weight."""
    model = _model({"b1": np.array([1, 2, 3, 4], np.float32)})
    planted = _planted(model)
    swapped = _changes(planted["two channels swapped"], model)
    assert np.array_equal(swapped["w1"], FIRST[[1, 0, 2, 3]])
    assert swapped["b1"].tolist() == [2, 1, 3, 4]
    dead = _changes(planted["a dead channel"], model)
    assert not dead["w1"][0].any()
    assert np.array_equal(dead["w1"][1:], FIRST[1:])
    assert dead["b1"].tolist() == [0, 2, 3, 4]
    shifted = _changes(planted["outputs shifted by one"], model)
    assert np.array_equal(shifted["w2"], np.roll(LAST, 1, axis=1))
    transposed = _changes(planted["a weight transposed"], model)
    assert np.array_equal(transposed["w2"], LAST.T.reshape(4, 3))
    dropped = _changes(planted["a bias dropped"], model)
    assert dropped.keys() == {"b1"}
    assert not dropped["b1"].any()


def test_a_bias_of_zeros_is_none_that_could_be_dropped() -> None:
    """Dropping it changes nothing; rounding to float16 changes all numbers it cannot represent."""
    model = _model()
    planted = _planted(model)
    assert planted["a bias dropped"].what == "no layer has a bias"
    rounded = _changes(planted["weights rounded to fp16"], model)
    assert np.array_equal(rounded["w1"], FIRST.astype(np.float16).astype(np.float32))
    assert rounded.keys() == {"w1", "w2"}


@pytest.mark.parametrize(("epsilon", "wrong"), [(1e-5, 1e-3), (1e-3, 1e-5), (2e-4, 1e-3)])
def test_an_epsilon_becomes_another_usual_one(epsilon: float, wrong: float) -> None:
    """It becomes 1e-3, or 1e-5 if it is 1e-3."""
    planted = _planted(_model(norm=epsilon))["a wrong BatchNorm epsilon"]
    assert planted.model is not None
    (attribute,) = planted.model.graph.node[3].attribute
    assert attribute.f == pytest.approx(wrong)
    assert planted.what == f"epsilon of norm is {wrong:g} instead of {epsilon:g}"


def test_an_epsilon_beside_large_variances_is_no_fault() -> None:
    """A change below 1e-5 of the smallest variance would not be visible."""
    for variance, can_be in ((98.0, True), (100.0, False)):
        model = _model({"variance": np.array([variance, 1e6, 1e6, 1e6], np.float32)}, norm=1e-5)
        assert (_planted(model)["a wrong BatchNorm epsilon"].model is not None) == can_be
    without = _planted(_model())["a wrong BatchNorm epsilon"]
    assert without.what == "the model has no BatchNorm"


def test_the_most_sensitive_of_several_norms_is_taken() -> None:
    """A folded norm with small variances is preferred to one with large variances."""
    state = {
        "w1": FIRST.astype(np.float64),
        "b1": np.zeros(4),
        "norm.weight": np.ones(4),
        "norm.bias": np.zeros(4),
        "norm.mean": np.zeros(4),
        "norm.variance": np.full(4, 0.01),
    }
    names = ("norm.weight", "norm.bias", "norm.mean", "norm.variance")
    fold = Fold(weight="w1", bias="b1", norm=names, epsilon=1e-5)
    model = _model({"variance": np.full(4, 50.0, np.float32)}, norm=1e-5)
    found = {p.name: p for p in make_mutants(model, [fold], state)}
    assert found["a wrong BatchNorm epsilon"].what.startswith("w1 folded with epsilon 0.001")


def test_stored_integers_of_a_quantized_weight_are_spoilt() -> None:
    """An integer changed by 1% may stay the same, and none can be NaN."""
    model = _model({"w1": np.array([[10, -50, 3, 7]] * 4, np.int8)})
    node = helper.make_node("DequantizeLinear", ["w1", "w1_step"], ["w1_d"], "read")
    model.graph.node.insert(2, node)
    model.graph.node[3].input[1] = "w1_d"
    step = numpy_helper.from_array(np.array(0.5, np.float32), "w1_step")
    model.graph.initializer.append(step)
    planted = {p.name: p for p in make_reduced_mutants(model)}
    flipped = _changes(planted["one sign flipped"], model)
    assert flipped.keys() == {"w1"}
    assert (flipped["w1"] != np.array([[10, -50, 3, 7]] * 4)).sum() == 1
    assert planted["one weight +1% (Gemm)"].what == "it would change no number of this model"
    assert planted["a dead channel"].model is not None
    assert len(planted) == 10


def test_a_model_without_stored_weights_can_have_no_fault() -> None:
    """Each kind of mutant says that it does not apply."""
    model = _model()
    del model.graph.node[2:4]
    assert {planted.what for planted in make_mutants(model, [], {})} == {
        "no convolution or matrix product has stored weights"
    }
