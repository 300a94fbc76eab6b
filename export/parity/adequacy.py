"""Unit coverage: do the gate's samples see the whole network?

A fault in a unit that no sample activates shows in no answer.
"""

import numpy as np

from export.bundle.metrics import Array, Arrays
from export.parity.intermediates import Program, node_values, operator_of
from export.parity.schema import Coverage

ACTIVATIONS = {
    *("relu", "leaky_relu", "prelu", "gelu", "silu", "elu", "celu", "selu", "mish", "softplus"),
    *("hardtanh", "hardswish", "hardsigmoid", "sigmoid", "tanh", "relu6", "clamp"),
}
COVERAGE_BATCH = 500
UNITS_AXIS = 1


def measure_coverage(program: Program, inputs: Arrays, narrow: int) -> Coverage:
    """Which units the samples activate.

    A unit is a neuron or a channel behind an activation function. It is active if its value is
    not the same for all samples and positions: a ReLU's that is always 0 is not.

    Args:
        program: The module's graph.
        inputs: All samples, those of every batch size first.
        narrow: How many those are.
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
            others = tuple(axis for axis in range(values.ndim) if axis != UNITS_AXIS)
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
