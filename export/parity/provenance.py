"""Weight provenance: are a file's numbers the checkpoint's? Asks no sample, misses no unit.

Every tensor that a node of an ONNX file takes must be traced to the program's tensors at the same
place (``regions``): bit-equal, moved or computed by a known rule (``repack``), or a number of the
code (``operators``); likewise every attribute. Another value at a known place is a problem; what
no rule covers is counted, and samples alone prove it. A gate of samples alone overlooks a changed
weight that hardly matters for these samples; this one does not.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from torch import Tensor, nn
from torch.fx import Node

from export.bundle.metrics import Array, Arrays
from export.bundle.tolerances import FOLD_ERROR
from export.parity import repack
from export.parity.intermediates import operator_of
from export.parity.interpreter import Program
from export.parity.operators import (
    BATCH_NORMS,
    PRODUCTS,
    RECURRENT,
    SLOTS,
    arguments_at,
    arguments_of,
    attribute_of,
    brings_known_numbers,
    equal_setting,
    expected_attributes,
    expected_integers,
    is_transposed,
    own_numbers,
    rank_of,
    stands_for,
    stated,
)
from export.parity.regions import Constants, Region, Use, split_regions, stored_tensors
from export.parity.repack import Expected, Fold, find_folds
from export.parity.schema import WeightFigures

MANY_TENSORS = 16  # in one region: their sums and joins are not tried
HALF = 0.5  # of a tensor's numbers: with more of them alike, it is that tensor with a fault in it
# Operators that an ONNX node may swallow without a trace in its own arguments.
BESIDE = {*BATCH_NORMS, "sym_size", "clone", "alias", "detach", "dropout", "contiguous"}
# Arguments whose tensor is left out of a file where it changes nothing.
ADDENDS = {"bias", "running_mean"}
FACTORS = {"weight"}


def state_arrays(module: nn.Module) -> Arrays:
    """A module's tensors by name."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}


def check_weights(model: onnx.ModelProto, program: Program) -> WeightFigures:
    """Trace a float32 ONNX model's tensors and attributes to the checkpoint.

    Args:
        model: What ``export.convert.onnx_export`` made, or what became of it.
        program: ``OnnxExport.program``: it holds the module's own tensors, and its nodes bear the
            names of the model's values.
    """
    return _Tracing(stored_tensors(model), _checkpoint(program)).run(split_regions(model, program))


def frozen_constants(script: Any) -> Arrays:
    """The constants of a frozen TorchScript module, whose tensors have lost their names."""
    return {
        node.output().debugName(): node.t("value").detach().cpu().numpy()
        for node in script.graph.findAllNodes("prim::Constant", recurse=True)
        if node.hasAttribute("value") and node.kindOf("value") == "t"
    }


def check_frozen(constants: Arrays, program: Program) -> WeightFigures:
    """Trace the constants of a frozen TorchScript module to the checkpoint's tensors."""
    uses = tuple(Use(onnx.NodeProto(output=[name]), -1, name) for name in constants)
    region = Region("", (), tuple(program.graph.nodes), uses)
    return _Tracing(constants, _checkpoint(program)).run([region])


def program_arrays(program: Program) -> Arrays:
    """All tensors that a program holds by name, those among them that are not in its state."""
    kept = {**program.state_dict, **program.constants}
    return {n: t.detach().numpy() for n, t in kept.items() if isinstance(t, Tensor)}


def check_state(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> WeightFigures:
    """Compare a TorchScript module's or a program's tensors with the checkpoint's, by name."""
    outcome = Outcome()
    for name, expected in wanted.items():
        if name not in found:
            outcome.problems.append(f"{name} is not in the file")
        elif found[name].shape != expected.shape:
            outcome.problems.append(f"{name} is {found[name].shape}, expected {expected.shape}")
        elif not same_bits(found[name], expected):
            outcome.problems.append(
                f"{name} differs from the checkpoint: {where(found[name], expected)}"
            )
        else:
            outcome.equal += 1
            outcome.consumed += expected.size if np.issubdtype(expected.dtype, np.floating) else 0
    return outcome.figures()


@dataclass
class Outcome:
    """Collects what came of each tensor; the fields are those of ``WeightFigures``."""

    equal: int = 0
    folded: int = 0
    converted: int = 0
    constants: int = 0
    consumed: int = 0
    untraced: int = 0
    settings: int = 0
    settings_untraced: int = 0
    calibrated: int = 0
    error: float = 0.0
    worst: str = ""
    problems: list[str] = field(default_factory=list)

    def note(self, name: str, found: Array, expected: Array, unit: Array) -> None:
        """Keep an error if it is the largest so far."""
        error = largest_error(found, expected, unit)
        if not self.worst or error > self.error:
            self.error, self.worst = error, f"{name}{where(found, expected, unit)}"

    def figures(self) -> WeightFigures:
        """The sum of all."""
        return WeightFigures(**{**vars(self), "problems": tuple(self.problems)})


def same_bits(found: Array, expected: Array) -> bool:
    """Are two arrays equal, NaN beside NaN among it?"""
    floats = np.issubdtype(found.dtype, np.floating)
    return bool(np.array_equal(found, expected, equal_nan=floats))


def largest_error(found: Array, expected: Array, unit: Array) -> float:
    """The largest difference in units; infinite if a value is not finite on one side alone."""
    if not found.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        difference = np.abs(found.astype(np.float64) - expected) / unit
    difference = np.where(found == expected, 0.0, difference)
    return float(np.where(np.isfinite(difference), difference, np.inf).max())


def where(array: Array, expected: Array, unit: Array | float = 1.0) -> str:
    """The element that differs most, measured in its unit, with both values."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(array.astype(np.float64) - expected) / unit
    difference = np.where(array == expected, 0.0, difference)
    position = np.unravel_index(np.nan_to_num(difference, nan=np.inf).argmax(), array.shape)
    at = ", ".join(str(int(i)) for i in position)
    return f"[{at}] is {array[position]:.7g}, expected {expected[position]:.7g}"


@dataclass(frozen=True)
class Checkpoint:
    """What a program computes with.

    Attributes:
        tensors: Parameters, buffers and constants that are used, by name.
        nodes: Their names by the program's node.
    """

    tensors: Arrays
    nodes: dict[Node, str]
    constants: Constants
    folds: list[Fold]

    def expected(self, value: Any) -> Expected | None:
        """An argument of an operator as what must lie in the file; None: it depends on inputs."""
        if isinstance(value, int | float):
            return Expected(f"{value:g}", np.asarray(float(value)))
        if value in self.nodes:
            return self._tensor(self.nodes[value])
        found = self.constants.computed(value) if isinstance(value, Node) else None
        if found is None:
            return None
        double, single = found
        sources = self._sources(value)
        if not np.issubdtype(single.dtype, np.floating):
            return Expected(value.name, single, None, sources)
        return repack.computed(value.name, double, single, sources)

    def is_certain(self, region: Region, node: onnx.NodeProto, rows: list[Node]) -> bool:
        """Must a node be what a table's row says? Not if it may stand for something else.

        Args:
            region: Where the node is.
            node: Of the ONNX graph.
            rows: The region's operators that have a row for the node.
        """
        kind = [other for other in region.nodes if other.op_type == node.op_type]
        others = [
            operator
            for operator in region.operators
            if operator.op == "call_function"
            and operator not in rows
            and not operator_of(operator).startswith("<built-in")
            and operator_of(operator) not in BESIDE
            and not self.constants.is_known(operator)
            and not any(
                stands_for(other, operator)
                for other in region.nodes
                if other.op_type != node.op_type
            )
        ]
        alone = len(kind) == 1 or region.value in node.output
        return len(rows) == 1 and alone and not others

    def _tensor(self, name: str) -> Expected:
        return Expected(name, self.tensors[name], None, frozenset([name]))

    def _sources(self, node: Node) -> frozenset[str]:
        if node in self.nodes:
            return frozenset([self.nodes[node]])
        return frozenset().union(*(self._sources(n) for n in node.all_input_nodes))


@functools.lru_cache(maxsize=2)
def _checkpoint(program: Program) -> Checkpoint:
    constants = Constants(program)
    nodes = {node: name for node, name in constants.stored.items() if node.users}
    kept = {**program.state_dict, **program.constants}
    tensors = {name: kept[name].detach().cpu().numpy() for name in nodes.values()}
    return Checkpoint(tensors, nodes, constants, find_folds(program))


@dataclass
class _Use:
    """What is known of one stored tensor at one place, after the regions seen so far."""

    use: Use
    array: Array
    match: Expected | None = None
    seen: Array | None = None
    problem: str = ""


class _Tracing:
    """Traces the tensors and attributes of one file."""

    def __init__(self, found: Arrays, checkpoint: Checkpoint) -> None:
        self._found, self._checkpoint = found, checkpoint
        self._uses: dict[tuple[str, int, str], _Use] = {}
        self._settings: dict[tuple[str, str], str | None] = {}  # "": as expected, None: not traced
        self._claimed: set[str] = set()
        self._outcome = Outcome()

    def run(self, regions: list[Region]) -> WeightFigures:
        """Trace all regions and sum up."""
        for region in regions:
            _Place(region, self._checkpoint, self._found).trace(self._uses)
            self._trace_attributes(region)
        for used in self._uses.values():
            self._claimed |= used.match.sources if used.match else frozenset()
        self._count_tensors()
        self._count_missing(regions)
        for outcome in self._settings.values():
            self._outcome.settings += outcome == ""
            self._outcome.settings_untraced += outcome is None
            self._outcome.problems += [outcome] if outcome else []
        return self._outcome.figures()

    def _count_tensors(self) -> None:
        by_name: dict[str, list[_Use]] = {}
        for used in self._uses.values():
            if np.issubdtype(used.array.dtype, np.floating):
                by_name.setdefault(used.use.name, []).append(used)
            else:
                known = used.match is not None
                place = (used.use.node.output[0], f"input {used.use.slot}")
                self._settings[place] = used.problem or ("" if known else None)
        for name, uses in by_name.items():
            self._outcome.consumed += uses[0].array.size
            problems = list(dict.fromkeys(used.problem for used in uses if used.problem))
            self._outcome.problems += problems
            if problems or any(used.match is None for used in uses):
                self._outcome.untraced += 0 if problems else uses[0].array.size
                continue
            for used in uses:
                assert used.match is not None and used.seen is not None  # noqa: S101, PT018
                if used.match.unit is not None:
                    label = name if name in used.match.sources else f"{name} ({used.match.name})"
                    self._outcome.note(label, used.seen, used.match.values, used.match.unit)
            matches = [used.match for used in uses if used.match]
            if not any(match.sources for match in matches):
                self._outcome.constants += uses[0].array.size
            elif any(match.unit is not None for match in matches):
                self._outcome.folded += 1
            else:
                self._outcome.equal += 1

    def _count_missing(self, regions: list[Region]) -> None:
        """Tensors of the checkpoint that no tensor of the file was traced to."""
        open_nodes = {
            node
            for region in regions
            if any(
                self._uses[_key(use)].match is None and not self._uses[_key(use)].problem
                for use in region.uses
            )
            for node in region.operators
        }
        blamed = " ".join(self._outcome.problems)
        for node, name in self._checkpoint.nodes.items():
            values = self._checkpoint.tensors[name]
            if name in self._claimed or self._is_cut_up(name) or not values.size:
                continue
            if _changes_nothing(node, values) or self._is_copied(values):
                self._outcome.equal += 1
            elif not np.issubdtype(values.dtype, np.floating):
                self._settings[name, ""] = None
            elif node not in open_nodes and name not in blamed:
                self._outcome.problems.append(f"{name} is not in the file")
            elif node in open_nodes:
                pass  # an untraced tensor of its region may hold it: counted there

    def _is_copied(self, values: Array) -> bool:
        """Is it, bit for bit, another tensor that is in the file? Freezing keeps one of several."""
        tensors = self._checkpoint.tensors
        claimed = (tensors[name] for name in self._claimed if name in tensors)
        return any(other.shape == values.shape and same_bits(other, values) for other in claimed)

    def _is_cut_up(self, name: str) -> bool:
        pieces = [
            c.removeprefix(f"{name}[")[:-1] for c in self._claimed if c.startswith(f"{name}[")
        ]
        rows = {row for piece in pieces for row in range(*map(int, piece.split(":")))}
        return len(rows) == len(self._checkpoint.tensors[name]) if pieces else False

    def _trace_attributes(self, region: Region) -> None:
        for node in region.nodes:
            known = {op: expected_attributes(node, op) for op in region.operators}
            known = {op: row for op, row in known.items() if row is not None}
            rows = [(row, rank_of(op)) for op, row in known.items() if row is not None]
            certain = self._checkpoint.is_certain(region, node, list(known))
            for name in sorted({*stated(node), *(n for row, _ in rows for n in row)}):
                found, key = attribute_of(node, name), (node.output[0], name)
                values = [(row[name], rank) for row, rank in rows if name in row]
                if self._settings.get(key) == "" or any(
                    equal_setting(name, found, value, rank) for value, rank in values
                ):
                    self._settings[key] = ""
                elif values and certain:
                    self._settings[key] = (
                        f"{name} of {node.name} ({node.op_type}) is {_shown(found)}, "
                        f"expected {_shown(values[0][0])}"
                    )
                else:
                    self._settings.setdefault(key, None)


def _key(use: Use) -> tuple[str, int, str]:
    return use.node.output[0], use.slot, use.name


def _shown(value: Any) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _changes_nothing(node: Node, values: Array) -> bool:
    """Is a tensor, everywhere it is used, a sum's 0 or a product's 1?"""

    def neutral(user: Node) -> bool:
        names = {name for name, value in arguments_of(user).items() if value is node}
        kind = operator_of(user)
        if kind in ("add", "sub"):
            return not values.any() and (kind == "add" or names == {"other"})
        if kind in ("mul", "div"):
            return bool(np.all(values == 1)) and (kind == "mul" or names == {"other"})
        if names <= ADDENDS:
            return not values.any()
        return names <= FACTORS and "norm" in kind and bool(np.all(values == 1))

    return all(neutral(user) for user in node.users)


class _Place:
    """A region, and what the checkpoint has there."""

    def __init__(self, region: Region, checkpoint: Checkpoint, found: Arrays) -> None:
        self._region, self._checkpoint, self._found = region, checkpoint, found
        self._own = {
            checkpoint.nodes[node]: node for node in region.operators if node in checkpoint.nodes
        }
        normalised = any(node.op_type == "BatchNormalization" for node in region.nodes)
        self._folds = [
            fold for fold in checkpoint.folds if fold.tensors <= set(self._own) and not normalised
        ]

    def trace(self, uses: dict[tuple[str, int, str], _Use]) -> None:
        """Trace the region's tensors; what another region has traced already stays so."""
        mine = []
        for use in self._region.uses:
            used = uses.setdefault(_key(use), _Use(use, self._found[use.name]))
            mine.append(used)
            if used.match is None:
                self._trace_at_slot(used)
            if used.match is None and not used.problem:
                self._trace_by_value(used)
        claimed = frozenset().union(*(used.match.sources for used in mine if used.match))
        free = [name for name in self._own if name not in claimed]
        for used in mine:
            if used.match is None and not used.problem:
                used.problem = self._substitute(used, free)

    def _trace_at_slot(self, used: _Use) -> None:
        """The file's tensor against the arguments that the program has at this very place."""
        node, slot = used.use.node, used.use.slot
        if used.array.dtype == np.int64 and self._trace_integers(used):
            return
        candidates = self._candidates(used.use)
        transposed = is_transposed(node, slot, self._region.operators)
        best, error = None, np.inf
        for candidate in candidates:
            seen, found = _compare(used.array, candidate, transposed=transposed)
            if seen is not None and (best is None or found < error):
                best, error, used.seen = candidate, found, seen
        if best is not None and error <= FOLD_ERROR:
            used.match, used.problem = best, ""
            return
        table = SLOTS.get(node.op_type, {})
        rows = [op for op in self._region.operators if operator_of(op) in table]
        certain = self._checkpoint.is_certain(self._region, node, rows)
        if not candidates or not (certain or node.op_type in RECURRENT):
            return
        if best is None or used.seen is None:
            expected = candidates[0]
            used.problem = (
                f"{used.use.name} is {used.array.shape}, expected {expected.values.shape}"
                + ("" if expected.name == used.use.name else f" ({expected.name})")
            )
        elif best.unit is not None:
            used.match, used.problem = best, ""  # computed: judged by the size of its error
        else:
            used.problem = _differs(used, best, used.seen)

    def _trace_integers(self, used: _Use) -> bool:
        node, slot = used.use.node, used.use.slot
        tests = {op: expected_integers(node, slot, op) for op in self._region.operators}
        rows = [op for op, test in tests.items() if test is not None]
        if any(test(used.array) for test in tests.values() if test is not None):
            used.match = Expected("the program's arguments", used.array)
        elif self._checkpoint.is_certain(self._region, node, rows):
            found = used.array.ravel().tolist()
            used.problem = f"{used.use.name} of {node.name} ({node.op_type}) is {found}"
        return used.match is not None or bool(used.problem)

    def _candidates(self, use: Use) -> list[Expected]:
        """What may be at a place, as the tables say."""
        node, slot, checkpoint = use.node, use.slot, self._checkpoint
        operators = self._region.operators
        if node.op_type in RECURRENT:
            layers = self._recurrent_layers()
            kind = [other for other in self._region.nodes if other.op_type == node.op_type]
            if len(layers) != len(kind):
                return []
            layer = layers[kind.index(node)]
            return [layer[slot - 1]] if 1 <= slot <= len(layer) else []
        if self._folds and ((node.op_type in PRODUCTS and slot > 0) or node.op_type == "Add"):
            position = 0 if slot == 1 and node.op_type in PRODUCTS else 1
            return [fold.expected(checkpoint.tensors)[position] for fold in self._folds]
        found = [checkpoint.expected(value) for value in arguments_at(node, slot, operators)]
        return [expected for expected in found if expected is not None]

    def _recurrent_layers(self) -> list[list[Expected]]:
        checkpoint = self._checkpoint
        return [
            layer
            for operator in self._region.operators
            for layer in repack.recurrent(operator, checkpoint.nodes, checkpoint.tensors)
        ]

    def _trace_by_value(self, used: _Use) -> None:
        """The file's tensor against all that the checkpoint has in this region."""
        transposed = is_transposed(used.use.node, used.use.slot, self._region.operators)
        alike, most = "", HALF
        for candidate in self._forms(used.array):
            seen, error = _compare(used.array, candidate, transposed=transposed)
            if seen is None:
                continue
            if error <= FOLD_ERROR:
                used.match, used.seen, used.problem = candidate, seen, ""
                return
            share = _share_alike(seen, candidate) if candidate.sources else 0.0
            if share > most:
                alike, most = _differs(used, candidate, seen), share
        used.problem = alike

    def _forms(self, array: Array) -> Iterator[Expected]:
        """Every form that a tensor of the region may take, the plain ones first."""
        operators, checkpoint = self._region.operators, self._checkpoint
        plain = [checkpoint.expected(checkpoint_node) for checkpoint_node in self._own.values()]
        parts = [part for part in plain if part is not None]
        yield from parts
        for operator in operators:
            if operator.op == "call_function" and operator not in checkpoint.nodes:
                found = checkpoint.expected(operator)
                if found is not None:
                    yield found
        for layer in self._recurrent_layers():
            yield from layer
        for fold in self._folds:
            yield from fold.expected(checkpoint.tensors)
        yield from repack.lone_norms(operators, checkpoint.nodes, checkpoint.tensors)
        if not np.issubdtype(array.dtype, np.floating):
            return
        numbers = [number for operator in operators for number in own_numbers(operator)]
        yield from (Expected(f"{number:g}", np.asarray(number)) for number in numbers)
        for part in parts:
            yield from repack.cut(part, array.size)
            if part.values.size == array.size:
                yield from repack.scaled(part, numbers)
        if len(parts) <= MANY_TENSORS:
            yield from repack.combined(parts)

    def _substitute(self, used: _Use, free: list[str]) -> str:
        """A problem if it is known what should be here: a tensor that is nowhere else, a number."""
        # Freezing computes in advance by rules of its own: a tensor may be gone with no fault.
        for name in free if self._region.nodes else ():
            values = self._checkpoint.tensors[name]
            seen = repack.seen_as(used.array, values.shape, transposed=None)
            if seen is None and used.array.ndim > 1:
                seen = repack.seen_as(used.array, values.shape, transposed=True)
            kinds = [np.issubdtype(a.dtype, np.floating) for a in (used.array, values)]
            if seen is not None and kinds[0] == kinds[1]:
                return _differs(used, Expected(name, values), seen)
        operators = self._region.operators
        floats = np.issubdtype(used.array.dtype, np.floating)
        # Behind a Cast lies a graph that nobody has simplified: it computes with more numbers.
        plain = floats and used.use.node.op_type not in ("Cast", "CastLike")
        if plain and operators and all(brings_known_numbers(operator) for operator in operators):
            known = sorted({number for operator in operators for number in own_numbers(operator)})
            found = ", ".join(f"{number:.7g}" for number in np.unique(used.array)[:MANY_TENSORS])
            return (
                f"{used.use.name}, a constant of {used.use.node.name}, is {found}; "
                f"the program has {', '.join(f'{n:.7g}' for n in known) or 'none'} there"
            )
        return ""


def _compare(
    array: Array, expected: Expected, *, transposed: bool | None
) -> tuple[Array | None, float]:
    """The file's tensor in the expected shape (None: it cannot be it), and its error in units."""
    seen = repack.seen_as(array, expected.values.shape, transposed=transposed)
    if seen is None:
        return None, np.inf
    if expected.unit is not None:
        return seen, largest_error(seen, expected.values, expected.unit)
    with np.errstate(over="ignore"):
        return seen, 0.0 if same_bits(seen, expected.values.astype(seen.dtype)) else np.inf


def _share_alike(seen: Array, expected: Expected) -> float:
    """The share of numbers that are as expected: a fault spoils a few, a rule changes most."""
    if not seen.size:
        return 0.0
    unit = FOLD_ERROR * (0 if expected.unit is None else expected.unit)
    with np.errstate(invalid="ignore"):
        return float(np.mean(np.abs(seen.astype(np.float64) - expected.values) <= unit))


def _differs(used: _Use, expected: Expected, seen: Array) -> str:
    name = used.use.name
    if expected.name == name:
        return f"{name} differs from the checkpoint: {where(seen, expected.values)}"
    if not expected.sources and seen.size == 1:
        found = f"{seen.item():.7g}, expected {expected.values.item():.7g}"
        return f"{name}, a constant of {used.use.node.name} ({used.use.node.op_type}), is {found}"
    return f"{name} differs from {expected.name}: {where(seen, expected.values)}"
