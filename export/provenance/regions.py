"""Split both graphs into regions: nodes of the ONNX graph and operators that compute the same.

The exporter names the values of the ONNX graph after the program's nodes. A region is the part
between one such common value and the common values before it, in both graphs.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx
from onnx import numpy_helper
from torch.fx import Node

from export.bundle.metrics import Array, Arrays
from export.model.program import Program, named_nodes

T = TypeVar("T")


@dataclass(frozen=True)
class Use:
    """A place: a stored tensor as an input of a node.

    Attributes:
        node: The node that takes the tensor.
        slot: Position among the node's inputs; -1 inside a subgraph of an If, a Loop or a Scan.
        name: The tensor's name.
    """

    node: onnx.NodeProto
    slot: int
    name: str

    @property
    def key(self) -> tuple[str, int, str]:
        """A key that identifies the place."""
        return self.node.output[0], self.slot, self.name


@dataclass(frozen=True)
class Region:
    """The part of both graphs between one common value and the common values before it.

    Attributes:
        value: The common value's name in the ONNX graph.
        nodes: The region's nodes of the ONNX graph, in its order.
        operators: The region's nodes of the program; regions that no common value separates share
            them.
        uses: Stored tensors that the ONNX nodes take.
    """

    value: str
    nodes: tuple[onnx.NodeProto, ...]
    operators: tuple[Node, ...]
    uses: tuple[Use, ...]


def stored_tensors(model: onnx.ModelProto) -> Arrays:
    """All tensors that a file stores, by name: initializers and Constant nodes."""
    tensors: Arrays = {}
    for graph in _graphs(model.graph):
        tensors |= {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        tensors |= {n.output[0]: _constant(n) for n in graph.node if n.op_type == "Constant"}
    return tensors


def subgraph_inputs(node: onnx.NodeProto) -> list[str]:
    """The values that the nodes inside an If, a Loop or a Scan take; empty for other nodes."""
    graphs = [inner for a in node.attribute if a.HasField("g") for inner in _graphs(a.g)]
    return [name for graph in graphs for inner in graph.node for name in inner.input if name]


def split_regions(model: onnx.ModelProto, program: Program) -> list[Region]:
    """The regions of an ONNX graph, in the order of computation; each node is in at least one.

    Args:
        model: A model whose values have the names of the program's nodes.
        program: The program from ``convert.onnx_export.translate``.
    """
    stored = set(stored_tensors(model))
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    givers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    outputs = [value.name for value in model.graph.output]
    returned = next(node for node in program.graph.nodes if node.op == "output").args[0]
    if len(outputs) != len(returned):  # ``structure`` reports this
        return []
    common = {n: node for n, node in named_nodes(program, outputs).items() if n in givers}
    separators = set(common.values())
    order = {node: i for i, node in enumerate(program.graph.nodes)}

    def values_before(value: str) -> Iterator[str]:
        node = nodes[givers[value]]
        for name in [*node.input, *subgraph_inputs(node)]:
            if name in givers and name not in common:
                yield name

    def operators_before(operator: Node) -> Iterator[Node]:
        return (n for n in operator.all_input_nodes if n not in separators)

    regions = []
    ends = [name for name in givers if name in common]
    for value in ends + [name for name in outputs if name in givers and name not in common]:
        mine = sorted({givers[name] for name in _reach([value], values_before)})
        operators = _reach([common[value]] if value in common else [], operators_before)
        uses = tuple(use for i in mine for use in _uses(nodes[i], stored))
        ordered = sorted(operators, key=order.__getitem__)
        regions.append(Region(value, tuple(nodes[i] for i in mine), tuple(ordered), uses))
    return regions


def _reach(starts: list[T], before: Callable[[T], Iterable[T]]) -> list[T]:
    """The starts and everything that they depend on."""
    found, waiting = dict.fromkeys(starts), list(starts)
    while waiting:
        new = [item for item in before(waiting.pop()) if item not in found]
        found |= dict.fromkeys(new)
        waiting += new
    return list(found)


def _uses(node: onnx.NodeProto, stored: set[str]) -> Iterator[Use]:
    inner = [(-1, name) for name in subgraph_inputs(node)]
    for slot, name in [*enumerate(node.input), *inner]:
        if name in stored:
            yield Use(node, slot, name)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _constant(node: onnx.NodeProto) -> Array:
    value = onnx.helper.get_attribute_value(node.attribute[0])
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    single = node.attribute[0].name.startswith("value_float")
    return np.asarray(value, np.float32 if single else None)
