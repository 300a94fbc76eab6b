"""Quantization steps and roundings to float16 at their bounds, in files made by hand."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.bundle.metrics import Array
from export.provenance.figures import WeightFigures
from export.provenance.reduced import check_reduced

WEIGHT = np.array([[127.0, -3.0, 0.0], [-254.0, 10.0, 2.0]], np.float32)
BIAS = np.array([0.5, -4.0], np.float32)
INPUT_STEP = np.float32(0.25)


def _model(nodes: list[onnx.NodeProto], stored: dict[str, Any]) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", None]) for n in ("x", "y")]
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in stored.items()]
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _source(weight: Array = WEIGHT, bias: Array = BIAS) -> onnx.ModelProto:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], "gemm", transB=1)
    return _model([node], {"w": weight, "b": bias})


def _quantized(
    weight_q: Array, step: Array, zero: Array | None = None, **changes: Any
) -> onnx.ModelProto:
    """The same model in int8, with a step for each row of the weight or one for all."""
    zero = np.zeros(step.shape, weight_q.dtype) if zero is None else zero
    bias_step = (np.broadcast_to(step, 2) * INPUT_STEP).astype(np.float32)
    stored = {
        "x_step": INPUT_STEP,
        "x_zero": np.uint8(3),
        "w_q": weight_q,
        "w_step": step,
        "w_zero": zero,
        "b_q": np.rint(BIAS / bias_step).astype(np.int32),
        "b_step": bias_step,
        "b_zero": np.zeros(2, np.int32),
    }
    names = {kind: [f"{kind}_{part}" for part in ("q", "step", "zero")] for kind in ("x", "w", "b")}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_step", "x_zero"], ["x_q"], "x_write"),
        helper.make_node("DequantizeLinear", names["x"], ["x_d"], "x_read"),
        helper.make_node("DequantizeLinear", names["w"], ["w_d"], "w_read", axis=0),
        helper.make_node("DequantizeLinear", names["b"], ["b_d"], "b_read", axis=0),
        helper.make_node("Gemm", ["x_d", "w_d", "b_d"], ["y"], "gemm", transB=1),
    ]
    return _model(nodes, stored | changes)


def _checked(found: onnx.ModelProto, source: onnx.ModelProto | None = None) -> WeightFigures:
    return check_reduced(found, source or _source())


def _rounded(step: list[float], dtype: type = np.int8) -> tuple[Array, Array]:
    steps = np.array(step, np.float32)
    return np.rint(WEIGHT / steps[:, None]).astype(dtype), steps


def test_a_row_s_step_is_its_largest_weight_over_127() -> None:
    """The step is symmetric, and each number is off by at most half a step."""
    found = _checked(_quantized(*_rounded([1, 2])))
    assert found.problems == ()
    assert (found.error, found.converted, found.calibrated) == (0, 2, 2)
    assert _checked(_quantized(*_rounded([128 / 127, 2]))).problems != ()


def test_a_number_is_off_in_steps() -> None:
    """An integer off by one is off by one step, whatever the row's step is."""
    numbers, steps = _rounded([1, 2])
    numbers[1, 1] += 1
    assert _checked(_quantized(numbers, steps)).error == 1


@pytest.mark.parametrize(("roundings", "named"), [(1, False), (2, True), (-1, False), (-3, True)])
def test_a_step_may_be_off_by_one_rounding_of_float32(roundings: int, named: bool) -> None:
    """The division may have rounded, by up to 2^-23 of the step."""
    numbers, steps = _rounded([1, 2])
    steps[0] = np.float32(1 + roundings * 2.0**-23)
    problems = _checked(_quantized(numbers, steps)).problems
    assert bool([p for p in problems if p.startswith("w, input 1 of gemm, has the step")]) == named


def test_a_bias_is_in_steps_of_input_and_weight() -> None:
    """Its step is the product of both; another step is named even if the bias matches it."""
    numbers, steps = _rounded([1, 2])
    changes = {"b_step": np.array([0.25, 0.25], np.float32), "b_q": np.array([2, -16], np.int32)}
    (problem,) = _checked(_quantized(numbers, steps, **changes)).problems
    assert problem.startswith("b, input 2 of gemm, has the step 0.25 in channel 1, expected 0.5")


def test_a_reduced_range_has_64_numbers_to_a_side() -> None:
    """A file has it if the median over its weights of the largest integer is at most 64."""
    steps = np.array([127 / 64, 254 / 64], np.float32)
    numbers = np.rint(WEIGHT / steps[:, None]).astype(np.int8)
    assert np.abs(numbers).max() == 64
    assert _checked(_quantized(numbers, steps)).problems == ()
    steps = np.array([127 / 65, 254 / 65], np.float32)
    numbers = np.rint(WEIGHT / steps[:, None]).astype(np.int8)
    assert _checked(_quantized(numbers, steps)).problems != ()


def test_a_few_small_weights_make_no_reduced_range() -> None:
    """If two weights use the whole range and one half of it, the median is the whole."""
    numbers, steps = _rounded([1, 2])
    half = np.full((2, 2), 64, np.int8)
    whole = np.full((2, 2), 127, np.int8)
    assert _checked(_quantized(numbers, steps, unused=half, more=whole)).problems == ()
    found = _checked(_quantized(numbers, steps, unused=half, more=half))
    assert any("has the step" in problem for problem in found.problems)


@pytest.mark.parametrize(("largest", "lowest"), [(255, -127.0), (127, -63.0)])
def test_unsigned_weights_reach_from_the_lowest_to_the_highest(largest: int, lowest: float) -> None:
    """There are 255 steps, or 127 if reduced, and the zero point is the integer of 0."""
    weight = np.array([[lowest, 5.0, 0.0], [largest + lowest, 1.0, 2.0]], np.float32)
    numbers = (weight - lowest).astype(np.uint8)
    small = np.full((2, 2), 64 if largest == 127 else 127, np.int8)  # shows which range is used
    zero = np.array(-lowest, np.uint8)
    found = _quantized(numbers, np.array(1, np.float32), zero, range=small)
    assert _checked(found, _source(weight)).problems == ()
    other = _quantized(numbers, np.array(1, np.float32), zero + 1, range=small)
    (problem,) = _checked(other, _source(weight)).problems
    assert "has another zero point, expected" in problem
    wider = np.array((largest + 1) / largest, np.float32)
    problems = _checked(_quantized(numbers, wider, zero, range=small), _source(weight)).problems
    assert any("has the step" in problem for problem in problems)


@pytest.mark.parametrize(("factor", "named"), [(1, False), (1.0001, True), (0.9999, True)])
def test_a_bias_beyond_int32_enlarges_the_step_of_its_weight(factor: float, named: bool) -> None:
    """It grows to 1.0001 times what makes the bias fit 32 bits, only in that row."""
    bias = np.array([0.5, 2.0**31], np.float32)
    least = 1.0001 * 2 * 2.0**31 / (2.0**32 - 2) / float(INPUT_STEP)
    assert least > 2
    steps = np.array([1, least * factor], np.float32)
    numbers = np.rint(WEIGHT / steps[:, None]).astype(np.int8)
    bias_q = np.rint(bias / (steps * INPUT_STEP)).clip(0, 2**31 - 256).astype(np.int32)
    found = _checked(_quantized(numbers, steps, b_q=bias_q), _source(bias=bias))
    assert any("w, input 1" in problem for problem in found.problems) == named


def test_a_row_of_zeros_has_the_step_1() -> None:
    """Without a nonzero weight there is nothing to divide."""
    weight = np.zeros((2, 3), np.float32)
    found = _quantized(weight.astype(np.int8), np.ones(2, np.float32))
    assert _checked(found, _source(weight)).problems == ()
    other = _quantized(weight.astype(np.int8), np.full(2, 2, np.float32))
    assert _checked(other, _source(weight)).problems != ()


@pytest.mark.parametrize("step", [0.0, -1.0, np.inf, np.nan])
def test_a_step_of_an_activation_must_hold_its_values(step: float) -> None:
    """Apart from this, only samples judge its size."""
    numbers, steps = _rounded([1, 2])
    found = _quantized(numbers, steps, x_step=np.float32(step))
    assert any("expected a finite one above 0" in p for p in _checked(found).problems)


def _clipped(step: float, zero: int) -> onnx.ModelProto:
    """A clip that can be replaced by rounding to uint8."""
    nodes = [
        helper.make_node("QuantizeLinear", ["c", "step", "zero"], ["q"], "write"),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["d"], "read"),
        helper.make_node("Neg", ["x"], ["c"], "before"),
        helper.make_node("Neg", ["d"], ["y"], "after"),
    ]
    return _model(nodes, {"step": np.float32(step), "zero": np.uint8(zero)})


@pytest.mark.parametrize(
    ("low", "high", "step", "zero", "passes"),
    [
        (0, 6, 6 / 254.6, 0, True),  # clips at 6.009; a step is 0.024
        (0, 6, 6 / 254.4, 0, False),
        (-1.012, 9, 0.02, 51, True),  # clips at -1.02, within half a step of -1.012
        (-1.008, 9, 0.02, 51, False),
        (0, 6, 3 / 255, 0, True),  # clips earlier, which samples judge
    ],
)
def test_a_clip_may_go_where_rounding_clips_within_half_a_step(
    low: float, high: float, step: float, zero: int, passes: bool
) -> None:
    """The condition applies to both ends."""
    nodes = [
        helper.make_node("Neg", ["x"], ["c0"], "before"),
        helper.make_node("Clip", ["c0", "low", "high"], ["c"], "clip"),
        helper.make_node("Neg", ["c"], ["y"], "after"),
    ]
    source = _model(nodes, {"low": np.float32(low), "high": np.float32(high)})
    problems = _checked(_clipped(step, zero), source).problems
    assert (problems == ()) == passes
    assert passes or problems == ("clip (Clip) is not in the file",)


def test_a_relu_may_go_where_the_zero_point_is_the_lowest_number() -> None:
    """Rounding to integers from 0 on clips negative values; from -1 step on it does not."""
    nodes = [
        helper.make_node("Neg", ["x"], ["c0"], "before"),
        helper.make_node("Relu", ["c0"], ["c"], "relu"),
        helper.make_node("Neg", ["c"], ["y"], "after"),
    ]
    source = _model(nodes, {})
    assert _checked(_clipped(0.5, 0), source).problems == ()
    assert _checked(_clipped(0.5, 1), source).problems == ("relu (Relu) is not in the file",)


@pytest.mark.parametrize(
    ("expected", "found", "error"),
    [
        (1.0, 1 + 2.0**-10, 2.0**-10),  # of the number itself
        (2.0**-14, 2.0**-14 + 2.0**-24, 2.0**-10),
        (2.0**-15, 2.0**-15 + 2.0**-24, 2.0**-10),  # relative to 2^-14 below it
        (2.0**-13, 2.0**-13 + 2.0**-23, 2.0**-10),
        (70_000.0, 65_504.0, 0.0),  # float16's largest number, or infinity
        (70_000.0, np.inf, 0.0),
        (-70_000.0, -np.inf, 0.0),
        (70_000.0, -np.inf, np.inf),
        (70_000.0, 65_472.0, 4528 / 70_000),
        (40_000.0, 65_504.0, 25_504 / 40_000),
        (65_504.0, np.inf, np.inf),
    ],
)
def test_a_number_of_float16_is_off_by_its_rounding(
    expected: float, found: float, error: float
) -> None:
    """It is relative to the number or the smallest normal one, and 0 beyond the largest."""
    weight = np.array([[expected, 1.0], [1.0, 1.0]], np.float32)
    half = _source(weight)
    values = weight.astype(np.float64)
    values[0, 0] = found
    half.graph.initializer[0].CopyFrom(numpy_helper.from_array(values.astype(np.float16), "w"))
    half.graph.node.insert(
        0, helper.make_node("Cast", ["w"], ["w32"], "cast", to=TensorProto.FLOAT)
    )
    half.graph.node[1].input[1] = "w32"
    figures = _checked(half, _source(weight))
    assert figures.problems == ()
    assert figures.error == pytest.approx(error)
