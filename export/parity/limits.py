"""Derive limits from the network: how large may the error of a correct float32 file be?

Outputs are limited by float32's own floor (``noise``). Values inside the graph are limited one by
one: each operator is computed in float64 from the file's own values before it, so that the errors
of earlier layers do not count. A weight off by 1% may be hidden by an output's rounding error, but
not at its own layer.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.fx import Node

from export.bundle.metrics import (
    ROUNDING_RMS,
    UNIT_ROUNDOFF,
    Array,
    Arrays,
    Floor,
    channel_largest,
    channel_rms,
    channel_scale,
    channelled,
    worst_ratio,
)
from export.bundle.tolerances import (
    DERIVED,
    LARGEST_DERIVED,
    LARGEST_DERIVED_RATIO,
    LARGEST_MULTIPLE,
    RMS_MULTIPLE,
    Tolerance,
    can_be_derived,
    tolerance_for,
)
from export.model.program import Program, named_nodes, operator_of
from export.parity.intermediates import RecordedFile, without_shared_infinities
from export.parity.interpreter import WideInterpreter, run_program
from export.parity.noise import (
    PRODUCTS,
    Disturbance,
    PermutedSums,
    SequentialSums,
    product_of,
    terms_of,
)
from export.parity.reference import Reference
from export.parity.schema import EDGE_CASES, Layer, LocalFigures, Row

# The model is served on another CPU with other kernels, whose error may be twice the one measured
# here. Other kernels of ONNX Runtime on one CPU gave at most 1.40 times (``tests.export.limits``).
SERVING_SLACK = 2.0
# A library's function may be off by more than one rounding of its value: ``noise.FUNCTIONS``.
FUNCTION_ROUNDINGS = 4
WEIGHT_CHANGE = 0.01


def derived(row: Tolerance, found: Sequence[Row], references: Sequence[Reference]) -> Tolerance:
    """Widen a row of the table as far as the network's own rounding errors require.

    The table's numbers are kept if they suffice, including slack for another CPU. Whether the file
    is correct is not decided here: its errors are compared with the floor, channel by channel and
    layer by layer, and no number is widened beyond the floor's own limit.

    Args:
        row: A variant's row; it is returned unchanged if the variant does not round like float32 on
            the CPU, or if its numbers are not the table's.
        found: The variant's measured rows.
        references: Outputs and floors of each block of samples.

    Edge cases widen nothing: these numbers apply to samples, including the golden ones.
    """
    found = [part for part in found if part.block != EDGE_CASES]
    references = [reference for reference in references if reference.block != EDGE_CASES]
    table = tolerance_for(row.variant, row.device)
    changed = row.scaled_error != table.scaled_error or row.rms_ratio != table.rms_ratio
    if changed or not can_be_derived(row) or not found or not references[0].floors:
        return row
    outputs = [output for part in found for output in part.outputs.values()]
    limits = [_limits(reference) for reference in references]
    scaled_limit, ratio_limit = (max(parts) for parts in zip(*limits, strict=True))
    scaled = max(
        *(output.scaled_error for output in outputs),
        *(part.batch_invariance or 0.0 for part in found),
    )
    ratio = max(output.rms_ratio for output in outputs)
    scaled = max(table.scaled_error or 0.0, min(SERVING_SLACK * scaled, scaled_limit))
    ratio = max(table.rms_ratio or 1.0, min(SERVING_SLACK * ratio, ratio_limit))
    if (scaled, ratio) == (table.scaled_error, table.rms_ratio):
        return row
    invariance = row.batch_invariance and max(row.batch_invariance, scaled)
    reason = (
        f"{DERIVED}{SERVING_SLACK:g} times this file's errors, which were within "
        f"{row.largest_multiple:g} (largest error) and {row.rms_multiple:g} (RMS) times "
        f"float32's own rounding error on this network; {row.reason}"
    )
    numbers = {"scaled_error": scaled, "rms_ratio": ratio, "batch_invariance": invariance}
    return row.model_copy(update=numbers | {"reason": reason})


def _limits(reference: Reference) -> tuple[float, float]:
    """The largest scaled error and RMS ratio that the floors allow, with the slack."""
    scaled, ratio = 0.0, 1.0
    for name, floor in reference.floors.items():
        fp64 = channelled(reference.fp64[name])
        rounding_C = ROUNDING_RMS * channel_rms(fp64)
        scale_C = channel_scale(fp64, np.zeros_like(fp64))
        # The sum of the file's error against float64 and eager's.
        allowed_C = (LARGEST_MULTIPLE + 1) * floor.largest_C
        scaled = max(scaled, worst_ratio(allowed_C[scale_C > 0], scale_C[scale_C > 0]))
        # Eager's error may be as small as one rounding of the correct output.
        ratio = max(ratio, worst_ratio(floor.rms_C[rounding_C > 0], rounding_C[rounding_C > 0]))
    return (
        min(SERVING_SLACK * scaled, LARGEST_DERIVED),
        min(SERVING_SLACK * RMS_MULTIPLE * ratio, LARGEST_DERIVED_RATIO),
    )


class LocalCheck:
    """A program's operators, each to be compared with the value of the same name in a file.

    The limits come from the correct file's own values; mutants are compared with the same limits.

    Attributes:
        floors: Float32's own error in each operator.
    """

    def __init__(
        self, program: Program, outputs: list[str], inputs: Arrays, model: onnx.ModelProto
    ) -> None:
        """Compute the floor of each operator.

        Args:
            program: A program whose node names are the names of the file's values.
            outputs: The file's outputs, in order.
            inputs: A few samples.
            model: The correct file, in float32.
        """
        self._file = RecordedFile(model, inputs)
        honest = self._file.values
        self._names = {node.name: name for name, node in named_nodes(program, outputs).items()}
        exact = _Forced(program, self._names, honest, double=True)
        run_program(exact, inputs)
        self._exact, self._forced = exact.values, exact.forced
        self._bounds, self._effects = exact.bounds, exact.effects
        self.floors: dict[str, Floor] = {}
        for disturbance in (None, PermutedSums(0), SequentialSums(0), SequentialSums(1)):
            rounded = _Forced(program, self._names, honest, double=False, disturbance=disturbance)
            run_program(rounded, inputs)
            for name, values in rounded.values.items():
                found, true = without_shared_infinities(values, exact.values[name])
                floor = Floor.of(found, true, 0)
                earlier = self.floors.get(name)
                self.floors[name] = floor if earlier is None else floor.or_worse(earlier)
        for name in exact.others & self.floors.keys():
            self.floors[name] = self.floors[name].or_worse(_least(exact.values[name]))

    def figures(self, model: onnx.ModelProto) -> dict[str, LocalFigures]:
        """The figures of each operator of the correct file or of a mutant, by its value's name.

        Each operator is given the correct file's values before it, so that its error is its own.
        The float64 values are therefore valid for every mutant, of which only the nodes that differ
        need to be run.
        """
        return self._honest | self._figures(self._file.changed_values(model, self._forced))

    @cached_property
    def _honest(self) -> dict[str, LocalFigures]:
        return self._figures(self._file.values)

    def _figures(self, values: Arrays) -> dict[str, LocalFigures]:
        """The figures of those values whose operator has a known floor."""
        by_name = {}
        for node, name in self._names.items():
            found = values.get(name)
            if found is None or node not in self._exact or node not in self.floors:
                continue
            true = self._exact[node]
            if found.shape == true.shape and true.ndim > 0 and true.size:
                by_name[name] = self._figures_of(node, found, true)
        return by_name

    def _figures_of(self, node: str, found: Array, true: Array) -> LocalFigures:
        found, true = without_shared_infinities(found, true)
        error = np.abs(channelled(found) - channelled(true))
        error = np.where(np.isfinite(error), error, np.inf)
        floor, bound = self.floors[node], self._bounds.get(node)
        effect = self._effects.get(node)
        return LocalFigures(
            rms=worst_ratio(channel_rms(error), floor.rms_C),
            largest=worst_ratio(channel_largest(error), floor.largest_C),
            bound=None if bound is None else worst_ratio(error, channelled(bound)),
            visible=None if effect is None else _visible(channelled(effect), floor),
        )


class _Forced(WideInterpreter):
    """Runs a program, replacing each value by the file's value of the same name, if there is one.

    Attributes:
        values: What the program's own operators gave, before they were replaced.
        bounds: gamma_n * sum |a| |b| of the products, in float64.
        effects: How a weight off by 1% changes the products.
        others: Names of nodes that are not products.
        forced: The names of the file's values that replaced the program's.

    A value that depends on complex ones is not compared with its operator. A file has no complex
    values that could replace them, and ONNX computes a Fourier transform as a sum, PyTorch as an
    FFT.
    """

    def __init__(
        self,
        program: Program,
        names: dict[str, str],
        recorded: Arrays,
        *,
        double: bool,
        disturbance: Disturbance | None = None,
    ) -> None:
        super().__init__(program, double=double)
        self._names, self._recorded = names, recorded
        self._disturbance = disturbance
        self._constant: set[Node] = set()
        self._complex: set[Node] = set()
        self.values: Arrays = {}
        self.bounds: Arrays = {}
        self.effects: Arrays = {}
        self.others: set[str] = set()
        self.forced: set[str] = set()

    def run_node(self, n: Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "get_attr" or (
            n.op == "call_function"
            and n.all_input_nodes
            and all(source in self._constant for source in n.all_input_nodes)
        ):
            self._constant.add(n)
        if self._disturbance is not None and n.op == "call_function":
            result = self._disturbance(n, args, kwargs)
        else:
            result = super().run_node(n)
        behind = any(source in self._complex for source in n.all_input_nodes)
        if isinstance(result, Tensor) and (result.is_complex() or behind):
            self._complex.add(n)
        if n.op != "call_function" or not _is_float(result) or result.ndim == 0:
            return result
        recorded = self._recorded.get(self._names.get(n.name, ""))
        if recorded is not None and recorded.shape != result.shape:
            recorded = None
        if recorded is not None:
            self._complex.discard(n)
        if recorded is None or not behind:
            self._note(n, args, kwargs, result, matched=recorded is not None)
        if recorded is None:
            return result
        self.forced.add(self._names[n.name])
        return torch.from_numpy(recorded.copy()).to(result.dtype)

    def _note(
        self,
        node: Node,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Tensor,
        *,
        matched: bool,
    ) -> None:
        name = operator_of(node)
        if matched or name in PRODUCTS:
            self.values[node.name] = result.detach().resolve_conj().numpy().copy()
        if name in PRODUCTS and self.double:
            self._note_product(node, args, kwargs, matched=matched)
        elif name not in PRODUCTS:
            self.others.add(node.name)

    def _note_product(
        self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], *, matched: bool
    ) -> None:
        if matched and all(
            source in self._constant or source.op == "placeholder" or source.name in self.values
            for source in node.all_input_nodes
        ):
            rounds = terms_of(node, args) * UNIT_ROUNDOFF
            gamma = rounds / (1 - rounds)
            self.bounds[node.name] = gamma * product_of(node, args, kwargs, torch.abs).numpy()
        position = PRODUCTS[operator_of(node)][1]
        source = node.args[position]
        if isinstance(source, Node) and source in self._constant:
            changed = list(args)
            changed[position] = _one_change(args[position])
            without_bias = [
                None if i > position and _is_float(value) else value
                for i, value in enumerate(changed)
            ]
            if operator_of(node) in ("addmm", "baddbmm"):
                without_bias[0] = torch.zeros_like(args[0])
            effect = node.target(*without_bias, **kwargs)  # type: ignore[operator]
            self.effects[node.name] = effect.numpy()


def is_float32(model: onnx.ModelProto) -> bool:
    """Whether none of a file's numbers has reduced precision."""
    quantized = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    half = onnx.TensorProto.FLOAT16
    return not quantized and all(part.data_type != half for part in model.graph.initializer)


def with_local(layers: tuple[Layer, ...], local: Mapping[str, LocalFigures]) -> tuple[Layer, ...]:
    """The layers with the figures of their own operators."""
    return tuple(layer.model_copy(update={"local": local.get(layer.value)}) for layer in layers)


def _one_change(weight: Tensor) -> Tensor:
    """1% of one medium-sized weight for each index of the first axis; all else is 0."""
    rows = weight.reshape(len(weight), -1)
    position_R1 = rows.abs().argsort(dim=1)[:, rows.shape[1] * 3 // 4, None]
    change = torch.zeros_like(rows)
    change.scatter_(1, position_R1, WEIGHT_CHANGE * rows.gather(1, position_R1))
    return change.reshape(weight.shape)


def _visible(effect: Array, floor: Floor) -> float:
    return max(
        worst_ratio(channel_largest(np.abs(effect)), LARGEST_MULTIPLE * floor.largest_C),
        worst_ratio(channel_rms(effect), RMS_MULTIPLE * floor.rms_C),
    )


def _least(values: Array) -> Floor:
    """The least floor of a function: a few roundings of each channel's largest value.

    Exactly rounded operators get the same floor, but another check requires them to be bit-equal.
    """
    rounded_C = FUNCTION_ROUNDINGS * UNIT_ROUNDOFF * channel_largest(np.abs(channelled(values)))
    return Floor(rounded_C, rounded_C, np.zeros(0))


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
