"""An ONNX file's structure is compared with the requested one."""

from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto, helper

from export.bundle.manifest import TensorSpec
from export.parity.structure import structure_problems

INPUTS = (TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),)
OUTPUTS = (TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),)


def _file(opset: int = 20, domain: str = "", op: str = "Relu") -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in ("x", "y"))
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], domain=domain)], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_a_file_as_it_was_asked_for_has_no_problem() -> None:
    """It has opset 20, the right tensors, only ONNX's own operators, and is one file."""
    model = _file()
    assert structure_problems(model, INPUTS, OUTPUTS) == []
    model.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.FLOAT))
    assert structure_problems(model, INPUTS, OUTPUTS) == []


@pytest.mark.parametrize(("opset", "found"), [(19, "19"), (21, "21")])
def test_another_opset_is_a_problem(opset: int, found: str) -> None:
    """An opset other than the requested one is reported."""
    assert structure_problems(_file(opset), INPUTS, OUTPUTS) == [
        f"opset: expected 20, found {found}"
    ]


def _with_fixed_batch(model: onnx.ModelProto) -> str:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return "inputs: expected x=FP32[-1,3], found x=FP32[1,3]"


def _with_another_type(model: onnx.ModelProto) -> str:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    return "outputs: expected y=FP32[-1,3], found y=FP16[-1,3]"


def _with_another_name(model: onnx.ModelProto) -> str:
    model.graph.output[0].name = "z"
    return "outputs: expected y=FP32[-1,3], found z=FP32[-1,3]"


def _with_a_second_file(model: onnx.ModelProto) -> str:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    model.graph.initializer.append(tensor)
    return "the weights are in a second file; expected one file"


@pytest.mark.parametrize(
    "spoil", [_with_fixed_batch, _with_another_type, _with_another_name, _with_a_second_file]
)
def test_what_was_not_asked_for_is_named(spoil: Callable[[onnx.ModelProto], str]) -> None:
    """A fixed batch, another type, another name and a second file are reported."""
    model = _file()
    expected = spoil(model)
    assert structure_problems(model, INPUTS, OUTPUTS) == [expected]


def test_operators_of_others_and_dynamic_ones_are_refused() -> None:
    """Custom operators are not portable, and dynamic ones depend on the whole batch."""
    for domain in ("com.microsoft", "acme"):
        (problem,) = structure_problems(_file(domain=domain), INPUTS, OUTPUTS)
        assert problem.endswith(f"not every runtime has them: ['{domain}::Relu']")
    for operator in ("DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"):
        (problem,) = structure_problems(_file(op=operator), INPUTS, OUTPUTS)
        assert "depends on the other samples in its batch" in problem
