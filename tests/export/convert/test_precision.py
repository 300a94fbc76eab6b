"""Parts of a network that stay in float32, and networks that cannot be converted to int8."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.convert.precision import NothingQuantizedError, to_int8

SAMPLES = {"x": np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)}


def _weight(name: str) -> onnx.TensorProto:
    values = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    return numpy_helper.from_array(values, name)


def _model(nodes: list[onnx.NodeProto], stored: list[onnx.TensorProto]) -> onnx.ModelProto:
    """From float [N, 4] x to y of the same shape."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_network_whose_weights_all_stay_in_float32_is_refused_in_words() -> None:
    """Its only product is the last one, which stays in float32, so int8 would change nothing."""
    model = _model([helper.make_node("MatMul", ["x", "w"], ["y"], name="only")], [_weight("w")])
    with pytest.raises(NothingQuantizedError, match="none of its weights would be in int8"):
        to_int8(model, SAMPLES)


def test_values_that_an_infinite_mask_reaches_stay_in_float32() -> None:
    """-inf would need an infinite int8 step, so only the product before it is quantized."""
    mask = np.array([0, 0, -np.inf, 0], np.float32)
    model = _model(
        [
            helper.make_node("MatMul", ["x", "v"], ["scores"], name="scored"),
            helper.make_node("Unsqueeze", ["mask", "axis"], ["row"], name="row"),
            helper.make_node("Add", ["scores", "row"], ["masked"], name="masked"),
            helper.make_node("Softmax", ["masked"], ["shares"], name="shares"),
            helper.make_node("MatMul", ["shares", "w"], ["y"], name="last"),
        ],
        [
            *(_weight("v"), _weight("w"), numpy_helper.from_array(mask, "mask")),
            numpy_helper.from_array(np.array([0], np.int64), "axis"),
        ],
    )
    quantized = to_int8(model, SAMPLES)
    steps = [
        numpy_helper.to_array(tensor)
        for tensor in quantized.graph.initializer
        if tensor.name.endswith("_scale")
    ]
    assert steps
    assert all(np.isfinite(step).all() for step in steps)
    masked = next(node for node in quantized.graph.node if node.name == "masked")
    assert "row" in masked.input
    assert [t.name for t in quantized.graph.initializer if t.data_type == TensorProto.INT8]
