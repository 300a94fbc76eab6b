"""What an ONNX node must say, by the arguments of the program's operator that it stands for.

Three tables: which argument a node's input takes (``SLOTS``), what its attributes must be
(``ATTRIBUTES``), and which numbers an operator brings along itself (``own_numbers``). To cover a
further operator add a row. An operator without a row gives no problem: it is counted as not traced.
"""

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from torch.fx import Node

from export.bundle.metrics import Array
from export.parity.intermediates import operator_of

ANY_SLOT = -1
PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
MATRICES = {"matmul", "mm", "bmm", "addmm", "linear"}
CONVOLUTIONS = {
    *("conv1d", "conv2d", "conv3d", "convolution"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
}
BATCH_NORMS = {"batch_norm", "_native_batch_norm_legit_no_training"}
GROUP_NORMS = {"group_norm", "native_group_norm"}
LAYER_NORMS = {"layer_norm", "native_layer_norm"}
RECURRENT = {"LSTM", "GRU", "RNN"}
ZEROS = {"zeros", "zeros_like", "new_zeros"}
ONES = {"ones", "ones_like", "new_ones"}
SMALLEST_FP32 = float(np.finfo(np.float32).min)

Row = dict[int, tuple[str | float, ...]]


def _for_all(names: Iterable[str], row: Row) -> dict[str, Row]:
    return dict.fromkeys(names, row)


_LAYER: Row = {1: ("weight",), 2: ("bias",)}
_NORM: Row = {**_LAYER, 3: ("running_mean",), 4: ("running_var",)}
_EITHER: Row = {ANY_SLOT: ("self", "other")}
_ORDERED: Row = {0: ("self",), 1: ("other",)}
_TWO_MATRICES: Row = {0: ("self",), 1: ("mat2",)}
_AFFINE = {*GROUP_NORMS, *LAYER_NORMS, "instance_norm"}

# Of an ONNX operator: by aten's, the arguments (or numbers) that an input may be, by its position.
SLOTS: dict[str, dict[str, Row]] = {
    "Conv": _for_all(CONVOLUTIONS, _LAYER),
    "ConvTranspose": _for_all(CONVOLUTIONS, _LAYER),
    "Gemm": {"linear": _LAYER, "addmm": {0: ("mat1",), 1: ("mat2",), 2: ("self",)}},
    "MatMul": {
        "linear": {1: ("weight",)},
        "addmm": {0: ("mat1",), 1: ("mat2",)},
        "matmul": _ORDERED,
        **_for_all(["mm", "bmm"], _TWO_MATRICES),
    },
    "LayerNormalization": _for_all(LAYER_NORMS, _LAYER),
    "InstanceNormalization": {
        "instance_norm": _LAYER,
        **_for_all(GROUP_NORMS, {1: (1.0,), 2: (0.0,)}),
    },
    "BatchNormalization": _for_all(BATCH_NORMS, _NORM),
    "PRelu": {"prelu": {1: ("weight",)}},
    "Gather": {"embedding": {0: ("weight",)}, "select": {1: ("index",)}},
    "Add": {
        **_for_all({*_AFFINE, "linear"}, {ANY_SLOT: ("bias",)}),
        "addmm": {ANY_SLOT: ("self",)},
        "add": _EITHER,
    },
    "Mul": {
        **_for_all(_AFFINE, {ANY_SLOT: ("weight",)}),
        "mul": _EITHER,
        **_for_all(["add", "sub"], {ANY_SLOT: ("alpha",)}),
    },
    "Expand": {
        **_for_all(ZEROS, {0: (0.0,)}),
        **_for_all(ONES, {0: (1.0,)}),
        **_for_all(["full", "full_like"], {0: ("fill_value",)}),
    },
    "Where": {"masked_fill": {1: ("value",)}},
    "Sub": {"sub": _ORDERED, "rsub": {0: ("other",)}},
    "Div": {"div": _ORDERED},
    "Pow": {"pow": {0: ("self",), 1: ("exponent",)}},
    "Clip": {
        "clamp": {1: ("min",), 2: ("max",)},
        "hardtanh": {1: ("min_val",), 2: ("max_val",)},
        "clamp_min": {1: ("min",)},
        "clamp_max": {2: ("max",)},
    },
}


def arguments_of(node: Node) -> dict[str, Any]:
    """An operator's arguments by the names of its schema, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    found = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            found[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            found[argument.name] = argument.default_value
    return found


def arguments_at(node: onnx.NodeProto, slot: int, operators: Iterable[Node]) -> list[Any]:
    """The program's arguments, nodes or numbers, that an input of an ONNX node may stand for."""
    found = []
    for operator in operators:
        row = SLOTS.get(node.op_type, {}).get(operator_of(operator), {})
        for name in row.get(slot, row.get(ANY_SLOT, ())):
            value = arguments_of(operator).get(name) if isinstance(name, str) else name
            if value is not None:
                found.append(value)
    return found


def is_transposed(node: onnx.NodeProto, slot: int, operators: Iterable[Node]) -> bool | None:
    """Does a matrix lie in the file with its axes swapped? None: it is no matrix of a product."""
    if node.op_type not in ("Gemm", "MatMul") or slot > 1:
        return None
    names = {operator_of(operator) for operator in operators} & MATRICES
    if len(names) != 1:
        return None
    swapped = node.op_type == "Gemm" and bool(attribute_of(node, "transB" if slot else "transA"))
    by_rows = slot == 1 and names == {"linear"}  # aten's linear multiplies by the transposed weight
    return swapped != by_rows


def own_numbers(node: Node) -> list[float]:
    """Numbers that an operator's translation may hold: of its arguments, and of its definition."""
    name, arguments = operator_of(node), arguments_of(node)
    found = [float(a) for a in arguments.values() if isinstance(a, int | float)]
    if name in ZEROS:
        found = [0.0]
    elif name in ONES:
        found = [1.0]
    elif name in {*GROUP_NORMS, "instance_norm"}:  # ONNX's has a scale and a shift in any case
        found = [0.0, 1.0]
    elif name == "scaled_dot_product_attention":
        scale = arguments.get("scale")
        if scale is None:
            scale = 1 / math.sqrt(_shape(arguments["query"])[-1])
        # A causal mask is a triangle of ones, made into the smallest number or minus infinity.
        ones = [1.0] if arguments.get("is_causal") else []
        found = [scale, math.sqrt(scale), 0.0, -math.inf, SMALLEST_FP32, *ones]
    elif name == "masked_fill":
        found = [float(a) for a in [arguments.get("value")] if isinstance(a, int | float)]
    elif name in ("rsqrt", "reciprocal"):
        found = [1.0]
    if "bias" in arguments and arguments["bias"] is None:
        found.append(0.0)
    return found


def brings_known_numbers(node: Node) -> bool:
    """Does an operator's translation hold no other number than ``own_numbers``?"""
    return node.op != "call_function" or operator_of(node) in KNOWN_NUMBERS


# Operators of one number or none, and those that only move values.
KNOWN_NUMBERS = {
    *ZEROS,
    *ONES,
    *GROUP_NORMS,
    *("instance_norm", "scaled_dot_product_attention", "masked_fill", "full", "full_like"),
    *("add", "sub", "rsub", "mul", "div", "clamp", "clamp_min", "clamp_max", "hardtanh"),
    *("view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "t", "clone"),
    *("unsqueeze", "squeeze", "select", "slice", "sym_size", "cat", "<built-in function mul>"),
}


def attribute_of(node: onnx.NodeProto, name: str) -> Any:
    """An attribute's value, ONNX's default where the node says none; None if there is neither."""
    for attribute in node.attribute:
        if attribute.name == name:
            return _plain(onnx.helper.get_attribute_value(attribute))
    schema = onnx.defs.get_schema(node.op_type, domain=node.domain)
    default = schema.attributes[name].default_value if name in schema.attributes else None
    if default is None or default.type == onnx.AttributeProto.UNDEFINED:
        return None
    return _plain(onnx.helper.get_attribute_value(default))


# They only matter together with a tensor, and are judged with it.
WITH_A_TENSOR = {"transA", "transB", "allowzero"}


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


def expected_attributes(node: onnx.NodeProto, operator: Node) -> dict[str, Any] | None:
    """What a node's attributes must be if it stands for an operator; None: no row says it."""
    row = ATTRIBUTES.get(node.op_type, {}).get(operator_of(operator))
    if row is None:
        return None
    try:
        return row(arguments_of(operator), operator)
    except (KeyError, TypeError, ValueError):  # an overload with other arguments
        return None


def equal_setting(name: str, found: Any, expected: Any, rank: int) -> bool:
    """Is an attribute what was expected? Axes may be counted from the end."""
    if isinstance(expected, float):  # it is a float32 in the file
        return bool(np.float32(found) == np.float32(expected))
    if name in ("axis", "axes") and rank:
        return bool(np.all(np.mod(found, rank) == np.mod(expected, rank)))
    return bool(found == expected)


Rule = Callable[[Mapping[str, Any], Node], dict[str, Any]]


def _convolution(arguments: Mapping[str, Any], node: Node) -> dict[str, Any]:
    axes = len(_shape(arguments["input"])) - 2
    padding = _each(arguments["padding"], axes)
    return {
        "kernel_shape": _shape(arguments["weight"])[2:],
        "strides": _each(arguments["stride"], axes),
        "pads": padding * 2,
        "dilations": _each(arguments["dilation"], axes),
        "group": arguments["groups"],
    }


def _transposed(arguments: Mapping[str, Any], node: Node) -> dict[str, Any]:
    axes = len(_shape(arguments["input"])) - 2
    more = _each(arguments["output_padding"], axes)
    return _convolution(arguments, node) | {"output_padding": more}


def _pool(arguments: Mapping[str, Any], node: Node) -> dict[str, Any]:
    axes = len(_each(arguments["kernel_size"], 1))
    axes = max(axes, len(_shape(node)) - 2)
    kernel = _each(arguments["kernel_size"], axes)
    found = {
        "kernel_shape": kernel,
        "strides": _each(arguments["stride"], axes) or kernel,
        "pads": _each(arguments["padding"], axes) * 2,
        "ceil_mode": int(arguments["ceil_mode"]),
    }
    if "dilation" in arguments:
        found["dilations"] = _each(arguments["dilation"], axes)
    if "count_include_pad" in arguments:
        found["count_include_pad"] = int(arguments["count_include_pad"])
    return found


def _recurrent(arguments: Mapping[str, Any], node: Node) -> dict[str, Any]:
    hidden = _shape(arguments["params"][1])[1]
    direction = "bidirectional" if arguments["bidirectional"] else "forward"
    found = {"hidden_size": hidden, "direction": direction, "layout": 0}
    return found | ({"linear_before_reset": 1} if operator_of(node) == "gru" else {})


def _permutation(arguments: Mapping[str, Any], node: Node) -> dict[str, Any]:
    rank = len(_shape(node))
    if operator_of(node) == "permute":
        return {"perm": [int(d) % rank for d in arguments["dims"]]}
    first, second = (arguments.get(n, d) % rank for n, d in (("dim0", 0), ("dim1", -1)))
    order = list(range(rank))
    order[first], order[second] = order[second], order[first]
    return {"perm": order}


def _one(name: str, argument: str, kind: type = int) -> Rule:
    return lambda arguments, _: {name: kind(arguments[argument])}


def _fixed(**expected: Any) -> Rule:
    return lambda _, __: expected


def _norm(arguments: Mapping[str, Any], node: Node) -> dict[str, Any]:
    axis = (
        {} if "normalized_shape" not in arguments else {"axis": -len(arguments["normalized_shape"])}
    )
    return {"epsilon": float(arguments["eps"]), **axis}


def _reduction(arguments: Mapping[str, Any], node: Node) -> dict[str, Any]:
    return {"keepdims": int(arguments.get("keepdim", False))}


_REDUCTIONS = {
    "ReduceMean": "mean",
    "ReduceSum": "sum",
    "ReduceMax": "amax",
    "ReduceMin": "amin",
}
AXES: dict[str, Sequence[str]] = {
    **{op: (name,) for op, name in _REDUCTIONS.items()},
    "Squeeze": ("squeeze",),
    "Unsqueeze": ("unsqueeze",),
}
# Of an ONNX operator: by aten's, what its attributes must be.
ATTRIBUTES: dict[str, dict[str, Rule]] = {
    "Conv": dict.fromkeys(CONVOLUTIONS, _convolution),
    "ConvTranspose": dict.fromkeys(CONVOLUTIONS, _transposed),
    "MaxPool": dict.fromkeys(
        ["max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices"], _pool
    ),
    "AveragePool": dict.fromkeys(["avg_pool1d", "avg_pool2d", "avg_pool3d"], _pool),
    "LSTM": {"lstm": _recurrent},
    "GRU": {"gru": _recurrent},
    "BatchNormalization": dict.fromkeys(BATCH_NORMS, _norm),
    "LayerNormalization": dict.fromkeys(LAYER_NORMS, _norm),
    "InstanceNormalization": dict.fromkeys([*GROUP_NORMS, "instance_norm"], _norm),
    "LeakyRelu": {"leaky_relu": _one("alpha", "negative_slope", float)},
    "Elu": {"elu": _one("alpha", "alpha", float)},
    "Celu": {"celu": _one("alpha", "alpha", float)},
    "HardSigmoid": {"hardsigmoid": _fixed(alpha=1 / 6, beta=0.5)},
    "Gelu": {"gelu": _one("approximate", "approximate", str)},
    "Softmax": dict.fromkeys(["softmax", "_softmax"], _one("axis", "dim")),
    "LogSoftmax": dict.fromkeys(["log_softmax", "_log_softmax"], _one("axis", "dim")),
    "Concat": {"cat": _one("axis", "dim")},
    "Gather": {
        "embedding": _fixed(axis=0),
        **dict.fromkeys(["select", "index_select"], _one("axis", "dim")),
    },
    "Gemm": {
        "linear": _fixed(alpha=1.0, beta=1.0),
        "addmm": lambda a, _: {"alpha": float(a["alpha"]), "beta": float(a["beta"])},
    },
    "Transpose": dict.fromkeys(["permute", "transpose", "t"], _permutation),
    "DepthToSpace": {"pixel_shuffle": _one("blocksize", "upscale_factor")},
    "CumSum": {"cumsum": _fixed(exclusive=0, reverse=0)},
    **{op: {name: _reduction} for op, name in _REDUCTIONS.items()},
}


def expected_integers(
    node: onnx.NodeProto, slot: int, operator: Node
) -> Callable[[Array], bool] | None:
    """Tells whether an integer input of a node is an operator's; None: no row says it."""
    name, arguments = operator_of(operator), arguments_of(operator)
    if node.op_type == "Slice" and name == "slice" and slot > 0:
        return _slice_test(slot, arguments)
    if slot != 1:
        return None
    if node.op_type in ("Reshape", "Expand") and name in _SHAPING:
        before = _shape(arguments["self"]) if node.op_type == "Expand" else None
        return lambda found: _is_shape(found, _shape(operator), before)
    dims = arguments.get("dim")
    if dims is None or name not in AXES.get(node.op_type, ()):
        return None
    rank = len(_shape(operator if name == "unsqueeze" else arguments["self"]))
    wanted = {int(d) % rank for d in _each(dims, 1)}
    return lambda found: {int(d) % rank for d in found.ravel()} == wanted


def _slice_test(slot: int, arguments: Mapping[str, Any]) -> Callable[[Array], bool] | None:
    rank = len(_shape(arguments["self"]))
    start, end, step = (arguments[name] for name in ("start", "end", "step"))
    wanted = (start or 0, ENDLESS if end is None else end, arguments["dim"], step)[slot - 1]
    if not isinstance(wanted, int):  # of the size of an input
        return None
    size = _shape(arguments["self"])[arguments["dim"]]

    def test(found: Array) -> bool:
        if found.size != 1:
            return False
        value = int(found.item())
        if slot == 3:  # noqa: PLR2004 - the axis
            return value % rank == wanted % rank
        if isinstance(size, int) and slot < 3:  # noqa: PLR2004 - start or end
            return _within(value, size) == _within(wanted, size)
        return value == wanted

    return test


def _within(position: int, size: int) -> int:
    return max(0, min(size, position + size if position < 0 else position))


ENDLESS = 2**63 - 1
_SHAPING = {"view", "_unsafe_view", "reshape", "flatten", "unflatten", "expand"}


def _is_shape(found: Array, shape: list[Any], expanded: list[Any] | None) -> bool:
    """-1 stands for an axis that follows from the others; in an Expand, 1 for one left as it is."""
    if found.size != len(shape):
        return False
    if expanded is None:
        return (found == -1).sum() <= 1 and all(
            int(n) == -1 or (isinstance(axis, int) and int(n) == axis)
            for n, axis in zip(found.ravel(), shape, strict=True)
        )
    kept = [1] * (len(shape) - len(expanded)) + expanded
    return all(
        (int(n) == 1 and before == axis) or (isinstance(axis, int) and int(n) == axis)
        for n, before, axis in zip(found.ravel(), kept, shape, strict=True)
    )


def stands_for(node: onnx.NodeProto, operator: Node) -> bool:
    """Is an ONNX operator known as the translation of aten's?"""
    name = operator_of(operator)
    tables: Sequence[Mapping[str, Container[str]]] = (SLOTS, ATTRIBUTES, AXES)
    return node.op_type.lower() == name or any(name in t.get(node.op_type, ()) for t in tables)


def rank_of(operator: Node) -> int:
    """How many axes an operator's result has; 0 if it is no tensor."""
    return len(_shape(operator))


def _shape(node: Any) -> list[Any]:
    value = node.meta.get("val") if isinstance(node, Node) else None
    if isinstance(value, tuple | list):
        value = value[0]
    return list(getattr(value, "shape", ()))


def _each(value: Any, axes: int) -> list[int]:
    if isinstance(value, str):
        raise TypeError("padding by name")
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if isinstance(value, tuple) else value
