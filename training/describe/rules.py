"""Rules for calls: their text, and the formulas of their parameters and multiply-adds.

There are rules for the layers of the networks here and of torchvision's classifiers. Formulas use
the sizes of the call's input and output, not those of the weights, so comparing their values with
the weights is a check. Letters: I and O are channels (or features) in and out, G groups, K the
product of the kernel's sizes, P output positions.

=================  =================  =======================================================
function           parameters         multiply-adds
=================  =================  =======================================================
convolution        O x (I/G x K) + O  O x P x (I/G x K)
transposed         I x (O/G x K) + O  I x (input positions) x (O/G x K)
linear             O x I + O          (rows x) O x I
matrix product     none of its own    outputs x (summed length)
batch norm         C + C              one for each value: a scale and a shift
layer, group norm  one each a weight  three for each value (variance, scaling, weights), or two
=================  =================  =======================================================

Additions alone (biases, pooling, sums), comparisons and functions such as exp count as 0.
The matrix products inside attention are counted by ``torch.utils.flop_counter`` ("torch's count").
Any other function has "no formula" and counts as 0.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverloadPacket

from training.describe.arguments import family, many, name_arguments, sizes
from training.describe.trace import Call, memory_of

# Each output value depends only on the input value at its own position. Most such functions have
# torch's tag "pointwise"; these do not.
POINTWISE = {
    "batch_norm", "contiguous", "detach", "dropout", "dropout2d", "float", "hardsigmoid",
    "hardswish", "hardtanh", "identity", "prelu", "relu6", "to", "type_as",
}  # fmt: skip
# Each output value depends on all positions along the argument ``dim``.
REDUCTIONS = {
    "amax", "amin", "log_softmax", "max", "mean", "min", "norm", "normalize", "softmax", "sum",
    "var",
}  # fmt: skip
# Functions that move values and compute nothing.
MOVING = {"cat", "clone", "getitem", "pad", "reshape", "roll", "setitem", "stack"}
POOLINGS = {"max_pool", "avg_pool", "adaptive_avg_pool"}
# Each output value depends on everything in its sample.
ATTENTION = {"multi_head_attention_forward", "scaled_dot_product_attention"}


class Formula(NamedTuple):
    """A formula with its numbers, e.g. "16 x (1 x 5 x 5) + 16", and its value."""

    text: str
    value: int

    def __str__(self) -> str:
        return self.text if self.text == f"{self.value:,}" else f"{self.text} = {self.value:,}"


NOTHING = Formula("0", 0)
NO_FORMULA = Formula("no formula", 0)


def bound(call: Call) -> dict[str, Any]:
    """The call's arguments by name."""
    return name_arguments(call.name, call.arguments, call.keywords)


def is_pointwise(call: Call) -> bool:
    """Whether each output value depends only on the input values at its own position."""
    if call.name in REDUCTIONS:  # torch.max(x, y) of two tensors is pointwise
        return isinstance(bound(call).get("dim"), Tensor)
    packet = getattr(torch.ops.aten, call.name, None)
    if call.name in POINTWISE or not isinstance(packet, OpOverloadPacket):
        return call.name in POINTWISE
    tags = [getattr(packet, overload).tags for overload in packet.overloads()]
    return any(torch.Tag.pointwise in each for each in tags)


def in_words(call: Call, label: str) -> str:
    """Describe a call in words, e.g. "Conv2d 5x5, 1 -> 16, valid".

    Args:
        call: The call.
        label: First word of the text: the layer's class or the function.
    """
    words = WORDS.get(family(call.name)[0])
    return f"{label} {words(call, bound(call))}" if words else label


def parameters(call: Call, new: Sequence[Tensor]) -> Formula:
    """The number of parameters that a call adds to those of earlier steps.

    Args:
        call: The call.
        new: The parameters among its arguments that no earlier step used.
    """
    if not new:
        return NOTHING
    values, out = bound(call), call.outputs[0]
    x, weight, bias = values.get("input"), values.get("weight"), values.get("bias")
    own = {id(tensor) for tensor in (weight, bias) if tensor is not None}
    kind, n = family(call.name)
    if isinstance(x, Tensor) and weight is not None and own == {id(tensor) for tensor in new}:
        groups, kernel = values.get("groups", 1), tuple(weight.shape[2:])
        if kind in ("conv", "conv_transpose"):
            made, given = out.shape[-n - 1], x.shape[-n - 1]
            whole, grouped = (made, given) if kind == "conv" else (given, made)
            return _with_bias(_product((whole,), (grouped // groups, *kernel)), made, bias)
        if kind == "linear":
            return _with_bias(_product((out.shape[-1], x.shape[-1])), out.shape[-1], bias)
        if kind in ("batch_norm", "group_norm"):
            return _sum([(x.shape[1],)] * len(own))
        if kind == "layer_norm":
            return _sum([tuple(values["normalized_shape"])] * len(own))
    return _sum([tuple(tensor.shape) for tensor in new])


def multiply_adds(call: Call) -> Formula:
    """The number of times that a call multiplies two numbers and adds the product to a sum."""
    values, out = bound(call), call.outputs[0]
    x, weight = values.get("input"), values.get("weight")
    kind, n = family(call.name)
    if isinstance(x, Tensor):
        if kind in ("conv", "conv_transpose") and weight is not None:
            swept = x if kind == "conv_transpose" else out
            batch = _above_one(x.shape[:1]) if x.ndim > n + 1 else ()
            return _product((*batch, *swept.shape[-n - 1 :]), tuple(weight.shape[1:]))
        if kind == "linear":
            return _product((*_above_one(x.shape[:-1]), out.shape[-1], x.shape[-1]))
        if kind == "matmul":
            return _product((*_above_one(out.shape), x.shape[-1]))
        if kind == "batch_norm":
            return _product(_above_one(out.shape))
        if kind in ("layer_norm", "group_norm"):
            return _product((2 if weight is None else 3, *_above_one(out.shape)))
    if call.name in ATTENTION | {"einsum"}:
        return Formula("torch's count", call.flops // 2)
    return NOTHING if _computes_nothing(call) else NO_FORMULA


def _computes_nothing(call: Call) -> bool:
    """Whether the call only compares, adds, applies a function to each value, or moves values."""
    if is_pointwise(call) or family(call.name)[0] in REDUCTIONS | MOVING | POOLINGS:
        return True
    if call.name.startswith("new_") or call.name.endswith("_like"):
        return True
    memories = {memory_of(tensor) for tensor in call.tensors}
    return all(memory_of(out) in memories for out in call.outputs)


def _above_one(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size > 1)


def _convolution_words(call: Call, values: Mapping[str, Any]) -> str:
    _, n = family(call.name)
    weight, channels = values["weight"], values["input"].shape[-n - 1]
    words = [sizes(weight.shape[2:]), f"{channels:,} -> {call.outputs[0].shape[-n - 1]:,}"]
    padding = values.get("padding", 0)
    if isinstance(padding, str):
        words.append(padding)
    else:
        before = many(padding, n)
        words.append(f"padding {_brief(before)}" if any(before) else "valid")
    for name in ("stride", "dilation"):
        numbers = many(values.get(name, 1), n)
        if set(numbers) != {1}:
            words.append(f"{name} {_brief(numbers)}")
    groups = values.get("groups", 1)
    if groups > 1:
        words.append("depthwise" if groups == channels else f"{groups} groups")
    return ", ".join(words) + _without_bias(values)


def _linear_words(call: Call, values: Mapping[str, Any]) -> str:
    made, given = values["weight"].shape
    return f"{given:,} -> {made:,}{_without_bias(values)}"


def _pool_words(call: Call, values: Mapping[str, Any]) -> str:
    _, n = family(call.name)
    kernel = many(values["kernel_size"], n)
    plain = {"stride": kernel, "padding": (0,) * n, "dilation": (1,) * n}
    words = [sizes(kernel)]
    for name, usual in plain.items():
        numbers = many(values.get(name) or usual, n)
        if numbers != usual:
            words.append(f"{name} {_brief(numbers)}")
    return ", ".join(words)


def _adaptive_words(call: Call, values: Mapping[str, Any]) -> str:
    _, n = family(call.name)
    return f"to {sizes(call.outputs[0].shape[-n:])}"


def _cat_words(call: Call, values: Mapping[str, Any]) -> str:
    return f"{len(call.tensors)} along axis {values.get('dim', 0)}"


def _index_words(call: Call, values: Mapping[str, Any]) -> str:
    index = values["dim"] if isinstance(values["dim"], tuple) else (values["dim"],)
    return f"[{', '.join(map(_one_index, index))}]"


def _one_index(index: Any) -> str:
    if isinstance(index, slice):
        ends = ["" if end is None else str(end) for end in (index.start, index.stop)]
        return ":".join(ends if index.step is None else [*ends, str(index.step)])
    if isinstance(index, Tensor):
        return f"tensor {sizes(index.shape)}"
    return "..." if index is Ellipsis else str(index)


# By the function's family: "conv" stands for conv1d, conv2d and conv3d.
WORDS: dict[str, Callable[[Call, Mapping[str, Any]], str]] = {
    "conv": _convolution_words,
    "conv_transpose": _convolution_words,
    "linear": _linear_words,
    "max_pool": _pool_words,
    "avg_pool": _pool_words,
    "adaptive_avg_pool": _adaptive_words,
    "cat": _cat_words,
    "getitem": _index_words,
    "stack": _cat_words,
    "pad": lambda _, values: ",".join(map(str, values["pad"])),
    "dropout": lambda _, values: f"{values.get('p', 0.5):g}: inactive in evaluation",
    "batch_norm": lambda _, values: f"{values['input'].shape[1]:,} channels",
}


def _without_bias(values: Mapping[str, Any]) -> str:
    return ", no bias" if values.get("bias") is None else ""


def _brief(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else sizes(numbers)


def _product(*factors: tuple[int, ...]) -> Formula:
    """The product of groups of factors; all groups but the first are put in brackets."""
    groups = [" x ".join(f"{factor:,}" for factor in group) for group in factors if group]
    text = " x ".join(groups[:1] + [f"({group})" for group in groups[1:]]) or "1"
    return Formula(text, prod(map(prod, factors)))


def _with_bias(product: Formula, made: int, bias: Tensor | None) -> Formula:
    if bias is None:
        return product
    return Formula(f"{product.text} + {made:,}", product.value + made)


def _sum(shapes: Sequence[tuple[int, ...]]) -> Formula:
    text = " + ".join(_product(shape).text for shape in shapes)
    return Formula(text, sum(map(prod, shapes)))
