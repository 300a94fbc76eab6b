"""The forms that a checkpoint's tensors may take in a file: folded, stacked, cut, joined, summed.

Every form is computed from the checkpoint's tensors, in float64 if numbers are changed and not only
moved. To allow another form, add a function here and yield it in ``trace``.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch.fx import Node

from export.bundle.metrics import Array
from export.bundle.tolerances import FOLD_ERROR
from export.model.program import Program, arguments_of, operator_of, shape_of, stored_nodes
from export.provenance.figures import is_float, largest_error, same_bits
from export.provenance.rules import BATCH_NORMS, CONVOLUTIONS

# ONNX's order of PyTorch's gates: i f g o becomes i o f g, and r z n becomes z r n.
GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}
TABLE = 2  # axes: samples, features
FEW_ROUNDINGS = 4 * 2.0**-24


@dataclass(frozen=True)
class Expected:
    """What the file must contain.

    Attributes:
        name: The name of the checkpoint's tensor, or a description of what was made from it.
        values: The values, in float64 if they were computed.
        unit: The unit of errors, one number for each value; None: the values must be bit-equal.
        sources: The checkpoint's tensors that it contains; empty for a constant of the code.
    """

    name: str
    values: Array
    unit: Array | None = None
    sources: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Match:
    """A file's tensor and a form that it may have.

    Attributes:
        expected: The form.
        seen: The file's tensor in the form's shape.
    """

    expected: Expected
    seen: Array

    @functools.cached_property
    def is_exact(self) -> bool:
        """Whether it is bit-equal, or within a few roundings if numbers were computed."""
        unit, values = self.expected.unit, self.expected.values
        if unit is not None:
            return largest_error(self.seen, values, unit) <= FOLD_ERROR
        with np.errstate(over="ignore"):
            return same_bits(self.seen, values.astype(self.seen.dtype))

    @functools.cached_property
    def share(self) -> float:
        """The share of numbers that are as expected: a fault changes few, another form most."""
        unit = FOLD_ERROR * (0 if self.expected.unit is None else self.expected.unit)
        with np.errstate(invalid="ignore"):
            alike = np.abs(self.seen.astype(np.float64) - self.expected.values) <= unit
        return float(np.mean(alike)) if alike.size else 0.0


def closest(array: Array, forms: Iterable[Expected], *, transposed: bool | None) -> Match | None:
    """The first form that an array matches, else the most similar one; None if no shape fits.

    Args:
        array: The file's tensor.
        forms: The forms that it may have.
        transposed: See ``rules.is_transposed``; None: only axes of size 1 may differ.
    """
    best: Match | None = None
    for form in forms:
        seen = seen_as(array, form.values.shape, transposed=transposed)
        if seen is None:
            continue
        match = Match(form, seen)
        if match.is_exact:
            return match
        if best is None or match.share > best.share:
            best = match
    return best


def seen_as(found: Array, shape: tuple[int, ...], *, transposed: bool | None) -> Array | None:
    """A file's tensor in the shape of the checkpoint's; None if the shapes do not fit."""
    if transposed and found.ndim > 1:
        found = np.swapaxes(found, -1, -2)
    if found.shape == shape:
        return found
    without_ones = [[axis for axis in axes if axis != 1] for axes in (found.shape, shape)]
    if without_ones[0] == without_ones[1]:
        return found.reshape(shape)
    if not without_ones[1] and found.size and np.all(found == found.flat[0]):
        return found.ravel()[:1].reshape(shape)  # one number for all channels
    return None


def at_least(values: Array) -> Array:
    """The numbers' sizes as units of their errors; the unit of 0 is so small that 0 must stay 0."""
    return np.maximum(np.abs(values), np.finfo(np.float32).tiny)


def computed(name: str, double: Array, single: Array, sources: frozenset[str]) -> Expected:
    """The expected value of a node that a program computes only from parameters.

    The unit is chosen so that PyTorch's own float32 result passes. If that is off by more than a
    few roundings of the value itself, as in sums, the unit is the largest value, or more.

    Args:
        name: The node's name.
        double: The node's value in float64.
        single: The value that PyTorch computes in float32; if it is not float, it must be equal.
        sources: The checkpoint's tensors that it is computed from.
    """
    if not is_float(single):
        return Expected(name, single, None, sources)
    own = at_least(double)
    error = np.abs(single.astype(np.float64) - double)
    finite = np.isfinite(double)
    if np.any(error[finite] > FEW_ROUNDINGS * own[finite]):
        largest = max(np.abs(double[finite]).max(), error[finite].max() / FEW_ROUNDINGS)
        own = np.full(double.shape, largest)
    return Expected(name, double, own, sources)


@dataclass(frozen=True)
class Fold:
    """A layer and the BatchNorm after it, as names of tensors ("" for one that does not exist).

    Attributes:
        weight: The layer's weight; "" for a BatchNorm alone, which is a product and a sum.
        norm: The BatchNorm's scale, shift, mean and variance.
        groups: The groups of a transposed convolution, whose weight has the output channels of a
            group on its second axis; 0 for other layers.
    """

    weight: str
    bias: str
    norm: tuple[str, str, str, str]
    epsilon: float
    groups: int = 0

    @functools.cached_property
    def tensors(self) -> set[str]:
        """The names of all tensors that are folded into one weight and one bias."""
        return {self.weight, self.bias, *self.norm} - {""}

    def expected(
        self, tensors: Mapping[str, Array], epsilon: float | None = None
    ) -> tuple[Expected, Expected]:
        """Weight and bias of one layer that computes the layer and the BatchNorm.

        Args:
            tensors: The checkpoint's tensors by name.
            epsilon: The epsilon to use instead of the BatchNorm's own.
        """
        factor, shift, mean, variance, before = (
            tensors[name].astype(np.float64) if name else np.float64(default)
            for name, default in zip((*self.norm, self.bias), (1, 0, 0, 1, 0), strict=True)
        )
        scale = factor / np.sqrt(variance + (epsilon or self.epsilon))
        layer = tensors[self.weight].astype(np.float64) if self.weight else np.ones_like(scale)
        groups, rows = (self.groups, len(layer) // self.groups) if self.groups else (1, 1)
        by_channel = layer.reshape(groups, rows, scale.size // groups, -1)
        weight = (by_channel * scale.reshape(groups, 1, -1, 1)).reshape(layer.shape)
        # The bias is a difference of larger numbers, and its error is a rounding error of these.
        terms = np.abs(shift) + (np.abs(before) + np.abs(mean)) * np.abs(scale)
        of_scale = {self.norm[0], self.norm[3]}
        name = self.weight or self.norm[2]
        return (
            Expected(name, weight, at_least(weight), frozenset({self.weight, *of_scale} - {""})),
            Expected(
                f"bias beside {name}",
                shift + (before - mean) * scale,
                at_least(terms),
                frozenset({self.bias, *self.norm[1:3], *of_scale} - {""}),
            ),
        )


def find_folds(program: Program, *, alone: bool = False) -> list[Fold]:
    """The BatchNorms of a program with the layers into which they can be folded.

    Args:
        program: The program; BatchNorms without stored statistics are left out.
        alone: Return all BatchNorms without the layers, each as a product and a sum.
    """
    stored, folds = stored_nodes(program), []
    for norm in program.graph.nodes:
        if operator_of(norm) not in BATCH_NORMS or not (alone or _may_take_in(norm.args[0])):
            continue
        of_norm, of_layer = arguments_of(norm), {} if alone else arguments_of(norm.args[0])
        names = ("weight", "bias", "running_mean", "running_var")
        factor, shift, mean, variance = (stored.get(of_norm[name], "") for name in names)
        weight, bias = (stored.get(of_layer.get(name), "") for name in names[:2])  # type: ignore[arg-type]
        transposed = "transpose" in operator_of(norm.args[0]) or of_layer.get("transposed", False)
        groups = of_layer.get("groups", 1) if transposed and not alone else 0
        if variance:
            tensors = (factor, shift, mean, variance)
            folds.append(Fold(weight, bias, tensors, of_norm["eps"], groups))
    return folds


def _may_take_in(layer: Node) -> bool:
    """Whether the BatchNorm after a layer can be folded into it: channels fit, no other user."""
    kind = operator_of(layer)
    by_channel = kind in CONVOLUTIONS or (kind == "linear" and len(shape_of(layer)) == TABLE)
    return by_channel and len(layer.users) == 1


def recurrent(
    operator: Node, stored: Mapping[Node, str], tensors: Mapping[str, Array]
) -> list[list[Expected]]:
    """W, R and B of each layer of an LSTM, a GRU or an RNN, as ONNX's operators take them.

    Args:
        operator: An aten operator of the program; the result is empty if it is not recurrent.
        stored: Names of the checkpoint's tensors by node.
        tensors: Those tensors by name.
    """
    kind = operator_of(operator)
    if kind not in GATES:
        return []
    arguments = arguments_of(operator)
    names = [stored[node] for node in arguments["params"] if node in stored]
    kinds = 4 if arguments["has_biases"] else 2  # W and R; the biases of the inputs and the state
    size = kinds * (2 if arguments["bidirectional"] else 1)
    if len(names) != size * arguments["num_layers"]:  # some are computed, or projections exist
        return []

    def stacked(directions: Iterable[Sequence[str]]) -> Expected:
        sources = [name for names in directions for name in names]
        gates = {name: np.split(tensors[name], len(GATES[kind])) for name in sources}
        arrays = [
            np.concatenate([gates[name][gate] for name in names for gate in GATES[kind]])
            for names in directions
        ]
        return Expected(" and ".join(sources), np.stack(arrays), None, frozenset(sources))

    layers = []
    for start in range(0, len(names), size):
        directions = [names[i : i + kinds] for i in range(start, start + size, kinds)]
        parts = [slice(0, 1), slice(1, 2), slice(2, 4)][: 1 + kinds // 2]
        layers.append([stacked([names[part] for names in directions]) for part in parts])
    return layers


def combined(parts: Sequence[Expected]) -> Iterator[Expected]:
    """Tensors joined along their first axis, in order, and sums of two of the same shape."""
    groups: dict[tuple[int, ...], list[Expected]] = {}
    for part in parts:
        if part.unit is None and part.values.ndim and is_float(part.values):
            groups.setdefault(part.values.shape[1:], []).append(part)
    for group in groups.values():
        for start in range(len(group)):
            for end in range(start + 2, len(group) + 1):
                chosen = group[start:end]
                sources = frozenset().union(*(part.sources for part in chosen))
                name = " and ".join(part.name for part in chosen)
                yield Expected(name, np.concatenate([p.values for p in chosen]), None, sources)
        for one, other in itertools.combinations(group, 2):
            if one.values.shape == other.values.shape:
                first, second = (part.values.astype(np.float64) for part in (one, other))
                unit = at_least(np.abs(first) + np.abs(second))
                name, sources = f"{one.name} + {other.name}", one.sources | other.sources
                yield Expected(name, first + second, unit, sources)


def cut(part: Expected, size: int) -> Iterator[Expected]:
    """Equal parts of a tensor along its first axis, each with ``size`` numbers."""
    values = part.values
    if part.unit is not None or not values.ndim or not 0 < size < values.size:
        return
    rows = size * len(values) // values.size
    if rows * values.size != size * len(values) or len(values) % rows:
        return
    for start in range(0, len(values), rows):
        name = f"{part.name}[{start}:{start + rows}]"
        sources = frozenset(f"{part.name}[{row}]" for row in range(start, start + rows))
        yield Expected(name, values[start : start + rows], None, sources)
