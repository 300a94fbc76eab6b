"""Single operators and the network's own limits: formulas on known numbers."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export.bundle.metrics import Array, Floor
from export.bundle.tolerances import tolerance_for
from export.parity.limits import (
    LocalCheck,
    _least,
    _limits,
    _one_change,
    _visible,
    derived,
    is_float32,
)
from export.parity.reference import Reference
from export.parity.schema import EDGE_CASES
from tests.export.parity import figures as made
from tests.export.subjects import tiny_subject

U = 2.0**-24
ONNX = tolerance_for("onnx", "cpu")
X = np.array([[1.0, -2.0, 4.0], [0.5, 1.0, -8.0]], np.float32)
WEIGHT = np.array([[1.0, -3.0, 2.0], [0.25, 0.5, -1.0]], np.float32)
BIAS = np.array([0.5, -16.0], np.float32)


def _layer() -> nn.Linear:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(WEIGHT))
        layer.bias.copy_(torch.from_numpy(BIAS))
    return layer


class _Two(nn.Module):
    """A layer followed by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = _layer()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.sigmoid(self.layer(x)),)


def _file(weight: Array = WEIGHT) -> onnx.ModelProto:
    """The same network as an ONNX file, with the program's node names."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["linear"], "gemm", transB=1),
        helper.make_node("Sigmoid", ["linear"], ["y"], "sigmoid"),
    ]
    stored = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(BIAS, "b")]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in
              (("x", 3), ("y", 2))]  # fmt: skip
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def check() -> LocalCheck:
    """The check of the two operators; tests must not change it."""
    program = torch.export.export(_Two().eval(), (torch.from_numpy(X),))
    return LocalCheck(program, ["y"], {"x": X}, _file())


def test_an_honest_file_s_operators_are_within(check: LocalCheck) -> None:
    """Shared values have the file's names, and a function has no bound of a sum."""
    found = check.figures(_file())
    assert found.keys() == {"linear", "y"}
    assert all(value.rms <= 1 and value.largest <= 1 for value in found.values())
    assert found["linear"].bound is not None
    assert (found["y"].bound, found["y"].visible) == (None, None)


def test_the_bound_of_a_sum_is_gamma_times_its_terms_sizes(check: LocalCheck) -> None:
    """It is gamma_4 (sum |x||w| + |b|) for three products and a bias, whatever the floor."""
    weight = WEIGHT.copy()
    weight[0, 2] += 2.0**-10
    sizes = np.abs(X.astype(np.float64)) @ np.abs(weight.T) + np.abs(BIAS)
    gamma = 4 * U / (1 - 4 * U)
    bound = check.figures(_file(weight))["linear"].bound
    error = np.abs(X[:, 2] * 2.0**-10)
    honest = np.abs(X.astype(np.float64)) @ np.abs(WEIGHT.T) + np.abs(BIAS)
    assert bound == pytest.approx((error / (gamma * honest[:, 0])).max(), rel=1e-6)
    assert sizes.shape == honest.shape


def test_a_spoilt_weight_is_wrong_at_its_own_layer_alone(check: LocalCheck) -> None:
    """The next function gets the file's own value as input, so it is right."""
    weight = WEIGHT.copy()
    weight[1, 1] *= 1.01
    found = check.figures(_file(weight))
    assert found["linear"].largest > 1_000
    assert found["y"].largest <= 1
    floor = check.floors["linear"]
    error = np.abs(X[:, 1] * (weight - WEIGHT)[1, 1].astype(np.float64))
    assert found["linear"].largest == pytest.approx(error.max() / floor.largest_C[1], rel=1e-3)
    rms = np.sqrt(np.mean(error**2))
    assert found["linear"].rms == pytest.approx(rms / floor.rms_C[1], rel=1e-3)


def test_the_floor_of_an_operator_is_at_least_its_rounding(check: LocalCheck) -> None:
    """A function's floor is four roundings of each channel's largest value."""
    exact = X.astype(np.float64) @ WEIGHT.T + BIAS
    assert np.all(check.floors["linear"].largest_C >= U * np.abs(exact).max(axis=0))
    sigmoid = 1 / (1 + np.exp(-exact))
    assert np.all(check.floors["sigmoid"].largest_C >= 4 * U * sigmoid.max(axis=0) * (1 - 1e-9))
    assert np.all(check.floors["linear"].largest_C < 4 * U * np.abs(X).max() * 16)


def test_1_percent_of_a_middling_weight_is_what_should_be_visible(check: LocalCheck) -> None:
    """For each output it is the weight at the third quartile by size, not the bias."""
    change = np.zeros_like(WEIGHT, dtype=np.float64)
    change[0, 1], change[1, 2] = -0.03, -0.01  # the largest of three
    effect = X.astype(np.float64) @ change.T
    expected = _visible(effect, check.floors["linear"])
    assert check.figures(_file())["linear"].visible == pytest.approx(expected, rel=1e-6)


def test_a_weight_of_middling_size_is_changed_by_1_percent() -> None:
    """For each first index, the seventh largest of eight changes, and the rest stays."""
    weight = torch.tensor([[8.0, -1, 7, 2, -6, 3, 5, 4], [1, 2, 3, 4, 5, 6, -7, 8]])
    found = _one_change(weight.reshape(2, 2, 4))
    assert found.shape == (2, 2, 4)
    expected = torch.zeros(2, 8)
    expected[0, 2], expected[1, 6] = 0.07, -0.07
    assert torch.allclose(found.reshape(2, 8), expected)


def test_visible_is_in_units_of_the_limits() -> None:
    """The limits are four for the largest error and three for the RMS; the better one counts."""
    effect = np.array([[0.0, 8.0], [0.0, 0.0]])
    floor = Floor(np.array([1.0, 1e9]), np.array([1.0, 0.5]), np.zeros(0))
    assert _visible(effect, floor) == pytest.approx(8 / (4 * 0.5))
    floor = Floor(np.array([1.0, 0.25]), np.array([1.0, 1e9]), np.zeros(0))
    assert _visible(effect, floor) == pytest.approx(32**0.5 / (3 * 0.25))
    assert _visible(-effect, floor) == _visible(effect, floor)


def test_a_function_may_be_off_by_four_roundings() -> None:
    """The roundings are those of each channel's largest value."""
    floor = _least(np.array([[0.5, -3.0], [0.25, 2.0]]))
    assert floor.largest_C.tolist() == floor.rms_C.tolist() == [2 * U, 12 * U]


def _reference(rms: list[float], largest: list[float]) -> Reference:
    subject = dataclasses.replace(tiny_subject("mlp", 8), weights=Path("nowhere"))
    truth = np.tile(np.array([[8.0, -16.0]]), (4, 1))
    floor = Floor(np.array(rms), np.array(largest), np.zeros(0))
    return Reference(subject, {}, {"logits": truth}, np.full(4, -1), floors={"logits": floor})


def test_the_limits_are_what_the_floors_allow_with_slack() -> None:
    """For file and eager: 4 + 1 floors over the scale, 3 over a rounding, both doubled."""
    scaled, ratio = _limits(_reference([8e-7, 16e-7], [8e-6, 32e-6]))
    assert scaled == pytest.approx(2 * 5 * 2e-6)
    rounding = U / 12**0.5
    assert ratio == pytest.approx(2 * 3 * 1e-7 / rounding)
    assert _limits(_reference([1.0, 1.0], [1.0, 1.0])) == (1e-3, 100.0)
    zeros = _reference([1.0, 1.0], [1.0, 1.0])
    zeros.fp64["logits"] = np.zeros((4, 2))
    assert _limits(zeros) == (0.0, 6.0)


@pytest.mark.parametrize(
    ("scaled", "ratio", "expected"),
    [
        (1e-6, 4.0, (2e-6, 8.0)),
        (1.01e-6, 4.0, (2.02e-6, 8.0)),
        (1e-6, 4.1, (2e-6, 8.2)),
        (1.0, 1.0, (2e-5, 8.0)),  # no more than the floors allow
        (1e-6, 99.0, (2e-6, 100.0)),
    ],
)
def test_a_row_is_widened_by_twice_what_was_measured(
    scaled: float, ratio: float, expected: tuple[float, float]
) -> None:
    """It is widened only beyond the table and up to the floors' limit, batches alike."""
    reference = _reference([8e-4, 16e-4], [8e-6, 32e-6])
    output = made.comparison(scaled_error=scaled, rms_ratio=ratio)
    row = derived(ONNX, [made.row(outputs={"logits": output})], [reference])
    assert (row.scaled_error, row.rms_ratio) == pytest.approx(expected)
    assert row.batch_invariance == row.scaled_error
    assert row.is_derived == (expected != (2e-6, 8.0))


def test_a_row_is_widened_by_what_batches_showed() -> None:
    """The difference between batch sizes has the same bound."""
    reference = _reference([8e-4, 16e-4], [8e-6, 32e-6])
    row = derived(ONNX, [made.row(batch_invariance=3e-6)], [reference])
    assert row.scaled_error == row.batch_invariance == pytest.approx(6e-6)
    pt2 = derived(tolerance_for("pt2", "cpu"), [made.row(batch_invariance=3e-6)], [reference])
    assert pt2.scaled_error == pytest.approx(6e-6)
    assert pt2.batch_invariance is None


def test_edge_cases_changed_rows_and_missing_floors_widen_nothing() -> None:
    """Only samples with floors widen a row, and only a row that nobody has changed."""
    reference = _reference([8e-4, 16e-4], [8e-6, 32e-6])
    wide = made.row(outputs={"logits": made.comparison(scaled_error=1e-5, rms_ratio=20.0)})
    edge = made.edge_row(scaled_error=1e-5, rms_ratio=20.0)
    assert derived(ONNX, [made.row(), edge], [reference]) == ONNX
    edges = dataclasses.replace(reference, block=EDGE_CASES)
    assert derived(ONNX, [edge], [reference, edges]) == ONNX
    narrow = _reference([0.0, 0.0], [0.0, 0.0])
    widest = dataclasses.replace(reference, block=EDGE_CASES)
    assert derived(ONNX, [wide], [narrow, widest]) == ONNX
    for change in ({"scaled_error": 1e-9}, {"rms_ratio": 7}):
        chosen = ONNX.model_copy(update=change)
        assert derived(chosen, [wide], [reference]) == chosen
    assert derived(ONNX, [wide], [dataclasses.replace(reference, floors={})]) == ONNX
    int8 = tolerance_for("onnx-int8", "cpu")
    assert derived(int8, [wide], [reference]) == int8


def test_float16_and_quantized_files_are_not_of_float32() -> None:
    """One float16 number or one dequantized value is enough."""
    assert is_float32(_file())
    half = _file()
    half.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float16), "h"))
    assert not is_float32(half)
    quantized = _file()
    quantized.graph.node.append(helper.make_node("DequantizeLinear", ["a", "b"], ["c"]))
    assert not is_float32(quantized)
