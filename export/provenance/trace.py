"""Trace a float32 file's tensors and attributes to the program; see the package's docstring.

``check_weights`` traces an ONNX file, ``check_frozen`` frozen TorchScript, whose constants have
lost their names and places, so that the whole file is one region.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from torch.fx import Node

from export.bundle.metrics import Array, Arrays
from export.model.program import Program, operator_of, shape_of
from export.provenance import forms
from export.provenance.checkpoint import Checkpoint
from export.provenance.figures import Outcome, WeightFigures, is_float, same_bits, where
from export.provenance.forms import Expected, Match, closest, seen_as
from export.provenance.regions import Region, Use, split_regions, stored_tensors
from export.provenance.rules import (
    BATCH_NORMS,
    PRODUCTS,
    WITHOUT_FURTHER_NUMBERS,
    attribute_of,
    equal_setting,
    expected_attributes,
    inputs_at,
    is_transposed,
    own_numbers,
    stands_for,
    stated,
)

MANY_TENSORS = 16  # in one region: beyond this, sums and joins are not tried
HALF = 0.5  # if more of a tensor's numbers are equal, it is that tensor with a fault
RECURRENT = {"LSTM", "GRU", "RNN"}
# Operators that an ONNX node may absorb without a trace in its own arguments.
BESIDE = {*BATCH_NORMS, "sym_size", "clone", "alias", "detach", "dropout", "contiguous"}


def check_weights(model: onnx.ModelProto, program: Program) -> WeightFigures:
    """Trace a float32 ONNX model's tensors and attributes to the checkpoint.

    Args:
        model: A model from ``export.convert.onnx_export``, or a changed copy of one.
        program: ``OnnxExport.program``, which has the module's own tensors, and whose nodes have
            the names of the model's values.
    """
    return _trace(split_regions(model, program), stored_tensors(model), _checkpoint(program))


def check_frozen(constants: Arrays, program: Program) -> WeightFigures:
    """Trace the constants of a frozen TorchScript module to the checkpoint's tensors.

    Args:
        constants: From ``state.frozen_constants``.
        program: As for ``check_weights``.
    """
    uses = tuple(Use(onnx.NodeProto(output=[name]), -1, name) for name in constants)
    region = Region("", (), tuple(program.graph.nodes), uses)
    return _trace([region], constants, _checkpoint(program))


@functools.lru_cache(maxsize=2)
def _checkpoint(program: Program) -> Checkpoint:
    return Checkpoint(program)


@dataclass
class _Place:
    """A stored tensor as a node's input; untraced if it has neither a match nor a problem."""

    use: Use
    array: Array
    match: Match | None = None
    problem: str = ""


Places = dict[tuple[str, int, str], _Place]
Settings = dict[tuple[str, str], str | None]
"""Attributes and integer inputs by node and name: "" as expected, a problem, or None: untraced."""


def _trace(regions: list[Region], stored: Arrays, checkpoint: Checkpoint) -> WeightFigures:
    places: Places = {}
    settings: Settings = {}
    outcome = Outcome()
    for region in regions:
        tracer = _RegionTracer(region, checkpoint)
        tracer.trace_tensors(places, stored)
        tracer.trace_attributes(settings)
    by_name: dict[str, list[_Place]] = {}
    for place in places.values():
        if is_float(place.array):
            by_name.setdefault(place.use.name, []).append(place)
        else:
            key = place.use.node.output[0], f"input {place.use.slot}"
            settings[key] = place.problem or (None if place.match is None else "")
    for name, used in by_name.items():
        _count_tensor(name, used, outcome)
    _count_missing(regions, checkpoint, places, settings, outcome)
    for setting in settings.values():
        outcome.counts["settings"] += setting == ""
        outcome.counts["settings_untraced"] += setting is None
        outcome.problems += [setting] if setting else []
    return outcome.figures()


def _count_tensor(name: str, places: list[_Place], outcome: Outcome) -> None:
    """Count a tensor of the file, which is traced if it is traced at all its places."""
    size = places[0].array.size
    outcome.counts["consumed"] += size
    problems = [place.problem for place in places if place.problem]
    matches = [place.match for place in places if place.match is not None]
    outcome.problems += problems
    if problems:
        return
    if len(matches) < len(places):
        outcome.counts["untraced"] += size
        return
    kind = "equal"
    for match in matches:
        expected = match.expected
        if expected.unit is not None:
            kind = "folded"
            label = name if name in expected.sources else f"{name} ({expected.name})"
            outcome.note(label, match.seen, expected.values, expected.unit)
    if any(match.expected.sources for match in matches):
        outcome.counts[kind] += 1
    else:
        outcome.counts["constants"] += size


def _count_missing(
    regions: list[Region],
    checkpoint: Checkpoint,
    places: Places,
    settings: Settings,
    outcome: Outcome,
) -> None:
    """Count or report tensors of the checkpoint to which no tensor of the file was traced."""
    claimed, by_name = _sources(places.values()), checkpoint.tensors.keys()
    is_frozen = any(not region.nodes for region in regions)
    blamed = " ".join(outcome.problems)
    untraced = {key for key, p in places.items() if p.match is None and not p.problem}
    # An untraced tensor of the same region may contain it; that one is counted.
    open_nodes = {
        node
        for region in regions
        if any(use.key in untraced for use in region.uses)
        for node in region.operators
    }
    for node, name in checkpoint.names.items():
        values = checkpoint.tensors[name]
        rows = len(values) if values.ndim else 1
        if name in claimed or all(f"{name}[{row}]" in claimed for row in range(rows)):
            continue
        # Freezing keeps one of several equal tensors.
        is_copied = is_frozen and any(
            same_bits(values, checkpoint.tensors[other]) for other in claimed & by_name
        )
        if is_copied or checkpoint.changes_nothing(node):
            outcome.counts["equal"] += 1
        elif not is_float(values):
            settings[name, ""] = None
        elif node not in open_nodes and name not in blamed:
            outcome.problems.append(f"{name} is not in the file")


def _sources(places: Iterable[_Place]) -> frozenset[str]:
    return frozenset().union(*(p.match.expected.sources for p in places if p.match is not None))


class _RegionTracer:
    """Traces the places of one region to the checkpoint's values in that region."""

    def __init__(self, region: Region, checkpoint: Checkpoint) -> None:
        self._region, self._checkpoint = region, checkpoint
        tensors, names = checkpoint.tensors, checkpoint.names
        self._own = {names[node]: node for node in region.operators if node in names}
        kept = any(node.op_type == "BatchNormalization" for node in region.nodes)
        folds = [f for f in checkpoint.folds if not kept and f.tensors <= self._own.keys()]
        self._folds = [fold.expected(tensors) for fold in folds if fold.weight]
        self._lone_norms = [fold.expected(tensors) for fold in folds if not fold.weight]
        self._recurrent_layers = [
            layer
            for operator in region.operators
            for layer in forms.recurrent(operator, names, tensors)
        ]

    def trace_tensors(self, places: Places, stored: Arrays) -> None:
        """Trace the stored tensors; those that another region has traced stay traced."""
        mine = []
        for use in self._region.uses:
            place = places.setdefault(use.key, _Place(use, stored[use.name]))
            mine.append(place)
            if place.match is None:
                self._trace_by_rule(place)
            if place.match is None and not place.problem:
                self._trace_by_form(place)
        claimed = _sources(mine)
        left_over = [name for name in self._own if name not in claimed]
        for place in mine:
            if place.match is None and not place.problem:
                place.problem = self._substituted(place, left_over)

    def trace_attributes(self, settings: Settings) -> None:
        """Trace the nodes' attributes; one region where an attribute is as expected is enough."""
        for node in self._region.nodes:
            rows = {op: expected_attributes(node, op) for op in self._region.operators}
            rows = {operator: row for operator, row in rows.items() if row}
            for name in sorted({*stated(node), *(name for row in rows.values() for name in row)}):
                found, key = attribute_of(node, name), (node.output[0], name)
                expected = [(row[name], op) for op, row in rows.items() if name in row]
                if settings.get(key) == "" or any(
                    equal_setting(name, found, value, len(shape_of(operator)))
                    for value, operator in expected
                ):
                    settings[key] = ""
                elif expected and self._must_be(node, list(rows)):
                    settings[key] = (
                        f"{name} of {node.name} ({node.op_type}) is {_shown(found)}, "
                        f"expected {_shown(expected[0][0])}"
                    )
                else:
                    settings.setdefault(key, None)

    def _trace_by_rule(self, place: _Place) -> None:
        """Compare the file's tensor with the arguments that the program has at the same place."""
        node, slot, name = place.use.node, place.use.slot, place.use.name
        rows = {op: inputs_at(node, slot, op) for op in self._region.operators}
        values = [value for row in rows.values() for value in row or ()]
        tests = [value for value in values if callable(value)]
        given = [self._checkpoint.expected(value) for value in values if not callable(value)]
        wanted = self._repacked(node, slot) or [e for e in given if e is not None]
        is_tested = bool(tests) and place.array.dtype == np.int64
        if is_tested:
            known = Expected("the program's arguments", place.array)
            wanted = [known] if any(test(place.array) for test in tests) else []
        transposed = is_transposed(node, slot, self._region.operators)
        match = closest(place.array, wanted, transposed=transposed)
        if match is not None and match.is_exact:
            place.match, place.problem = match, ""
            return
        ruled = [operator for operator, row in rows.items() if row is not None]
        if node.op_type not in RECURRENT and not self._must_be(node, ruled):
            return
        if match is not None and match.expected.unit is not None:
            place.match, place.problem = match, ""  # a computed value is judged by its error
        elif match is not None:
            place.problem = _differs(place.use, match)
        elif wanted:
            expected = "" if wanted[0].name == name else f" ({wanted[0].name})"
            shapes = f"{place.array.shape}, expected {wanted[0].values.shape}"
            place.problem = f"{name} has the shape {shapes}{expected}"
        elif is_tested:
            found = place.array.ravel().tolist()
            place.problem = (
                f"{name} of {node.name} ({node.op_type}) is {found}, not as in the program"
            )

    def _repacked(self, node: onnx.NodeProto, slot: int) -> list[Expected]:
        """The values of a recurrent layer or a fold at a place; empty if neither is there."""
        if node.op_type in RECURRENT:
            layers = self._recurrent_layers
            kind = [other for other in self._region.nodes if other.op_type == node.op_type]
            layer = layers[kind.index(node)] if len(layers) == len(kind) else []
            return layer[slot - 1 : slot] if slot > 0 else []
        if (node.op_type in PRODUCTS and slot > 0) or node.op_type == "Add":
            is_weight = slot == 1 and node.op_type in PRODUCTS
            return [weight if is_weight else bias for weight, bias in self._folds]
        return []

    def _trace_by_form(self, place: _Place) -> None:
        """Compare the file's tensor with all forms of the checkpoint's tensors in this region."""
        transposed = is_transposed(place.use.node, place.use.slot, self._region.operators)
        match = closest(place.array, self._forms(place.array), transposed=transposed)
        if match is not None and match.is_exact:
            place.match = match
        elif match is not None and match.expected.sources and match.share > HALF:
            place.problem = _differs(place.use, match)

    def _forms(self, array: Array) -> Iterator[Expected]:
        """Every form that a tensor of the region may take, the plain ones first."""
        operators, checkpoint = self._region.operators, self._checkpoint
        own = [checkpoint.expected(node) for node in self._own.values()]
        parts = [part for part in own if part is not None]
        yield from parts
        computed = [checkpoint.expected(op) for op in operators if op.op == "call_function"]
        yield from (part for part in computed if part is not None)
        yield from itertools.chain(*self._recurrent_layers, *self._folds, *self._lone_norms)
        if not is_float(array):
            return
        numbers = {number for operator in operators for number in own_numbers(operator)}
        yield from (Expected(f"{number:g}", np.asarray(number)) for number in numbers)
        for part in parts:
            yield from forms.cut(part, array.size)
        if len(parts) <= MANY_TENSORS:
            yield from forms.combined(parts)

    def _substituted(self, place: _Place, left_over: list[str]) -> str:
        """Describe the problem if an unclaimed tensor or a known number should be here; else ""."""
        # Freezing precomputes values by its own rules, so a tensor may be missing without a fault.
        for name in left_over if self._region.nodes else ():
            values = self._checkpoint.tensors[name]
            for transposed in (None, True):
                seen = seen_as(place.array, values.shape, transposed=transposed)
                if seen is not None and is_float(place.array) == is_float(values):
                    return _differs(place.use, Match(Expected(name, values), seen))
        operators = self._region.operators
        # A graph with a Cast was not simplified, and may compute with further numbers.
        plain = is_float(place.array) and place.use.node.op_type not in ("Cast", "CastLike")
        if not plain or not operators or not all(map(_has_known_numbers, operators)):
            return ""
        known = sorted({number for operator in operators for number in own_numbers(operator)})
        return (
            f"{place.use.name}, a constant of {place.use.node.name}, is "
            f"{', '.join(f'{n:.7g}' for n in np.unique(place.array)[:MANY_TENSORS])}; "
            f"the program's are {', '.join(f'{n:.7g}' for n in known) or 'none'}"
        )

    def _must_be(self, node: onnx.NodeProto, rows: list[Node]) -> bool:
        """Whether a node must obey its rule, because it cannot stand for any other operator.

        Args:
            node: A node of the ONNX graph.
            rows: The region's operators that have a rule for the node.
        """
        nodes = self._region.nodes
        kind = [other for other in nodes if other.op_type == node.op_type]
        others = [other for other in nodes if other.op_type != node.op_type]
        alone = len(kind) == 1 or self._region.value in node.output
        return (
            len(rows) == 1
            and alone
            and not any(
                operator.op == "call_function"
                and operator not in rows
                and not operator_of(operator).startswith("<built-in")
                and operator_of(operator) not in BESIDE
                and not self._checkpoint.is_known(operator)
                and not any(stands_for(other, operator) for other in others)
                for operator in self._region.operators
            )
        )


def _has_known_numbers(operator: Node) -> bool:
    return operator.op != "call_function" or operator_of(operator) in WITHOUT_FURTHER_NUMBERS


def _differs(use: Use, match: Match) -> str:
    expected, seen = match.expected, match.seen
    if not expected.sources and seen.size == 1:
        found = f"{seen.item():.7g}, expected {expected.values.item():.7g}"
        return f"{use.name}, a constant of {use.node.name} ({use.node.op_type}), is {found}"
    other = "the checkpoint" if expected.name == use.name else expected.name
    return f"{use.name} differs from {other}: {where(seen, expected.values)}"


def _shown(value: Any) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)
