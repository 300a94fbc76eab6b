"""Inside the graph: every value of the ONNX file beside the same value of the checkpoint.

The exporter names the values of the ONNX graph after the nodes of its program. So one run of the
file with every value as an output (nothing optimised away) and one of the program by an
interpreter give pairs of arrays, in the order of computation: the error by layer, and the first
value that is wrong.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch.fx import Interpreter, Node
from torch.fx.node import map_aggregate

from export.bundle.metrics import Arrays, compare
from export.parity.reference import as_float64
from export.parity.schema import Layer
from training.provenance import REPOSITORY

Program = torch.export.ExportedProgram

# IEEE 754 leaves no freedom to these; products and sums over many terms have an order, and
# functions like exp an implementation.
EXACT = {
    *("add", "sub", "mul", "div", "neg", "abs", "relu", "maximum", "minimum", "clamp", "hardtanh"),
    *("view", "reshape", "flatten", "unsqueeze", "squeeze", "permute", "transpose", "expand", "t"),
    *("cat", "slice", "select", "clone", "alias", "max_pool2d", "_to_copy", "to", "scalar_tensor"),
    *("constant_pad_nd", "pad", "_assert_tensor_metadata", "full", "sym_size"),
}
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in .*\n\s*(?P<code>.*)')


class Inside:
    """A program's values for some samples, in float32 and in float64, to compare files with."""

    def __init__(self, program: Program, outputs: list[str], inputs: Arrays) -> None:
        """Run the program once in each precision.

        Args:
            program: From ``export.convert.onnx_export.translate``: its node names are the ONNX values' names.
            outputs: The ONNX graph's outputs, in order.
            inputs: A few samples.
        """
        self._inputs = inputs
        self._nodes = named_nodes(program, outputs)
        self._eager = node_values(program, self._nodes, inputs, double=False)
        self._truth = node_values(program, self._nodes, inputs, double=True)
        self._exact = _exact(self._nodes)

    def layers(self, model: onnx.ModelProto) -> Iterator[Layer]:
        """Each float value of an ONNX graph that the program knows too, in order."""
        producers = {output: node for node in model.graph.node for output in node.output}
        for name, found in _onnx_values(model, self._inputs).items():
            eager, truth = self._eager.get(name), self._truth.get(name)
            if eager is None or truth is None or found.shape != eager.shape or not found.size:
                continue
            compared = compare(found, eager, truth)
            node, producer = self._nodes[name], producers[name]
            source, code = _source(node)
            yield Layer(
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


class _Recorder(Interpreter):
    """Runs a program and keeps the values of the nodes asked for."""

    def __init__(self, program: Program, wanted: dict[str, str], *, double: bool) -> None:
        super().__init__(program.module())
        self._wanted, self._double = wanted, double
        self.values: Arrays = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if self._double and n.op in ("get_attr", "placeholder") and _is_float(result):
            result = result.double()
        if n.name in self._wanted and isinstance(result, torch.Tensor):
            self.values[self._wanted[n.name]] = result.detach().numpy()
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if self._double:  # a conversion to float32 in the program is one to float64 here
            args = map_aggregate(args, _widened)
            kwargs = map_aggregate(kwargs, _widened)
        return super().call_function(target, args, kwargs)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def node_values(
    program: Program, wanted: dict[str, Node], inputs: Arrays, *, double: bool
) -> Arrays:
    """Values of some nodes, under the names they are wanted by."""
    recorder = _Recorder(program, {n.name: name for name, n in wanted.items()}, double=double)
    arrays = [as_float64(a) if double else a for a in inputs.values()]
    with torch.no_grad():
        recorder.run(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))
    return recorder.values


def named_nodes(program: Program, outputs: list[str]) -> dict[str, Node]:
    """Nodes by the names of their values in the ONNX graph."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "call_function"}
    returned = next(node for node in program.graph.nodes if node.op == "output").args[0]
    for name, node in zip(outputs, returned, strict=True):
        if isinstance(node, Node) and node.name in nodes:
            nodes[name] = nodes.pop(node.name)
    return nodes


def _exact(nodes: dict[str, Node]) -> set[str]:
    """Names of the values that exactly rounded operators alone lead to."""
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


def operator_of(node: Node) -> str:
    """aten.max_pool2d.default -> max_pool2d; "" for anything but a function."""
    if node.op != "call_function":
        return ""
    parts = str(node.target).split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def _onnx_values(model: onnx.ModelProto, inputs: Arrays) -> Arrays:
    """Every value of an ONNX graph, in the order of its nodes; nothing is fused or left out."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    known = {value.name for value in opened.graph.output}
    names = [name for node in opened.graph.node for name in node.output if name]
    opened.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        opened.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(names, session.run(names, inputs), strict=True))


def module_of(node: Node) -> str:
    """The innermost module's path."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _source(node: Node) -> tuple[str, str]:
    """Place and text of the innermost line that is not PyTorch's, without this machine's path."""
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
