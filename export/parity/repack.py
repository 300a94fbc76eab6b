"""The forms that a checkpoint's tensors may take in a file: folded, stacked, cut, joined, scaled.

Every rule computes from the checkpoint's tensors what must lie in the file, in float64 where
numbers are computed and not only moved. To allow a further form, add a rule here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import Node

from export.bundle.metrics import Array
from export.parity.intermediates import operator_of
from export.parity.interpreter import Program
from export.parity.operators import BATCH_NORMS, CONVOLUTIONS, arguments_of
from export.parity.regions import tensor_names

# Where ONNX has which of PyTorch's gates: i f g o becomes i o f g, and r z n becomes z r n.
GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}
FEW_ROUNDINGS = 4 * 2.0**-24


@dataclass(frozen=True)
class Expected:
    """What must lie in the file.

    Attributes:
        name: The checkpoint's tensor, or what was made of it, in words.
        values: In float64 where they were computed.
        unit: What an error is measured in, a number for each value; None: not one bit may differ.
        sources: The checkpoint's tensors that it holds.
    """

    name: str
    values: Array
    unit: Array | None = None
    sources: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Fold:
    """A layer and the BatchNorm behind it, as names of tensors ("" for one that is not there).

    Attributes:
        norm: The BatchNorm's scale, shift, mean and variance.
        axis: Of the weight; counts the output channels (of one group, if it is 1).
        groups: Into which the channels are divided.
    """

    weight: str
    bias: str
    norm: tuple[str, str, str, str]
    epsilon: float
    axis: int
    groups: int = 1

    @property
    def tensors(self) -> set[str]:
        """All that is folded into one weight and one bias."""
        return {self.weight, self.bias, *self.norm} - {""}

    def folded(
        self, tensors: Mapping[str, Array], epsilon: float | None = None
    ) -> tuple[Array, Array]:
        """Weight and bias, float64, of one layer that computes both."""
        scale, shift, mean, bias = self._parts(tensors, epsilon)
        weight = tensors[self.weight].astype(np.float64)
        if self.axis == 0:
            by_channel = scale.reshape(-1, *[1] * (weight.ndim - 1))
            return weight * by_channel, shift + (bias - mean) * scale
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
        by_channel = scale.reshape(self.groups, 1, -1, *[1] * (weight.ndim - 2))
        return (grouped * by_channel).reshape(weight.shape), shift + (bias - mean) * scale

    def expected(self, tensors: Mapping[str, Array]) -> tuple[Expected, Expected]:
        """The same with the units of their errors: a bias is a difference of larger numbers."""
        weight, bias = self.folded(tensors)
        scale, shift, mean, before = self._parts(tensors, None)
        terms = np.abs(shift) + (np.abs(before) + np.abs(mean)) * np.abs(scale)
        factor, shift_name, mean_name, variance = self.norm
        of_weight = frozenset({self.weight, factor, variance} - {""})
        of_bias = frozenset({self.bias, shift_name, mean_name, factor, variance} - {""})
        layer = self.weight or mean_name
        return (
            Expected(layer, weight, _at_least(weight), of_weight),
            Expected(f"bias beside {layer}", bias, _at_least(terms), of_bias),
        )

    def _parts(self, tensors: Mapping[str, Array], epsilon: float | None) -> list[Any]:
        factor, shift, mean, variance = (
            tensors[name].astype(np.float64) if name else np.float64(default)
            for name, default in zip(self.norm, (1, 0, 0, 1), strict=True)
        )
        scale = factor / np.sqrt(variance + (epsilon or self.epsilon))
        bias = tensors[self.bias].astype(np.float64) if self.bias else np.float64(0)
        return [scale, shift, mean, bias]


def find_folds(program: Program) -> list[Fold]:
    """The layers of a program that are followed by a BatchNorm and by nothing else."""
    names = tensor_names(program)

    def named(value: object) -> str:
        return names.get(getattr(value, "name", ""), "")

    folds = []
    for node in program.graph.nodes:
        after = list(node.users)
        if operator_of(node) not in {*CONVOLUTIONS, "linear"} or len(after) != 1:
            continue
        (norm,) = after
        if operator_of(norm) not in BATCH_NORMS or norm.args[0] is not node:
            continue
        layer, batch_norm = arguments_of(node), arguments_of(norm)
        factor, shift, mean, variance = (
            named(batch_norm[n]) for n in ("weight", "bias", "running_mean", "running_var")
        )
        if not variance:  # without statistics it takes the batch's
            continue
        transposed = "transpose" in operator_of(node) or layer.get("transposed", False)
        folds.append(
            Fold(
                named(layer["weight"]),
                named(layer.get("bias")),
                (factor, shift, mean, variance),
                batch_norm["eps"],
                int(transposed),
                layer.get("groups", 1),
            )
        )
    return folds


def recurrent(
    operator: Node, stored: Mapping[Node, str], tensors: Mapping[str, Array]
) -> list[list[Expected]]:
    """By layer, W, R and B of an LSTM, a GRU or an RNN, as ONNX's operators take them.

    Args:
        operator: An aten operator of the program; of others there is nothing.
        stored: Names of the checkpoint's tensors by node.
        tensors: Those tensors by name.
    """
    kind = operator_of(operator)
    if kind not in GATES:
        return []
    arguments = arguments_of(operator)
    names = [stored[node] for node in arguments["params"] if node in stored]
    directions = 2 if arguments["bidirectional"] else 1
    kinds = 4 if arguments["has_biases"] else 2
    size = directions * kinds
    layers = []
    for start in range(0, len(names), size):
        of_kind = [names[start : start + size][k::kinds] for k in range(kinds)]
        layer = [_stacked([[name] for name in parts], kind, tensors) for parts in of_kind[:2]]
        if arguments["has_biases"]:  # of the inputs, then of the hidden state
            pairs = [list(pair) for pair in zip(*of_kind[2:], strict=True)]
            layer.append(_stacked(pairs, kind, tensors))
        layers.append(layer)
    return layers


def _stacked(directions: list[list[str]], kind: str, tensors: Mapping[str, Array]) -> Expected:
    arrays = [
        np.concatenate([_reordered(tensors[name], kind) for name in names]) for names in directions
    ]
    sources = [name for names in directions for name in names]
    return Expected(" and ".join(sources), np.stack(arrays), None, frozenset(sources))


def _reordered(values: Array, kind: str) -> Array:
    gates = np.split(values, len(GATES[kind]))
    return np.concatenate([gates[gate] for gate in GATES[kind]])


def lone_norms(
    operators: Sequence[Node], stored: Mapping[Node, str], tensors: Mapping[str, Array]
) -> Iterator[Expected]:
    """Factor and shift of a BatchNorm that became a product and a sum."""
    for operator in operators:
        if operator_of(operator) not in BATCH_NORMS:
            continue
        arguments = arguments_of(operator)
        factor, shift, mean, variance = (
            stored.get(arguments[n], "") for n in ("weight", "bias", "running_mean", "running_var")
        )
        if variance:
            one = {"": np.ones_like(tensors[variance])}
            fold = Fold("", "", (factor, shift, mean, variance), arguments["eps"], 0)
            yield from fold.expected({**tensors, **one})


def combined(parts: Sequence[Expected]) -> Iterator[Expected]:
    """Tensors joined along their first axis, in order, and sums of two of one shape."""
    groups: dict[tuple[int, ...], list[Expected]] = {}
    for part in parts:
        if part.unit is None and part.values.ndim and np.issubdtype(part.values.dtype, np.floating):
            groups.setdefault(part.values.shape[1:], []).append(part)
    for group in groups.values():
        for count in range(2, len(group) + 1):
            for start in range(len(group) - count + 1):
                chosen = group[start : start + count]
                sources = frozenset().union(*(part.sources for part in chosen))
                name = " and ".join(part.name for part in chosen)
                yield Expected(name, np.concatenate([p.values for p in chosen]), None, sources)
        for i, first in enumerate(group):
            for second in group[i + 1 :]:
                if first.values.shape == second.values.shape:
                    yield _sum(first, second)


def _sum(first: Expected, second: Expected) -> Expected:
    one, other = (part.values.astype(np.float64) for part in (first, second))
    sources = first.sources | second.sources
    unit = _at_least(np.abs(one) + np.abs(other))
    return Expected(f"{first.name} + {second.name}", one + other, unit, sources)


def scaled(part: Expected, factors: Sequence[float]) -> Iterator[Expected]:
    """A tensor times or over a number of the code."""
    values = part.values.astype(np.float64)
    for factor in {f for f in factors if np.isfinite(f) and f not in (0, 1)}:
        times, over = values * factor, values / factor
        yield Expected(f"{part.name} x {factor:g}", times, _at_least(times), part.sources)
        yield Expected(f"{part.name} / {factor:g}", over, _at_least(over), part.sources)


def cut(part: Expected, size: int) -> Iterator[Expected]:
    """Equal parts of a tensor along its first axis, each of so many numbers."""
    values = part.values
    if (
        part.unit is not None
        or values.ndim == 0
        or not 0 < size < values.size
        or values.size % size
    ):
        return
    pieces = values.size // size
    if len(values) % pieces == 0:
        rows = len(values) // pieces
        for start in range(0, len(values), rows):
            name = f"{part.name}[{start}:{start + rows}]"
            yield Expected(name, values[start : start + rows], None, frozenset([name]))


def _at_least(values: Array) -> Array:
    """Sizes of numbers as units of their errors: what is exactly zero must stay so."""
    return np.maximum(np.abs(values), np.finfo(np.float32).tiny)


def computed(name: str, double: Array, single: Array, sources: frozenset[str]) -> Expected:
    """What a program computes from its parameters alone.

    The unit lets PyTorch's own float32 result pass: where that is off by more than a few roundings
    of the value itself, as in sums, the error is a share of the largest value.
    """
    own = _at_least(double)
    error = np.abs(single.astype(np.float64) - double)
    finite = np.isfinite(double)
    if np.any(error[finite] > FEW_ROUNDINGS * own[finite]):
        largest = max(
            float(np.abs(double[finite]).max()), float(error[finite].max()) / FEW_ROUNDINGS
        )
        own = np.full(double.shape, largest)
    return Expected(name, double, own, sources)


def seen_as(found: Array, shape: tuple[int, ...], *, transposed: bool | None) -> Array | None:
    """A file's tensor in the shape of the checkpoint's; None if it cannot be that one.

    Args:
        found: The file's.
        shape: The checkpoint's.
        transposed: See ``operators.is_transposed``; None: only axes of one may come and go.
    """
    if transposed and found.ndim > 1:
        found = np.swapaxes(found, -1, -2)
    if found.shape == shape:
        return found
    if found.size == 1 == int(np.prod(shape)) or _without_ones(found.shape) == _without_ones(shape):
        return found.reshape(shape)
    if int(np.prod(shape)) == 1 and found.size and np.all(found == found.flat[0]):
        return found.ravel()[:1].reshape(shape)  # one number for all channels
    return None


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in shape if axis != 1)
