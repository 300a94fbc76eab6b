"""Read an exported program's graph: operators, their arguments and the stored tensors."""

from typing import Any

import torch
from torch.fx import Node

Program = torch.export.ExportedProgram


def operator_of(node: Node) -> str:
    """aten.max_pool2d.default -> max_pool2d, aten.relu_.default -> relu; "" for other nodes."""
    if node.op != "call_function":
        return ""
    parts = str(node.target).split(".")
    return (parts[1] if len(parts) > 1 else parts[0]).removesuffix("_")


def arguments_of(node: Node) -> dict[str, Any]:
    """An operator's arguments by their names in its schema, with the defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    names = [argument.name for argument in schema.arguments]
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}


def shape_of(value: Any) -> list[Any]:
    """The shape of a node's first result, with free axes as symbols; [] if it is no tensor."""
    found = value.meta.get("val") if isinstance(value, Node) else None
    if isinstance(found, tuple | list):
        found = found[0]
    return list(getattr(found, "shape", ()))


def named_nodes(program: Program, outputs: list[str]) -> dict[str, Node]:
    """Nodes by the names of their values in the ONNX graph."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "call_function"}
    returned = next(node for node in program.graph.nodes if node.op == "output").args[0]
    for name, node in zip(outputs, returned, strict=True):
        if isinstance(node, Node) and node.name in nodes:
            nodes[name] = nodes.pop(node.name)
    return nodes


def stored_nodes(program: Program) -> dict[Node, str]:
    """Placeholders of parameters, buffers and constants, with their names in the checkpoint."""
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    return {n: names[n.name] for n in program.graph.nodes if n.name in names}
