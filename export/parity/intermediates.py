"""Compare every value inside the ONNX graph with the same value of the checkpoint.

The exporter names the values of the ONNX graph after the nodes of its program. The file is run with
every value as an output and without optimization, and the program is run by an interpreter. This
gives pairs of arrays in the order of computation, which show the error of each layer and the first
wrong value.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper
from torch.fx import Node

from export.bundle.metrics import Array, Arrays, compare
from export.model.program import Program, named_nodes, operator_of
from export.parity.interpreter import node_values
from export.parity.schema import Layer
from training.provenance import REPOSITORY

# IEEE 754 fixes the results of these. Products and sums over many terms depend on their order, and
# functions like exp on their implementation.
EXACT = {
    "add",
    "sub",
    "mul",
    "div",
    "neg",
    "abs",
    "relu",
    "maximum",
    "minimum",
    "clamp",
    "hardtanh",
    "view",
    "reshape",
    "flatten",
    "unsqueeze",
    "squeeze",
    "permute",
    "transpose",
    "expand",
    "t",
    "cat",
    "slice",
    "select",
    "clone",
    "alias",
    "max_pool2d",
    "_to_copy",
    "to",
    "scalar_tensor",
    "convert_element_type",
    "full",
    "sym_size",
    "constant_pad_nd",
    "pad",
    "_assert_tensor_metadata",
}
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in .*\n\s*(?P<code>.*)')


class Inside:
    """A program's values for some samples, in float32 and float64, to compare files with."""

    def __init__(self, program: Program, outputs: list[str], inputs: Arrays) -> None:
        """Run the program once in each precision.

        Args:
            program: From ``convert.onnx_export.translate``; its nodes have the names of the ONNX
                values.
            outputs: The ONNX graph's outputs, in order.
            inputs: A few samples.
        """
        self._inputs = inputs
        self._nodes = named_nodes(program, outputs)
        self._fp32 = node_values(program, self._nodes, inputs, double=False)
        self._fp64 = node_values(program, self._nodes, inputs, double=True)
        self._exact = _exact(self._nodes)

    def layers(self, model: onnx.ModelProto) -> tuple[Layer, ...]:
        """Each float value of an ONNX graph that the program also has, in order."""
        return self.compare(model).layers

    def exact_error(self, model: onnx.ModelProto) -> float:
        """The largest error of the values that depend only on exactly rounded operators.

        Only these operators of the file are run.
        """
        values = _run_part(model, _leading_to(model, self._exact), self._inputs)
        layers = self._compare(model, values).layers
        return max((layer.max_abs_error for layer in layers if layer.exact), default=0.0)

    def compare(self, model: onnx.ModelProto) -> "Compared":
        """Compare each float value of an ONNX graph with the program's of that name, in order."""
        return self._compare(model, onnx_values(model, self._inputs))

    def _compare(self, model: onnx.ModelProto, values: Arrays) -> "Compared":
        producers = {output: node for node in model.graph.node for output in node.output}
        layers, unmatched = [], []
        for name, found in values.items():
            if found.dtype.kind != "f" or not found.size:
                continue
            fp32, fp64 = self._fp32.get(name), self._fp64.get(name)
            if fp32 is None or fp64 is None or found.shape != fp32.shape:
                unmatched.append(name)
                continue
            compared = compare(*without_shared_infinities(found, fp32, fp64))
            node, producer = self._nodes[name], producers[name]
            source, code = _source(node)
            layers.append(
                Layer(
                    value=name,
                    node=producer.name,
                    op=producer.op_type,
                    module=module_of(node),
                    source=source,
                    code=code,
                    scaled_error=compared.scaled_error,
                    rms_ratio=compared.rms_ratio,
                    max_abs_error=compared.max_abs_error,
                    exact=name in self._exact and found.dtype == np.float32,
                )
            )
        return Compared(tuple(layers), tuple(unmatched))


def without_shared_infinities(first: Array, *others: Array) -> tuple[Array, ...]:
    """Arrays with 0 where all have the same infinity, as in an attention mask."""
    shared = np.isinf(first)
    for values in others:
        shared &= values == first
    if not shared.any():
        return (first, *others)
    return tuple(np.where(shared, 0, values).astype(values.dtype) for values in (first, *others))


@dataclass(frozen=True)
class Compared:
    """The result of comparing the values inside an ONNX file with the program's.

    Attributes:
        layers: The values that both have, in the order of computation.
        unmatched: Names of the file's other float values: they are parts of what is one operator in
            the program, and only the values after them prove them.
    """

    layers: tuple[Layer, ...]
    unmatched: tuple[str, ...]


def _exact(nodes: dict[str, Node]) -> set[str]:
    """Names of the values that depend only on exactly rounded operators."""
    graph = next(iter(nodes.values())).graph
    order = {node: position for position, node in enumerate(graph.nodes)}
    exact_nodes: set[Node] = set()
    names = set()
    for name, node in sorted(nodes.items(), key=lambda item: order[item[1]]):
        sources = [n for n in node.all_input_nodes if n.op == "call_function"]
        plain = node.kwargs.get("alpha", 1) == 1
        if operator_of(node) in EXACT and plain and all(n in exact_nodes for n in sources):
            exact_nodes.add(node)
            names.add(name)
    return names


def onnx_values(model: onnx.ModelProto, inputs: Arrays) -> Arrays:
    """Every value of an ONNX graph, in the order of its nodes, without fusing or optimizing."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    known = {value.name for value in opened.graph.output}
    names = [name for node in opened.graph.node for name in node.output if name]
    opened.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    return _run(opened, names, inputs)


class RecordedFile:
    """An ONNX file's values for some inputs, which are reused for copies that differ in few nodes.

    An unchanged node with unchanged inputs has the same result in a copy. Therefore only the nodes
    that differ are run, with the inputs that they have in the file.

    Attributes:
        values: Every value of the file, in the order of its nodes.
    """

    def __init__(self, model: onnx.ModelProto, inputs: Arrays) -> None:
        """Run the file once."""
        self._model, self._inputs = model, inputs
        self.values = onnx_values(model, inputs)
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}

    def changed_values(self, model: onnx.ModelProto, known: Collection[str]) -> Arrays:
        """The values of a copy that its changes affect directly, not through a known value.

        Args:
            model: The copy; its values have the same names.
            known: Values that are compared with their own operator: the nodes after one are given
                the file's value, not the copy's.
        """
        nodes, before = model.graph.node, self._model.graph.node
        has_blocks = any(part.HasField("g") for node in nodes for part in node.attribute)
        if has_blocks or [list(n.output) for n in nodes] != [list(n.output) for n in before]:
            return onnx_values(model, self._inputs)
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        changed = {name for name, part in stored.items() if part != self._stored.get(name)}
        kept = []
        for node, honest in zip(nodes, before, strict=True):
            if node != honest or changed.intersection(node.input):
                kept.append(node)
                changed |= {name for name in node.output if name and name not in known}
        if not kept:
            return {}
        given = {
            name: array
            for name, array in {**self._inputs, **self.values}.items()
            if name not in stored and name not in changed
        }
        return _run_part(model, kept, given)


def _run_part(model: onnx.ModelProto, nodes: list[onnx.NodeProto], given: Arrays) -> Arrays:
    """The results of some nodes of a model.

    Args:
        model: The model that has the nodes.
        nodes: The nodes in the order of computation.
        given: Values that the nodes take as inputs; some may also be results of the nodes.
    """
    names = [name for node in nodes for name in node.output if name]
    taken = {name for node in nodes for name in node.input}
    inputs = {f"{name}.given": array for name, array in given.items() if name in taken}
    part = onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions
    )
    part.graph.name = model.graph.name
    part.graph.initializer.extend(t for t in model.graph.initializer if t.name in taken)
    part.graph.input.extend(
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in inputs.items()
    )
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    part.graph.node.extend(nodes)
    for node in part.graph.node:
        node.input[:] = [f"{name}.given" if name in given else name for name in node.input]
    return _run(part, names, inputs)


def _leading_to(model: onnx.ModelProto, wanted: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that some values depend on, in order."""
    needed, kept = set(wanted), list[onnx.NodeProto]()
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def _run(model: onnx.ModelProto, names: list[str], inputs: Arrays) -> Arrays:
    """Run a model without optimization and return the named values."""
    if not names:
        return {}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(names, session.run(names, inputs), strict=True))


def module_of(node: Node) -> str:
    """The path of a node's innermost module; "" if it is not known."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _source(node: Node) -> tuple[str, str]:
    """The innermost source line outside PyTorch: its place, without local paths, and its text."""
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    ours = [f for f in frames if "/torch/" not in f["file"]] or frames
    if not ours:
        return "", ""
    path = Path(ours[-1]["file"])
    parts = path.parts
    if "site-packages" in parts:
        shown = "/".join(parts[parts.index("site-packages") + 1 :])
    elif path.is_relative_to(REPOSITORY):
        shown = str(path.relative_to(REPOSITORY))
    else:
        shown = path.name
    return f"{shown}:{ours[-1]['line']}", ours[-1]["code"].strip()
