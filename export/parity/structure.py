"""Check that an ONNX file has the requested structure, without running it."""

from collections.abc import Iterator, Sequence

import onnx
from onnx import TensorProto

from export.bundle.manifest import TensorSpec
from export.bundle.tolerances import DYNAMIC_INT8_REFUSED

OPSET = 20

# Operators that quantize activations by the largest value in the current batch.
DYNAMIC_OPERATORS = {"DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"}


def structure_problems(
    model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> list[str]:
    """Differences to the requested structure: opset, tensors, batch axis, operators, one file.

    Args:
        model: The model.
        inputs: The expected inputs, in their order.
        outputs: The expected outputs, in their order.
    """
    return list(_problems(model, inputs, outputs))


def _problems(
    model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Iterator[str]:
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if opsets.get("ai.onnx") != OPSET:
        yield f"opset: expected {OPSET}, found {opsets.get('ai.onnx')}"
    for which, found, specs in (
        ("inputs", model.graph.input, inputs),
        ("outputs", model.graph.output, outputs),
    ):
        wanted, got = [str(spec) for spec in specs], [_tensor(value) for value in found]
        if got != wanted:
            yield f"{which}: expected {', '.join(wanted)}, found {', '.join(got)}"
    operators = {(node.domain or "ai.onnx", node.op_type) for node in model.graph.node}
    foreign = sorted({f"{domain}::{op}" for domain, op in operators if domain != "ai.onnx"})
    if foreign:
        yield f"operators that are not ONNX's own, so not every runtime has them: {foreign}"
    if {op for _, op in operators} & DYNAMIC_OPERATORS:
        yield DYNAMIC_INT8_REFUSED
    if any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer):
        yield "the weights are in a second file; expected one file"


def _tensor(value: onnx.ValueInfoProto) -> str:
    """A tensor in the format of ``str(TensorSpec)``; a free axis is -1."""
    tensor = value.type.tensor_type
    kind = TensorProto.DataType.Name(tensor.elem_type)
    datatype = {"FLOAT": "FP32", "FLOAT16": "FP16", "DOUBLE": "FP64"}.get(kind, kind)
    axes = ["-1" if axis.dim_param else str(axis.dim_value) for axis in tensor.shape.dim]
    return f"{value.name}={datatype}[{','.join(axes)}]"
