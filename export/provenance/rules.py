"""Rules that map an ONNX node's inputs and attributes to arguments of an aten operator.

There are two tables: ``INPUTS`` by operator, ``ATTRIBUTES`` by the attribute's name. To cover
another operator, add a row. A value that no row covers is not a problem by itself: it is compared
with all forms of its region, or else counted as untraced.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from torch.fx import Node

from export.bundle.metrics import Array
from export.model.program import arguments_of, operator_of, shape_of

PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
MATRICES = ["linear", "matmul", "mm", "bmm"]
TRANSPOSED = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "convolution"} | TRANSPOSED
BATCH_NORMS = {"batch_norm", "_native_batch_norm_legit_no_training"}
GROUP_NORMS = {"group_norm", "native_group_norm"}
LAYER_NORMS = {"layer_norm", "native_layer_norm"}
AFFINE_NORMS = {*GROUP_NORMS, *LAYER_NORMS, "instance_norm"}
ZEROS = {"zeros", "zeros_like", "new_zeros"}
ONES = {"ones", "ones_like", "new_ones"}
SMALLEST_FP32 = float(np.finfo(np.float32).min)
ANY_SLOT = -1
ENDLESS = 2**63 - 1
START, END, AXES, STEP = range(1, 5)  # the inputs of a Slice

Arguments = Mapping[str, Any]
Test = Callable[[Array], bool]
"""Tests whether an integer tensor matches an operator's arguments."""


def _each(value: Any, axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


def _is_shape(arguments: Arguments, node: Node) -> Test:
    """Test a shape: -1 stands for an inferred axis; in an Expand, 1 for an unchanged one."""
    shape, before = shape_of(node), shape_of(arguments["self"])
    kept = [1] * (len(shape) - len(before)) + before if operator_of(node) == "expand" else []

    def test(found: Array) -> bool:
        if found.size != len(shape) or (not kept and (found == -1).sum() > 1):
            return False
        pairs = zip(map(int, found.ravel()), shape, strict=True)
        return all(
            (isinstance(axis, int) and size == axis)
            or (size == 1 and kept[i] == axis if kept else size == -1)
            for i, (size, axis) in enumerate(pairs)
        )

    return test


def _are_axes(arguments: Arguments, node: Node) -> Test | None:
    if arguments.get("dim") is None:
        return None
    rank = len(shape_of(node if operator_of(node) == "unsqueeze" else arguments["self"]))
    wanted = {int(d) % rank for d in _each(arguments["dim"], 1)}
    return lambda found: {int(d) % rank for d in found.ravel()} == wanted


def _is_part_of_slice(slot: int, arguments: Arguments, node: Node) -> Test | None:
    shape, axis = shape_of(arguments["self"]), arguments["dim"]
    end = ENDLESS if arguments["end"] is None else arguments["end"]
    wanted = {START: arguments["start"] or 0, END: end, AXES: axis, STEP: arguments["step"]}[slot]
    if not isinstance(wanted, int):  # it depends on the size of an input
        return None

    def normal(value: int) -> int:
        if slot == AXES:
            return value % len(shape)
        if slot == STEP or not isinstance(shape[axis], int):
            return value
        return slice(value, None).indices(shape[axis])[0]

    return lambda found: found.size == 1 and normal(int(found.item())) == normal(wanted)


def _permutation(_: Arguments, node: Node) -> list[int]:
    """The operator's result shape for a tensor whose axes have the sizes 0, 1, 2, ..."""
    sizes = torch.empty(tuple(range(len(shape_of(node)))), device="meta")
    return list(node.target(sizes, *node.args[1:], **node.kwargs).shape)  # type: ignore[operator]


_LAYER = {1: ("weight",), 2: ("bias",)}
_NORM = {**_LAYER, 3: ("running_mean",), 4: ("running_var",)}
_ORDERED = {0: ("self",), 1: ("other",)}
_AXES = {1: (_are_axes,)}
_SHAPE = {1: (_is_shape,)}
_SLICE = {slot: (functools.partial(_is_part_of_slice, slot),) for slot in (START, END, AXES, STEP)}
_CLAMPS = ["clamp", "clamp_min", "clamp_max", "hardtanh"]
_MAX_POOLS = {"max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices"}

# ONNX's operator, aten's operators, and what the input at each position (or ``ANY_SLOT``) may be:
# names of arguments, numbers, or functions that return a ``Test`` (None: it depends on an input).
_ROWS: list[tuple[str, Iterable[str], Mapping[int, tuple[Any, ...]]]] = [
    ("Conv", CONVOLUTIONS, _LAYER),
    ("ConvTranspose", CONVOLUTIONS, _LAYER),
    ("Gemm", ["linear", "addmm"], {0: ("mat1",), 1: ("weight", "mat2"), 2: ("bias", "self")}),
    ("MatMul", ["addmm"], {0: ("mat1",), 1: ("mat2",)}),
    ("MatMul", MATRICES, {0: ("self",), 1: ("weight", "mat2", "other")}),
    ("BatchNormalization", BATCH_NORMS, _NORM),
    ("LayerNormalization", LAYER_NORMS, _LAYER),
    ("InstanceNormalization", ["instance_norm"], _LAYER),
    ("InstanceNormalization", GROUP_NORMS, {1: (1.0,), 2: (0.0,)}),
    ("MaxPool", _MAX_POOLS, {}),
    ("AveragePool", ["avg_pool1d", "avg_pool2d", "avg_pool3d"], {}),
    ("PRelu", ["prelu"], {1: ("weight",)}),
    ("Add", {*AFFINE_NORMS, "linear", "addmm", "add"}, {ANY_SLOT: ("bias", "self", "other")}),
    ("Sub", ["sub"], _ORDERED),
    ("Sub", ["rsub"], {0: ("other",)}),
    ("Mul", AFFINE_NORMS, {ANY_SLOT: ("weight",)}),
    ("Mul", ["mul"], {ANY_SLOT: ("self", "other")}),
    ("Mul", ["add", "sub"], {ANY_SLOT: ("alpha",)}),
    ("Div", ["div"], _ORDERED),
    ("Pow", ["pow"], {0: ("self",), 1: ("exponent",)}),
    ("Clip", _CLAMPS, {1: ("min", "min_val"), 2: ("max", "max_val")}),
    ("Where", ["masked_fill"], {1: ("value",)}),
    ("Gather", ["embedding"], {0: ("weight",)}),
    ("Gather", ["select"], {1: ("index",)}),
    ("Gather", ["index_select"], {}),
    ("Concat", ["cat"], {}),
    ("DepthToSpace", ["pixel_shuffle"], {}),
    ("Expand", ZEROS, {0: (0.0,)}),
    ("Expand", ONES, {0: (1.0,)}),
    ("Expand", ["full", "full_like"], {0: ("fill_value",)}),
    ("Expand", ["expand"], _SHAPE),
    ("Reshape", ["view", "_unsafe_view", "reshape", "flatten", "unflatten"], _SHAPE),
    ("Transpose", ["permute", "transpose", "t"], {}),
    ("Squeeze", ["squeeze"], _AXES),
    ("Unsqueeze", ["unsqueeze"], _AXES),
    ("Slice", ["slice"], _SLICE),
    ("ReduceMean", ["mean"], _AXES),
    ("ReduceSum", ["sum"], _AXES),
    ("ReduceMax", ["amax"], _AXES),
    ("ReduceMin", ["amin"], _AXES),
]
INPUTS = {(op_type, name): row for op_type, names, row in _ROWS for name in names}

# By an attribute's name, the argument that it stands for, if its name differs, or a function.
ATTRIBUTES: dict[str, str | Callable[[Arguments, Node], Any]] = {
    "alpha": lambda arguments, _: arguments.get("alpha", arguments.get("negative_slope")),
    "axis": lambda arguments, _: (
        -len(arguments["normalized_shape"])
        if "normalized_shape" in arguments
        else arguments.get("dim")
    ),
    "blocksize": "upscale_factor",
    "dilations": "dilation",
    "direction": lambda arguments, _: ["forward", "bidirectional"][arguments["bidirectional"]],
    "epsilon": "eps",
    "group": "groups",
    "hidden_size": lambda arguments, _: shape_of(arguments["params"][1])[1],
    "keepdims": lambda arguments, _: arguments.get("keepdim", False),
    "kernel_shape": lambda arguments, _: (
        arguments.get("kernel_size") or shape_of(arguments["weight"])[2:]
    ),
    "momentum": lambda _, __: None,  # only for training
    "pads": "padding",
    "perm": _permutation,
    "strides": lambda arguments, _: arguments["stride"] or arguments["kernel_size"],
}
# By ONNX's operator, attributes for which aten's operator has no argument.
DEFINED: dict[str, dict[str, Any]] = {
    "CumSum": {"exclusive": 0, "reverse": 0},
    "DepthToSpace": {"mode": "CRD"},
    "Gather": {"axis": 0},
    "Gemm": {"alpha": 1.0, "beta": 1.0},
    "GRU": {"layout": 0, "linear_before_reset": 1},
    "HardSigmoid": {"alpha": 1 / 6, "beta": 0.5},
    "LSTM": {"layout": 0},
}
# Numbers that an operator's translation contains by definition, whatever its arguments.
NUMBERS = {
    **dict.fromkeys(ZEROS, (0.0,)),
    **dict.fromkeys(ONES, (1.0,)),
    # ONNX's operators always have a scale and a shift.
    **dict.fromkeys([*GROUP_NORMS, "instance_norm"], (0.0, 1.0)),
    **dict.fromkeys(["rsqrt", "reciprocal"], (1.0,)),
}
# Operators whose translation contains no other numbers than ``own_numbers``.
LAYOUT_CHANGES = {"permute", "transpose", "t", "cat", "clone"}
SIZES = {"sym_size", "<built-in function mul>"}
WITHOUT_FURTHER_NUMBERS = (
    {name for (_, name), row in INPUTS.items() if row}
    | {"scaled_dot_product_attention"}
    | LAYOUT_CHANGES
    | SIZES
)
# Attributes that only matter together with a tensor, and are judged with it.
WITH_A_TENSOR = {"transA", "transB", "allowzero"}


def stands_for(node: onnx.NodeProto, operator: Node) -> bool:
    """Whether a node may be an operator's translation, by a row of ``INPUTS`` or by its name."""
    name = operator_of(operator)
    return (node.op_type, name) in INPUTS or node.op_type.lower() == name.replace("_", "")


def inputs_at(node: onnx.NodeProto, slot: int, operator: Node) -> list[Any] | None:
    """What an input may be if the node stands for an operator: nodes, numbers, or ``Test``.

    None if there is no rule for this pair.
    """
    row = INPUTS.get((node.op_type, operator_of(operator)))
    if row is None:
        return None
    arguments = arguments_of(operator)
    found = []
    for value in row.get(slot, row.get(ANY_SLOT, ())):
        if isinstance(value, str):
            found.append(arguments.get(value))
        else:
            found.append(value(arguments, operator) if callable(value) else value)
    return [value for value in found if value is not None]


def expected_attributes(node: onnx.NodeProto, operator: Node) -> dict[str, Any]:
    """What a node's attributes must be if it stands for an operator; {} if it does not."""
    if node.domain or not stands_for(node, operator):
        return {}
    types = onnx.defs.OpSchema.AttrType
    kinds = {types.FLOAT: float, types.INT: int, types.STRING: str}
    arguments, found = arguments_of(operator), {}
    for name, attribute in onnx.defs.get_schema(node.op_type).attributes.items():
        rule = ATTRIBUTES.get(name, name)
        try:
            value = rule(arguments, operator) if callable(rule) else arguments.get(rule)
            if value is None:
                value = DEFINED.get(node.op_type, {}).get(name)
            if value is not None and attribute.type == types.INTS:
                spatial = _each(value, max(len(shape_of(operator)) - 2, 1))
                found[name] = spatial * (2 if name == "pads" else 1)
            elif value is not None and attribute.type in kinds:
                found[name] = kinds[attribute.type](value)
        except (KeyError, TypeError, ValueError):  # an overload with other arguments
            continue
    return found


def equal_setting(name: str, found: Any, expected: Any, rank: int) -> bool:
    """Whether an attribute is as expected; an axis of ``rank`` may be counted from the end."""
    if isinstance(expected, float):  # the file stores a float32
        return bool(np.float32(found) == np.float32(expected))
    if name == "axis" and rank:
        return bool(found % rank == expected % rank)
    return bool(found == expected)


def attribute_of(node: onnx.NodeProto, name: str) -> Any:
    """An attribute's value, or ONNX's default if the node has none; None if there is neither."""
    given = next((a for a in node.attribute if a.name == name), None)
    if given is None:
        known = onnx.defs.get_schema(node.op_type, domain=node.domain).attributes
        given = known[name].default_value if name in known else None
    if given is None or given.type == onnx.AttributeProto.UNDEFINED:
        return None
    value = onnx.helper.get_attribute_value(given)
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if isinstance(value, tuple) else value


def stated(node: onnx.NodeProto) -> list[str]:
    """The attributes in which a node differs from ONNX's defaults."""
    bare = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
    return [
        a.name
        for a in node.attribute
        if a.name not in WITH_A_TENSOR
        and a.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        and (node.domain or attribute_of(node, a.name) != attribute_of(bare, a.name))
    ]


def is_transposed(node: onnx.NodeProto, slot: int, operators: Iterable[Node]) -> bool | None:
    """Whether the file stores a matrix transposed; None if it is not a product's matrix."""
    if node.op_type not in ("Gemm", "MatMul") or slot > 1:
        return None
    names = {operator_of(operator) for operator in operators} & {*MATRICES, "addmm"}
    if len(names) != 1:
        return None
    swapped = node.op_type == "Gemm" and bool(attribute_of(node, "transB" if slot else "transA"))
    by_rows = slot == 1 and names == {"linear"}  # aten's linear multiplies by the transposed weight
    return swapped != by_rows


def own_numbers(node: Node) -> list[float]:
    """Numbers that an operator's translation may contain, by its arguments or its definition."""
    name, arguments = operator_of(node), arguments_of(node)
    if name == "scaled_dot_product_attention":
        scale = arguments["scale"] or 1 / math.sqrt(shape_of(arguments["query"])[-1])
        # A causal mask is a triangle of ones, converted to the smallest number or minus infinity.
        ones = [1.0] if arguments["is_causal"] else []
        found = [scale, math.sqrt(scale), 0.0, -math.inf, SMALLEST_FP32, *ones]
    elif name in NUMBERS:
        found = list(NUMBERS[name])
    else:
        found = [float(a) for a in arguments.values() if isinstance(a, int | float)]
    return found + [0.0] * ("bias" in arguments and arguments["bias"] is None)
