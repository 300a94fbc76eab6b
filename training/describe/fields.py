"""What each torch function does to the receptive field; one rule for each kind of function.

A function without a rule makes the field "unknown", unless all was seen before: it never guesses.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverloadPacket
from torch.utils._pytree import tree_leaves, tree_map

from training.describe.arguments import bound, family, many
from training.describe.receptive import ALL, UNKNOWN, Axis, Field, Reach, changed, join
from training.describe.trace import Call
from training.describe.windows import is_windowed, windows

FieldOf = Callable[[Tensor], Field]

# Each output depends on its own position alone. Most functions of this kind bear torch's tag
# "pointwise"; these do not.
POINTWISE = {
    "alpha_dropout", "batch_norm", "celu", "contiguous", "detach", "dropout", "dropout1d",
    "dropout2d", "dropout3d", "embedding", "feature_alpha_dropout", "float", "hardsigmoid",
    "hardswish", "identity", "logsigmoid", "prelu", "relu6", "requires_grad", "rrelu", "selu",
    "softsign", "tanhshrink", "to", "type", "type_as",
}  # fmt: skip

# Each output depends on all positions along the argument ``dim``.
REDUCING = {
    "amax", "amin", "argmax", "argmin", "cumsum", "log_softmax", "logsumexp", "max", "mean", "min",
    "norm", "normalize", "prod", "softmax", "softmin", "sort", "std", "sum", "var",
}  # fmt: skip

# Each output depends on everything in its sample.
MIXING = {
    "gru", "lstm", "multi_head_attention_forward", "rnn_relu", "rnn_tanh",
    "scaled_dot_product_attention",
}  # fmt: skip


def fields_after(call: Call, field_of: FieldOf) -> list[Field]:
    """The field of each output of a call.

    Args:
        call: What was called.
        field_of: Gives the field of a tensor that came before.
    """
    values = bound(call.name, call.arguments, call.keywords)
    joined = join(field_of(tensor) for tensor in call.tensors)
    x = values.get("input")
    field = joined and _of_several(call, values, joined, field_of)
    if field is None and isinstance(x, Tensor):
        others = (field_of(tensor) for tensor in call.tensors if tensor is not x)
        if not any(others):
            field = _along_axes(call, x, joined, values)
            if field is None and (views := _views(call, x, joined)):
                return views
    return [_lost(joined) if field is None else field] * len(call.outputs)


def _of_several(
    call: Call, values: Mapping[str, Any], joined: Field, field_of: FieldOf
) -> Field | None:
    """Functions of any number of tensors that have fields; None for others."""
    x, second = values.get("input"), values.get("mat2")
    if call.name in MIXING:
        return changed(joined, lambda _: ALL)
    if call.name.startswith("new_") or call.name.endswith("_like"):
        return {}  # of the input's shape alone
    if call.name in ("cat", "concat", "stack"):
        return _side_by_side(call, values, field_of)
    if call.name == "setitem":
        return changed(joined, lambda axis: axis.scattered(axis.dims))
    if _is_pointwise(call.name, values):
        return _element_by_element(call, field_of)
    if call.name in ("matmul", "mm", "bmm") and isinstance(x, Tensor):
        return _multiplied(x, second, call.outputs[0], field_of) if second is not None else None
    return None


def _lost(field: Field) -> Field:
    return changed(field, lambda axis: ALL if axis.reach is Reach.ALL else UNKNOWN)


def _is_pointwise(name: str, values: Mapping[str, Any]) -> bool:
    if name in REDUCING:  # torch.max(x, y) is none of those that reduce
        return isinstance(values.get("dim"), Tensor)
    packet = getattr(torch.ops.aten, name, None)
    if name in POINTWISE or not isinstance(packet, OpOverloadPacket):
        return name in POINTWISE
    tags = [getattr(packet, overload).tags for overload in packet.overloads()]
    return any(torch.Tag.pointwise in each for each in tags)


def _element_by_element(call: Call, field_of: FieldOf) -> Field:
    """Axes are aligned from the last one on, as broadcasting does; a repeated one does not move."""
    (shape, *_) = (tensor.shape for tensor in call.outputs)

    def aligned(tensor: Tensor, axis: Axis) -> Axis:
        missing = len(shape) - tensor.ndim
        repeated = any(tensor.shape[dim] == 1 != shape[dim + missing] for dim in axis.dims)
        return axis.fixed(0) if repeated else axis.renumbered(lambda dim: dim + missing)

    # An embedding's output has an axis more, behind the others: nothing to align.
    if call.name == "embedding":
        return join(field_of(tensor) for tensor in call.tensors)
    return join(
        changed(field_of(tensor), lambda axis, tensor=tensor: aligned(tensor, axis))  # type: ignore[misc]
        for tensor in call.tensors
    )


def _side_by_side(call: Call, values: Mapping[str, Any], field_of: FieldOf) -> Field:
    out = call.outputs[0]
    dim = values.get("dim", 0) % out.ndim
    fields = [field_of(tensor) for tensor in call.tensors]
    if call.name == "stack":
        fields = [
            changed(field, lambda axis: axis.renumbered(lambda d: d + (d >= dim)))
            for field in fields
        ]
    return changed(
        join(fields), lambda axis: axis.scattered(axis.dims) if dim in axis.dims else axis
    )


def _multiplied(a: Tensor, b: Tensor, out: Tensor, field_of: FieldOf) -> Field:
    """A matrix product sums over a's last dimension and b's last but one."""

    def aligned(tensor: Tensor, summed: int) -> Field:
        missing = out.ndim - tensor.ndim
        return changed(
            field_of(tensor),
            lambda axis: axis.reduced([summed]).renumbered(lambda dim: dim + missing),
        )

    if min(a.ndim, b.ndim) == 1:  # a vector: which dimensions are left is another matter
        return _lost(join([field_of(a), field_of(b)]))
    return join([aligned(a, a.ndim - 1), aligned(b, b.ndim - 2)])


def _along_axes(call: Call, x: Tensor, field: Field, values: Mapping[str, Any]) -> Field | None:
    """Functions that read windows, or all positions, along some dimensions; None for others."""
    if is_windowed(call.name):
        alongs = windows(call.name, x, call.outputs, values)
        if alongs is None:
            return _lost(field)
        if family(call.name)[0] in ("conv", "conv_transpose"):
            field = changed(field, lambda axis: _channels(call, x, axis, values))
        for dim, sources, moved, period in alongs:
            if sources is None:
                field = _reduced(field, [dim])
            else:
                field = changed(field, _stepper(dim, sources, moved, period))
        return field
    if call.name == "local_response_norm":
        return changed(field, lambda axis: UNKNOWN if 1 in axis.dims else axis)
    if call.name in READS:
        return _reduced(field, READS[call.name](x, values))
    return _summed(call, x, field, values) if call.name in REDUCING else None


def _normalized(x: Tensor, values: Mapping[str, Any]) -> range:
    return range(x.ndim - len(values["normalized_shape"]), x.ndim)


# The dimensions along which each output reads all positions.
READS: dict[str, Callable[[Tensor, Mapping[str, Any]], Collection[int]]] = {
    "linear": lambda x, _: [x.ndim - 1],
    "layer_norm": _normalized,
    "rms_norm": _normalized,
    "group_norm": lambda x, _: range(1, x.ndim),
    "instance_norm": lambda x, values: range(
        2, x.ndim if values.get("use_input_stats", True) else 2
    ),
}


def _stepper(dim: int, sources: Any, moved: int, period: int) -> Callable[[Axis], Axis]:
    return lambda axis: axis.through(dim, sources, moved, period)


def _channels(call: Call, x: Tensor, axis: Axis, values: Mapping[str, Any]) -> Axis:
    """A convolution reads all channels of its group; a depthwise one reads its own."""
    dim, groups = x.ndim - family(call.name)[1] - 1, values.get("groups", 1)
    if groups == 1:
        return axis.reduced([dim])
    if dim not in axis.dims or groups == x.shape[dim] == call.outputs[0].shape[dim]:
        return axis
    return axis.scattered(axis.dims) if groups == x.shape[dim] else UNKNOWN


def _summed(call: Call, x: Tensor, field: Field, values: Mapping[str, Any]) -> Field:
    given = values.get("dim", -1 if call.name == "sort" else None)
    dims = {dim % x.ndim for dim in many(given, 1)} if given is not None else set(range(x.ndim))
    field = _reduced(field, dims)
    if call.outputs[0].ndim == x.ndim:
        return field
    return changed(
        field, lambda axis: axis.renumbered(lambda d: d - sum(gone < d for gone in dims))
    )


def _reduced(field: Field, dims: Collection[int]) -> Field:
    return changed(field, lambda axis: axis.reduced(dims))


def _views(call: Call, x: Tensor, field: Field) -> list[Field] | None:
    """Functions that give the same values in another shape, or some of them.

    They are asked again on a tensor of the same shape that lies dense in memory: its strides then
    tell where each of its dimensions went. None if the output is not made of the input's memory.
    """
    if any(out is x for out in call.outputs):
        own = getattr(call.function, "__name__", "")
        in_place = own.endswith("_") and not own.endswith("__")
        return None if in_place else [field]
    dense = torch.empty(x.shape, dtype=x.dtype, device="meta")
    try:
        again = tree_map(lambda leaf: dense if leaf is x else leaf, (call.arguments, call.keywords))
        outputs = tree_leaves(call.function(*again[0], **again[1]))
    except RuntimeError:
        return None
    memory = dense.untyped_storage()._cdata
    if any(out.untyped_storage()._cdata != memory for out in outputs):
        return None
    return [changed(field, _moved(dense, out)) for out in outputs]


def _moved(dense: Tensor, out: Tensor) -> Callable[[Axis], Axis]:
    """Where an axis of ``dense`` lies in its view ``out``."""

    def moved(axis: Axis) -> Axis:
        lies = {dim: _found(dim, dense, out) for dim in axis.dims}
        dims = {out_dim for found in lies.values() for out_dim in found}
        if axis.reach is not Reach.WINDOW or len(axis.dims) != 1:
            return axis.scattered(dims)
        ((dim, found),) = lies.items()
        stride = dense.stride(dim)
        start = int(out.storage_offset()) // stride % dense.shape[dim]
        if not dims:
            return axis.fixed(start)
        (first, *others) = dims
        if others or not found[first]:
            return axis.scattered(dims)
        step = out.stride(first) // stride
        picked = axis.through(dim, lambda o: [start + step * o], step)
        return picked.renumbered(lambda _: first)

    return moved


def _found(dim: int, dense: Tensor, out: Tensor) -> dict[int, bool]:
    """The dimensions of ``out`` that walk along ``dim``; True: along nothing but it."""
    stride, end = dense.stride(dim), dense.stride(dim) * dense.shape[dim]
    found = {}
    for out_dim, (step, size) in enumerate(zip(out.stride(), out.shape, strict=True)):
        if size == 1 or step == 0 or dense.shape[dim] == 1:
            continue
        reaches = step * (size - 1)
        if step % stride == 0 and step < end and reaches < end:
            found[out_dim] = True
        elif step < end and reaches >= stride:
            found[out_dim] = False
    return found
