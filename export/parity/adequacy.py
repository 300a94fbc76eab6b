"""Measure unit coverage: which units of the network the gate's samples activate.

A fault in a unit that no sample activates is not visible in any output.
"""

import numpy as np
from torch import Tensor
from torch.fx import Node

from export.bundle.metrics import Array, Arrays
from export.model.program import Program, operator_of
from export.parity.interpreter import node_values
from export.parity.schema import Coverage

ACTIVATIONS = {
    "relu",
    "leaky_relu",
    "prelu",
    "gelu",
    "silu",
    "elu",
    "celu",
    "selu",
    "mish",
    "softplus",
    "hardtanh",
    "hardswish",
    "hardsigmoid",
    "sigmoid",
    "tanh",
    "relu6",
    "clamp",
}
COVERAGE_BATCH = 500
PICTURE_NDIM = 4
# The axis of a layer's units: in [N, T, C], a dense layer's is last, a convolution's is second.
UNITS_LAST = {"linear", "matmul", "mm", "addmm", "bmm", "layer_norm", "rms_norm", "gru", "lstm"}
UNITS_SECOND = {
    "conv1d",
    "conv2d",
    "conv3d",
    "convolution",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "batch_norm",
    "group_norm",
    "instance_norm",
}


def measure_coverage(program: Program, inputs: Arrays, narrow: int) -> Coverage:
    """Measure which units the samples activate.

    A unit is a neuron or a channel after an activation function. It is active if its value is not
    the same for all samples and positions; the unit of a ReLU that is always 0 is inactive.

    Args:
        program: The module's graph.
        inputs: All samples; those that every batch size runs over come first.
        narrow: The number of samples that every batch size runs over.
    """
    lows: dict[str, list[Array]] = {}
    highs: dict[str, list[Array]] = {}
    count = len(next(iter(inputs.values())))
    wanted = {n.name: n for n in program.graph.nodes if operator_of(n) in ACTIVATIONS}
    starts = sorted({*range(0, count, COVERAGE_BATCH), min(narrow, count)} - {count})
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        part = {name: array[start:end] for name, array in inputs.items()}
        for name, values in node_values(program, wanted, part, double=False).items():
            if values.ndim == 1:  # no axis of units
                continue
            units = units_axis(wanted[name], values.ndim)
            others = tuple(axis for axis in range(values.ndim) if axis != units)
            lows.setdefault(name, []).append(values.min(axis=others))
            highs.setdefault(name, []).append(values.max(axis=others))
    in_narrow = sum(end <= narrow for end in [*starts[1:], count])
    everywhere = {n: np.min(lows[n], axis=0) < np.max(highs[n], axis=0) for n in lows}
    narrowly = {
        n: np.min(lows[n][:in_narrow], axis=0) < np.max(highs[n][:in_narrow], axis=0) for n in lows
    }
    return Coverage(
        samples=min(narrow, count),
        units=sum(units.size for units in everywhere.values()),
        active_in_all=sum(int(units.sum()) for units in everywhere.values()),
        active=sum(int((units & everywhere[n]).sum()) for n, units in narrowly.items()),
        by_layer={n: (int(units.sum()), units.size) for n, units in narrowly.items()},
    )


def units_axis(activation: Node, ndim: int) -> int:
    """The axis of a value's units, which is the axis of the layer before the activation.

    Args:
        activation: The node of the value.
        ndim: The value's number of axes.
    """
    axis = _axis_behind(activation, ndim)
    if axis is None:  # a middle axis is usually a position in a text
        axis = 1 if ndim == PICTURE_NDIM else ndim - 1
    return axis


def _axis_behind(node: Node, ndim: int) -> int | None:
    """The axis of units in a node's value, from the nearest layer before it; None: not known."""
    operator = operator_of(node)
    if operator in UNITS_LAST:
        return ndim - 1
    if operator in UNITS_SECOND:
        return 1
    same = [n for n in node.all_input_nodes if _ndim_of(n) == ndim]
    axis = next((a for n in same if (a := _axis_behind(n, ndim)) is not None), None)
    if axis is None or operator not in ("transpose", "permute"):
        return axis
    if operator == "permute":
        return [int(a) % ndim for a in node.args[1]].index(axis)  # type: ignore[arg-type, union-attr]
    first, second = (int(a) % ndim for a in node.args[1:3])  # type: ignore[arg-type]
    return {first: second, second: first}.get(axis, axis)


def _ndim_of(node: Node) -> int | None:
    value = node.meta.get("val")
    return value.ndim if isinstance(value, Tensor) else None
