"""The receptive field: the part of each input axis that one value of a tensor depends on.

For convolutions and poolings, this is the recurrence of Araujo, Norris and Sim, "Computing
Receptive Fields of Convolutional Neural Networks" (Distill, 2019, doi 10.23915/distill.00021),
far from the border, where no padding cuts a window off. The window along an input axis grows by
(kernel - 1) x dilation x jump, and the jump is multiplied by the stride.

A function without a rule (a transposed convolution, resizing, a Fourier transform) makes the field
"unknown", unless it already was the whole axis.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from training.describe.arguments import family, many
from training.describe.rules import ATTENTION, REDUCTIONS, bound, is_pointwise
from training.describe.trace import Call, memory_of


class Axis(NamedTuple):
    """The receptive field of a tensor's values along one axis of one input.

    Attributes:
        reach: "window": windows of one size, ``jump`` apart; "scattered": windows that move
            irregularly (e.g. after flattening); "all": the whole axis; "unknown": there is no
            rule.
        dims: The tensor's dimensions along which the window moves; empty if it does not move.
        first: Input position where the window of position 0 begins; below 0 in the padding.
        last: Input position where it ends.
        jump: Number of input positions from one window to the next.
    """

    reach: Literal["window", "scattered", "all", "unknown"]
    dims: frozenset[int] = frozenset()
    first: int = 0
    last: int = 0
    jump: int = 1

    @property
    def size(self) -> int | None:
        """Number of positions in the window; None for "all" and "unknown"."""
        return self.last - self.first + 1 if self.is_known else None

    @property
    def is_known(self) -> bool:
        """Whether the window's size is known."""
        return self.reach in ("window", "scattered")

    def convolved(self, dim: int, kernel: int, stride: int, padding: int, dilation: int) -> "Axis":
        """The axis after a convolution or pooling along ``dim``, padded before position 0."""
        if not self.is_known or dim not in self.dims:
            return self
        if self.reach == "scattered":
            return self if kernel == stride == 1 else UNKNOWN
        first = self.first - padding * self.jump
        last = self.last + ((kernel - 1) * dilation - padding) * self.jump
        return Axis("window", self.dims, first, last, self.jump * stride)

    def reduced(self, dims: Collection[int]) -> "Axis":
        """The axis after a function whose outputs depend on all positions along ``dims``."""
        if not self.is_known or not self.dims & set(dims):
            return self
        return ALL if self.dims <= set(dims) else UNKNOWN

    def renumbered(self, number: Callable[[int], int]) -> "Axis":
        """The same axis after the tensor's dimensions were renumbered."""
        return self._replace(dims=frozenset(map(number, self.dims)))

    def fixed(self) -> "Axis":
        """A window of the same size that no longer moves."""
        return self._replace(dims=frozenset())

    def scattered(self, dims: Iterable[int]) -> "Axis":
        """Windows of the same size that move irregularly along ``dims``."""
        if not self.is_known:
            return self
        return Axis("scattered", frozenset(dims), self.first, self.last)

    def joined(self, other: "Axis") -> "Axis":
        """The union of the fields of two tensors that are added or concatenated."""
        for whole in (ALL, UNKNOWN):
            if whole.reach in (self.reach, other.reach):
                return whole
        if self.reach == other.reach == "window" and self.dims == other.dims:
            if self.jump != other.jump:
                return UNKNOWN
            ends = min(self.first, other.first), max(self.last, other.last)
            return Axis("window", self.dims, *ends, self.jump)
        return wider(self, other).scattered(self.dims | other.dims)


ALL = Axis("all")
UNKNOWN = Axis("unknown")

# The receptive field of a tensor: the axes of each input except the batch axis, by the input's
# number. A tensor that depends on no input (a weight) has an empty field.
Field = dict[int, tuple[Axis, ...]]
FieldOf = Callable[[Tensor], Field]


def whole_input(number: int, ndim: int) -> Field:
    """The field of an input itself: each position depends only on itself.

    Args:
        number: The input's number.
        ndim: Its number of dimensions, including the batch dimension.
    """
    return {number: tuple(Axis("window", frozenset({dim})) for dim in range(1, ndim))}


def wider(first: Axis, second: Axis) -> Axis:
    """The axis with the larger window; "all" and "unknown" count as larger than any window."""
    return max(first, second, key=lambda axis: (not axis.is_known, axis.size or 0))


def fields_after(call: Call, field_of: FieldOf) -> list[Field]:
    """Compute the field of each output of a call.

    Args:
        call: The call.
        field_of: Returns the field of one of the call's input tensors.
    """
    values = bound(call)
    field = _join(field_of(tensor) for tensor in call.tensors)
    x = values.get("input")
    after: Field | None = None
    if call.name in ATTENTION:
        after = _changed(field, lambda _: ALL)
    elif call.name.startswith("new_") or call.name.endswith("_like"):
        after = {}  # made from a shape, not from values
    elif is_pointwise(call):
        after = _broadcast(call, field_of)
    elif call.name in ("cat", "stack"):
        after = _concatenated(call, values, field_of)
    elif isinstance(x, Tensor) and not any(field_of(t) for t in call.tensors if t is not x):
        after = _of_one_tensor(call, x, field, values)
        if after is None and (views := _views(call, x, field)):
            return views
    if after is None:
        after = _changed(field, lambda axis: ALL if axis.reach == "all" else UNKNOWN)
    return [after] * len(call.outputs)


def _changed(field: Field, change: Callable[[Axis], Axis]) -> Field:
    return {number: tuple(map(change, axes)) for number, axes in field.items()}


def _join(fields: Iterable[Field]) -> Field:
    joined: Field = {}
    for field in fields:
        for number, axes in field.items():
            known = joined.get(number, axes)
            joined[number] = tuple(a.joined(b) for a, b in zip(known, axes, strict=True))
    return joined


def _broadcast(call: Call, field_of: FieldOf) -> Field:
    """Broadcast the fields: dimensions align from the last; along a repeated one windows stay."""
    shape = call.outputs[0].shape

    def aligned(tensor: Tensor) -> Field:
        missing = len(shape) - tensor.ndim

        def align(axis: Axis) -> Axis:
            repeated = any(tensor.shape[dim] == 1 != shape[dim + missing] for dim in axis.dims)
            return axis.fixed() if repeated else axis.renumbered(lambda dim: dim + missing)

        return _changed(field_of(tensor), align)

    return _join(map(aligned, call.tensors))


def _concatenated(call: Call, values: Mapping[str, Any], field_of: FieldOf) -> Field:
    """The field after ``cat`` or ``stack``: along the joined dimension, windows are scattered."""
    dim = values.get("dim", 0) % call.outputs[0].ndim
    fields = [field_of(tensor) for tensor in call.tensors]
    if call.name == "stack":
        fields = [
            _changed(field, lambda axis: axis.renumbered(lambda d: d + (d >= dim)))
            for field in fields
        ]
    return _changed(
        _join(fields), lambda axis: axis.scattered(axis.dims) if dim in axis.dims else axis
    )


def _of_one_tensor(call: Call, x: Tensor, field: Field, values: Mapping[str, Any]) -> Field | None:
    """The field after a function of one tensor, e.g. a convolution or norm; None for others."""
    kind, n = family(call.name)
    if kind == "conv":
        field = _changed(field, lambda axis: _channels(call, x, axis, values))
    if kind in ("conv", "max_pool", "avg_pool") or call.name == "pad":
        for window in _windows(call.name, x, values):
            field = _changed(field, lambda axis, window=window: axis.convolved(*window))  # type: ignore[misc]
        return field
    if kind == "adaptive_avg_pool":
        for dim in range(x.ndim - n, x.ndim):
            field = _changed(field, _adaptive(dim, x.shape[dim], call.outputs[0].shape[dim]))
        return field
    if call.name == "linear":
        return _changed(field, lambda axis: axis.reduced([x.ndim - 1]))
    if call.name in ("layer_norm", "group_norm"):
        first = 1 if call.name == "group_norm" else x.ndim - len(values["normalized_shape"])
        return _changed(field, lambda axis: axis.reduced(range(first, x.ndim)))
    return _reduction(call, x, field, values) if call.name in REDUCTIONS else None


def _channels(call: Call, x: Tensor, axis: Axis, values: Mapping[str, Any]) -> Axis:
    """A convolution depends on all channels of a group; a depthwise one, on its own channel."""
    dim, groups = x.ndim - family(call.name)[1] - 1, values.get("groups", 1)
    if groups == 1:
        return axis.reduced([dim])
    is_depthwise = groups == x.shape[dim] == call.outputs[0].shape[dim]
    return axis if is_depthwise or dim not in axis.dims else UNKNOWN


def _windows(name: str, x: Tensor, values: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Dimension, kernel, stride, padding before, dilation: one tuple per dimension worked on."""
    if name == "pad":
        lefts = values["pad"][::2]
        return [(x.ndim - 1 - i, 1, 1, left, 1) for i, left in enumerate(lefts)]
    kind, n = family(name)
    kernel = values["weight"].shape[2:] if kind == "conv" else many(values["kernel_size"], n)
    stride = many(values.get("stride") or (1 if kind == "conv" else kernel), n)
    dilation = many(values.get("dilation", 1), n)
    padding = values.get("padding", 0)
    if isinstance(padding, str):
        is_same = padding == "same"
        padding = [d * (k - 1) // 2 * is_same for k, d in zip(kernel, dilation, strict=True)]
    dims = range(x.ndim - n, x.ndim)
    return list(zip(dims, kernel, stride, many(padding, n), dilation, strict=True))


def _adaptive(dim: int, given: int, made: int) -> Callable[[Axis], Axis]:
    """Adaptive pooling from ``given`` to ``made`` positions, which may not divide evenly."""

    def change(axis: Axis) -> Axis:
        if made == 1:
            return axis.reduced([dim])
        if given % made:
            return UNKNOWN if axis.is_known and dim in axis.dims else axis
        return axis.convolved(dim, given // made, given // made, 0, 1)

    return change


def _reduction(call: Call, x: Tensor, field: Field, values: Mapping[str, Any]) -> Field:
    given = values.get("dim")
    dims = {dim % x.ndim for dim in many(given, 1)} if given is not None else set(range(x.ndim))
    field = _changed(field, lambda axis: axis.reduced(dims))
    if call.outputs[0].ndim == x.ndim:
        return field
    return _changed(
        field, lambda axis: axis.renumbered(lambda d: d - sum(gone < d for gone in dims))
    )


def _views(call: Call, x: Tensor, field: Field) -> list[Field] | None:
    """The fields after a function that reshapes or slices; None if its output is not a view.

    The function is called again on a tensor that is contiguous in memory. The strides of the
    view then show where the tensor's dimensions went.
    """
    if any(out is x for out in call.outputs):
        return None
    dense = torch.empty(x.shape, dtype=x.dtype, device="meta")
    try:
        again = tree_map(lambda leaf: dense if leaf is x else leaf, (call.arguments, call.keywords))
        outputs = tree_leaves(call.function(*again[0], **again[1]))
    except RuntimeError:
        return None
    if any(memory_of(out) != memory_of(dense) for out in outputs):
        return None
    return [_changed(field, _moved(dense, out)) for out in outputs]


def _moved(dense: Tensor, view: Tensor) -> Callable[[Axis], Axis]:
    """Map an axis of ``dense`` to its view: along one dimension, or scattered."""

    def moved(axis: Axis) -> Axis:
        along: set[int] = set()
        partly: set[int] = set()
        for dim in axis.dims:
            step, end = dense.stride(dim), dense.stride(dim) * dense.shape[dim]
            for d, (stride, size) in enumerate(zip(view.stride(), view.shape, strict=True)):
                reach = stride * (size - 1)
                if 0 < reach < end and stride % step == 0:
                    along.add(d)
                elif 0 < stride < end and reach >= step:
                    partly.add(d)
        if axis.reach == "window" and len(along) == 1 and not partly:
            (dim,), (new,) = axis.dims, along
            start = int(view.storage_offset()) // dense.stride(dim) % dense.shape[dim]
            sliced = axis.convolved(dim, 1, view.stride(new) // dense.stride(dim), -start, 1)
            return sliced.renumbered(lambda _: new)
        return axis.scattered(along | partly) if along or partly else axis.fixed()

    return moved
