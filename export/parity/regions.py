"""Where an ONNX graph and an exported program meet: the same stretch of computation in both.

The exporter names the values of the ONNX graph after the program's nodes. Between one such common
value and the common values before it lies a region: what the one graph computes there with some
tensors, the other must compute with the same ones. So a tensor is held against the checkpoint's
tensors of its own region, and one that sits at the place of another does not pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.fx import Node

from export.bundle.metrics import Array, Arrays
from export.parity.intermediates import named_nodes, operator_of
from export.parity.interpreter import Program


@dataclass(frozen=True)
class Use:
    """A stored tensor as an input of a node.

    Attributes:
        node: Takes the tensor.
        slot: Position among the node's inputs; -1 inside a subgraph of an If, a Loop or a Scan.
        name: The tensor's name.
    """

    node: onnx.NodeProto
    slot: int
    name: str


@dataclass(frozen=True)
class Region:
    """What both graphs compute between one common value and the common values before it.

    Attributes:
        value: The common value's name in the ONNX graph.
        nodes: Of the ONNX graph, in its order.
        operators: Of the program; several regions share those that no common value separates.
        uses: Stored tensors that the ONNX nodes take.
    """

    value: str
    nodes: tuple[onnx.NodeProto, ...]
    operators: tuple[Node, ...]
    uses: tuple[Use, ...]


def stored_tensors(model: onnx.ModelProto) -> Arrays:
    """All tensors that lie in a file by name: initializers and Constant nodes."""
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in _all_nodes(model.graph):
        if node.op_type == "Constant":
            tensors[node.output[0]] = _constant(node)
    for node in _all_nodes(model.graph):
        for attribute in node.attribute:
            tensors |= {t.name: numpy_helper.to_array(t) for t in attribute.g.initializer}
    return tensors


def tensor_names(program: Program) -> dict[str, str]:
    """Names of parameters, buffers and constants by the names of the program's placeholders."""
    signature = program.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


def split_regions(model: onnx.ModelProto, program: Program) -> list[Region]:
    """The regions of an ONNX graph, in the order of computation; each node is in one at least.

    Args:
        model: Its values bear the names of the program's nodes.
        program: Of ``convert.onnx_export.translate``.
    """
    stored = set(stored_tensors(model))
    producers = {out: node for node in model.graph.node for out in node.output if out}
    outputs = [value.name for value in model.graph.output]
    returned = next(node for node in program.graph.nodes if node.op == "output").args[0]
    if len(outputs) != len(returned):  # ``structure`` says so
        return []
    meetings = {
        name: node
        for name, node in named_nodes(program, outputs).items()
        if name in producers and producers[name].op_type != "Constant"
    }
    ends = [name for name in producers if name in meetings]
    ends += [name for name in outputs if name not in meetings and name in producers]
    names = set(meetings)
    order = {node.output[0]: position for position, node in enumerate(model.graph.node)}
    regions = []
    for value in ends:
        nodes = _backwards(producers[value], producers, names)
        nodes.sort(key=lambda node: order[node.output[0]])
        operators = _operators_before(meetings.get(value), set(meetings.values()))
        uses = tuple(use for node in nodes for use in _uses(node, stored))
        regions.append(Region(value, tuple(nodes), tuple(operators), uses))
    return regions


def _backwards(
    last: onnx.NodeProto, producers: dict[str, onnx.NodeProto], ends: set[str]
) -> list[onnx.NodeProto]:
    found: dict[str, onnx.NodeProto] = {}
    waiting = [last]
    while waiting:
        node = waiting.pop()
        if node.output[0] in found:
            continue
        found[node.output[0]] = node
        before = [name for name in inputs_of(node) if name not in ends and name in producers]
        waiting += [producers[name] for name in before]
    return [node for node in found.values() if node.op_type != "Constant"]


def _operators_before(last: Node | None, ends: set[Node]) -> list[Node]:
    found: dict[Node, None] = {}
    waiting = [last] if last is not None else []
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found[node] = None
        waiting += [n for n in node.all_input_nodes if n not in ends]
    return list(found)


def inputs_of(node: onnx.NodeProto) -> list[str]:
    """The values that a node takes, those that its subgraphs take from outside among them."""
    taken = [name for name in node.input if name]
    for graph in _subgraphs(node):
        taken += [name for inner in _all_nodes(graph) for name in inner.input if name]
    return taken


def _uses(node: onnx.NodeProto, stored: set[str]) -> Iterator[Use]:
    direct = list(node.input)
    for slot, name in enumerate(direct):
        if name in stored:
            yield Use(node, slot, name)
    for name in inputs_of(node)[len([n for n in direct if n]) :]:
        if name in stored:
            yield Use(node, -1, name)


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in _subgraphs(node):
            yield from _all_nodes(inner)


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [a.g for a in node.attribute if a.HasField("g")]


def _constant(node: onnx.NodeProto) -> Array:
    value = onnx.helper.get_attribute_value(node.attribute[0])
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    single = node.attribute[0].name.startswith("value_float")
    return np.asarray(value, np.float32 if single else None)


class Constants:
    """What a program's nodes compute from parameters alone, whatever the inputs.

    In float64, beside PyTorch's own float32, whose rounding errors show how far a float32 result
    may honestly be off.
    """

    def __init__(self, program: Program) -> None:
        """Evaluate every node of the program that no input leads to."""
        names = tensor_names(program)
        kept = {**program.state_dict, **program.constants}
        self.stored: dict[Node, str] = {}
        self._single: dict[Node, Any] = {}  # tensors, or tuples of them
        self._double: dict[Node, Any] = {}
        with torch.no_grad():
            for node in program.graph.nodes:
                if node.op == "placeholder" and node.name in names:
                    tensor = kept[names[node.name]].detach()
                    self.stored[node] = names[node.name]
                    self._single[node], self._double[node] = tensor, _widened(tensor)
                elif operator_of(node) and self._is_constant(node):
                    self._evaluate(node)

    def is_known(self, node: Node) -> bool:
        """Does a node depend on no input?"""
        return node in self._single

    def computed(self, node: Node) -> tuple[Array, Array] | None:
        """A constant tensor in float64 and in float32; None: it depends on an input."""
        single, double = self._single.get(node), self._double.get(node)
        if isinstance(single, torch.Tensor) and isinstance(double, torch.Tensor):
            return double.numpy(), single.numpy()
        return None

    def _is_constant(self, node: Node) -> bool:
        return all(n in self._single for n in node.all_input_nodes) and "rand" not in str(
            node.target
        )

    def _evaluate(self, node: Node) -> None:
        for values, widen in ((self._single, False), (self._double, True)):
            arguments = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
            if widen:
                arguments = torch.fx.node.map_aggregate(
                    arguments, lambda a: torch.float64 if a is torch.float32 else a
                )
            try:
                result = node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
            except (RuntimeError, TypeError, NotImplementedError):
                result = None  # an operator without a kernel for these types: not traced
            if result is None:
                self._single.pop(node, None)
                return
            values[node] = _widened(result) if widen else result


def _widened(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(map(_widened, value))
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if is_float else value
