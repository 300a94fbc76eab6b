"""Plant faults that an exporter, a converter or a bad disk could cause in an ONNX model.

Each build plants them one by one in each ONNX file. The gate must kill each of these mutants: a
gate that would let one pass proves nothing.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.bundle.golden import run_batched
from export.bundle.metrics import Array, Arrays
from export.bundle.session import OnnxModel
from export.bundle.tolerances import Tolerance
from export.model.program import Program
from export.parity.candidates import BATCH_SIZES
from export.parity.intermediates import Inside
from export.parity.judge import kills
from export.parity.limits import LocalCheck
from export.parity.measure import NARROW, measure_row
from export.parity.reference import Reference
from export.parity.schema import LocalFigures, MutantResult
from export.provenance.forms import Fold
from export.provenance.reduced import check_reduced
from export.provenance.rules import PRODUCTS, attribute_of
from export.provenance.trace import check_weights

WRONG_EPSILONS = (1e-3, 1e-5)  # both are common, so at least one of them is wrong
LEAST_EFFECT = 1e-5
REDUCED_SAMPLES = 256  # noise far above float32's is visible in a few samples
# Operators before a network's first layer; the graph is in the order of computation.
ELEMENTWISE = {"Unsqueeze", "Squeeze", "Cast", "Reshape", "Transpose", "Sub", "Div", "Mul", "Add"}


class NotApplicableError(Exception):
    """This model cannot have the fault; the message says why."""


@dataclass(frozen=True)
class Mutant:
    """A fault, and the model that has it; None if the model cannot have it."""

    name: str
    what: str
    model: onnx.ModelProto | None


class _Graph:
    """A copy of an ONNX model, in which a fault is planted."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.tensors = {t.name: t for t in self.model.graph.initializer}
        # An int8 file stores weights as inputs of DequantizeLinear nodes.
        self._stored = {
            node.output[0]: node.input[0]
            for node in self.model.graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in self.tensors
        }
        self.products = [
            node
            for node in self.model.graph.node
            if node.op_type in PRODUCTS and self.parts(node) and self.weight(node) in self.tensors
        ]
        if not self.products:
            raise NotApplicableError("no convolution or matrix product has stored weights")

    def get(self, name: str) -> Array:
        return numpy_helper.to_array(self.tensors[name]).copy()

    def put(self, name: str, values: Array) -> None:
        before = self.get(name)
        same = np.ascontiguousarray(values, before.dtype).reshape(before.shape)
        self.tensors[name].CopyFrom(numpy_helper.from_array(same, name))

    def weight(self, node: onnx.NodeProto) -> str:
        """The name under which a product's weight is stored."""
        return str(self._stored.get(node.input[1], node.input[1]))

    def parts(self, node: onnx.NodeProto) -> list[str]:
        """Names of the weight and any bias; their first axis is the channels (MatMul: the last)."""
        names = [self._stored.get(name, name) for name in node.input[1:3]]
        return [name for name in names if name in self.tensors]

    def rows(self, node: onnx.NodeProto, change: Callable[[Array], Array]) -> None:
        """Change a layer's weight and bias, presented with the output channels first."""
        for name in self.parts(node):
            values = self.get(name)
            last = node.op_type == "MatMul" and values.ndim > 1
            seen = np.moveaxis(values, -1, 0) if last else values
            changed = change(seen)
            self.put(name, np.moveaxis(changed, 0, -1) if last else changed)

    def normalisation(self, op_type: str) -> tuple[onnx.NodeProto, str, float]:
        """The first node of a type before all products that has one number as its operand."""
        for node in self.model.graph.node:
            if node.output[0] in self._stored:
                continue
            if node.op_type not in ELEMENTWISE:
                break
            name = node.input[1] if len(node.input) > 1 else ""
            if node.op_type == op_type and name in self.tensors and self.get(name).size == 1:
                return node, name, float(self.get(name).item())
        raise NotApplicableError(f"the inputs are not normalised by a {op_type} with one number")


def make_mutants(model: onnx.ModelProto, folds: list[Fold], state: Arrays) -> Iterator[Mutant]:
    """Make the known faults, each in a copy of a correct model.

    Args:
        model: The correct ONNX model, in float32.
        folds: The BatchNorms that were folded into it.
        state: The checkpoint's tensors by name.
    """
    yield from _planted(
        model,
        _weight_faults(model)
        | {
            "a wrong BatchNorm epsilon": lambda graph: _epsilon(graph, folds, state),
            "x * (1/255) for x / 255": _reciprocal,
            "weights rounded to fp16": _rounded,
        },
    )


def make_reduced_mutants(model: onnx.ModelProto) -> Iterator[Mutant]:
    """Make the faults that a reduced-precision model can have, each in a copy of the model.

    Args:
        model: The correct ONNX model, in float16 or int8.
    """
    yield from _planted(model, _weight_faults(model))


Plants = dict[str, Callable[["_Graph"], str]]
"""Functions that plant each fault in a graph and return a description of the change."""


def _weight_faults(model: onnx.ModelProto) -> Plants:
    """The faults in stored numbers."""
    kinds = dict.fromkeys(node.op_type for node in model.graph.node if node.op_type in PRODUCTS)
    plants: Plants = {
        f"one weight +1% ({kind})": functools.partial(_one_weight, kind=kind, factor=1.01)
        for kind in kinds
    }
    plants |= {
        "one sign flipped": lambda graph: _one_weight(graph, graph.products[0].op_type, -1),
        "one NaN weight": lambda graph: _one_weight(graph, graph.products[-1].op_type, np.nan),
        "mean rounded (.13 for .1307)": _mean,
        "two channels swapped": _swapped,
        "a weight transposed": _transposed,
        "a bias dropped": _dropped_bias,
        "outputs shifted by one": _shifted,
        "a dead channel": _dead,
    }
    return plants


def _planted(model: onnx.ModelProto, plants: Plants) -> Iterator[Mutant]:
    for name, plant in plants.items():
        try:
            graph = _Graph(model)
            what = plant(graph)
            if graph.model == model:
                raise NotApplicableError("it would change no number of this model")
        except NotApplicableError as error:
            yield Mutant(name, str(error), None)
        else:
            yield Mutant(name, what, graph.model)


class MutationTest:
    """The gate's checks on an ONNX file, to be run on mutants of it."""

    def __init__(
        self,
        reference: Reference,
        program: Program,
        inside: Inside,
        allowed: Tolerance,
        *,
        local: LocalCheck | None = None,
        source: onnx.ModelProto | None = None,
    ) -> None:
        """Compute what all mutants share.

        Args:
            reference: Samples and the checkpoint's outputs.
            program: ``OnnxExport.program`` of the checkpoint.
            inside: The checkpoint's values inside the graph.
            allowed: The tolerance of the correct file.
            local: The check of the correct file's operators, if the file is in float32.
            source: The float32 model that a reduced-precision file was made from; else None.
        """
        self._reference, self._program = reference, program
        self._inside, self._allowed = inside, allowed
        self._local, self._source = local, source
        self._count = min(NARROW if source is None else REDUCED_SAMPLES, len(reference))
        self._fp32 = reference.fp32_baseline(self._count, BATCH_SIZES[0])

    def run(self, planted: Mutant) -> MutantResult:
        """Run the checks on a mutant."""
        if planted.model is None:
            return MutantResult(
                name=planted.name,
                planted="",
                figures={},
                caught_by=(),
                not_applicable=planted.what,
            )
        predict = OnnxModel(planted.model.SerializeToString(), "cpu")
        answers = run_batched(predict, self._reference.first(self._count), BATCH_SIZES[0])
        variant = self._allowed.variant
        row = measure_row(variant, BATCH_SIZES[0], answers, self._fp32, self._reference, None)
        weights = (
            check_weights(planted.model, self._program)
            if self._source is None
            else check_reduced(planted.model, self._source)
        )
        local = list(self._local.figures(planted.model).values()) if self._local else []
        found = list(row.outputs.values())
        figures = {
            "scaled_error": max(c.scaled_error for c in found),
            "rms_ratio": max(c.rms_ratio for c in found),
            "label_flips": float(max((c.labels.flips for c in found if c.labels), default=0)),
            "weights": float("inf") if weights.problems else weights.error,
            "exact": self._inside.exact_error(planted.model),
            "softmax_error": row.softmax_error,
        }
        fault = MutantResult(
            name=planted.name,
            planted=planted.what,
            figures=figures,
            caught_by=(),
            outputs=row.outputs,
            local=_worst(local) if local else None,
        )
        return fault.model_copy(update={"caught_by": kills(fault, self._allowed)})


def _worst(found: list[LocalFigures]) -> LocalFigures:
    return LocalFigures(
        rms=max(value.rms for value in found),
        largest=max(value.largest for value in found),
        bound=max((value.bound for value in found if value.bound is not None), default=None),
    )


def _one_weight(graph: _Graph, kind: str, factor: float) -> str:
    node = next((node for node in graph.products if node.op_type == kind), None)
    if node is None:
        raise NotApplicableError(f"no {kind} has stored weights")
    name = graph.weight(node)
    values = graph.get(name)
    if np.isnan(factor) and not np.issubdtype(values.dtype, np.floating):
        raise NotApplicableError(f"{values.dtype} has no NaN")
    # A medium-sized weight: neither the one with the most effect nor one that is nearly 0.
    position = int(np.argsort(np.abs(values), axis=None)[values.size * 3 // 4])
    values.flat[position] = values.flat[position] * factor
    graph.put(name, values)
    return f"{name}.flat[{position}] x {factor:g}"


def _epsilon(graph: _Graph, folds: list[Fold], state: Arrays) -> str:
    nodes = [n for n in graph.model.graph.node if n.op_type == "BatchNormalization"]
    found = {n.name: (graph.get(n.input[4]), attribute_of(n, "epsilon")) for n in nodes}
    found |= {fold.weight: (state[fold.norm[3]], fold.epsilon) for fold in folds}
    if not found:
        raise NotApplicableError("the model has no BatchNorm")
    # The most sensitive one: an epsilon has no effect where all variances are large.
    name = min(found, key=lambda key: float(found[key][0].min()))
    variance, own = found[name]
    wrong = next(epsilon for epsilon in WRONG_EPSILONS if not np.isclose(epsilon, own))
    if abs(wrong - own) / float(variance.min()) < LEAST_EFFECT:
        raise NotApplicableError("the variances are so large that epsilon changes nothing")
    for node in nodes:
        if node.name == name:
            kept = [a for a in node.attribute if a.name != "epsilon"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("epsilon", wrong)])
            return f"epsilon of {node.name} is {wrong:g} instead of {own:g}"
    fold = next(fold for fold in folds if fold.weight == name)
    node = next(n for n in graph.products if n.input[1] == name)
    for part, expected in zip(node.input[1:3], fold.expected(state, wrong), strict=True):
        graph.put(part, expected.values.astype(np.float32))
    return f"{fold.weight} folded with epsilon {wrong:g} instead of {own:g}"


def _mean(graph: _Graph) -> str:
    node, name, mean = graph.normalisation("Sub")
    graph.put(name, np.asarray(round(mean, 2)))
    return f"{node.name} subtracts {round(mean, 2):g} instead of {mean:.4g}"


def _reciprocal(graph: _Graph) -> str:
    node, name, divisor = graph.normalisation("Div")
    if np.frexp(divisor)[0] == 0.5:  # noqa: PLR2004 - a power of two
        raise NotApplicableError(f"1/{divisor:g} is exact")
    graph.put(name, (1 / graph.get(name)).astype(np.float32))
    node.op_type = "Mul"
    return f"{node.name} multiplies by 1/{divisor:g}"


def _swapped(graph: _Graph) -> str:
    node = graph.products[0]
    graph.rows(node, lambda values: np.concatenate([values[:2][::-1], values[2:]]))
    return f"channels 0 and 1 of {node.input[1]} swapped"


def _transposed(graph: _Graph) -> str:
    node = graph.products[-1]
    values = graph.get(graph.weight(node))
    graph.put(graph.weight(node), values.T.reshape(values.shape))
    return f"{node.input[1]} in column-major order"


def _dropped_bias(graph: _Graph) -> str:
    for node in graph.products:
        for name in graph.parts(node)[1:]:
            if np.any(graph.get(name)):
                graph.put(name, np.zeros_like(graph.get(name)))
                return f"{name} is 0"
    raise NotApplicableError("no layer has a bias")


def _rounded(graph: _Graph) -> str:
    for node in graph.products:
        for name in graph.parts(node):
            graph.put(name, graph.get(name).astype(np.float16).astype(np.float32))
    return "every weight and bias rounded to float16"


def _shifted(graph: _Graph) -> str:
    node = graph.products[-1]
    graph.rows(node, lambda values: np.roll(values, 1, axis=0))
    return f"rows of {node.input[1]} shifted by one"


def _dead(graph: _Graph) -> str:
    node = graph.products[0]

    def silence(values: Array) -> Array:
        values[0] = 0
        return values

    graph.rows(node, silence)
    return f"channel 0 of {node.input[1]} is 0"
