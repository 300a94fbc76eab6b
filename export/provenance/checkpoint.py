"""Collect a program's stored tensors, and the values that depend only on them, not on inputs.

Those values are evaluated in float64 and in PyTorch's own float32, whose rounding errors show how
large the error of a correct float32 result may be.
"""

import contextlib
from typing import Any

import numpy as np
import torch
from torch.fx import Node
from torch.fx.node import map_aggregate

from export.bundle.metrics import Arrays
from export.model.program import Program, arguments_of, operator_of, stored_nodes
from export.provenance.forms import Expected, computed, find_folds

# Arguments whose tensor a file may leave out if it changes nothing.
ADDENDS = {"bias", "running_mean"}
FACTORS = {"weight"}


class Checkpoint:
    """The tensors of a program.

    Attributes:
        names: Names of the used parameters, buffers and constants, by the program's node.
        tensors: Their values, by name.
        folds: Layers followed by a BatchNorm, and all BatchNorms without the layers.
    """

    def __init__(self, program: Program) -> None:
        """Evaluate every node of the program that depends on no input."""
        self.names = {node: name for node, name in stored_nodes(program).items() if node.users}
        self.folds = [*find_folds(program), *find_folds(program, alone=True)]
        self._single = _constants(program, double=False)
        self._double = _constants(program, double=True)
        self.tensors: Arrays = {
            name: self._single[node].numpy() for node, name in self.names.items()
        }

    def is_known(self, node: Node) -> bool:
        """Whether a node depends on no input."""
        return node in self._single and node in self._double

    def expected(self, value: Any) -> Expected | None:
        """What the file must contain for an operator's argument; None if it depends on inputs."""
        if isinstance(value, int | float):
            return Expected(f"{value:g}", np.asarray(float(value)))
        if value in self.names:
            name = self.names[value]
            return Expected(name, self.tensors[name], None, frozenset([name]))
        single, double = self._single.get(value), self._double.get(value)
        if not isinstance(single, torch.Tensor) or not isinstance(double, torch.Tensor):
            return None
        return computed(value.name, double.numpy(), single.numpy(), self._sources(value))

    def changes_nothing(self, node: Node) -> bool:
        """Whether a stored tensor is neutral at all its uses: 0 in a sum, or 1 in a product."""
        values = self.tensors[self.names[node]]
        zeros, ones = not values.any(), bool(np.all(values == 1))

        def neutral(user: Node) -> bool:
            kind = operator_of(user)
            names = {name for name, value in arguments_of(user).items() if value is node}
            if not names or (kind in ("sub", "div") and names != {"other"}):
                return False
            if kind in ("add", "sub") or names <= ADDENDS:
                return zeros
            return ones and (kind in ("mul", "div") or (names <= FACTORS and "norm" in kind))

        return all(neutral(user) for user in node.users)

    def _sources(self, node: Node) -> frozenset[str]:
        if node in self.names:
            return frozenset([self.names[node]])
        return frozenset().union(*(self._sources(n) for n in node.all_input_nodes))


def _constants(program: Program, *, double: bool) -> dict[Node, Any]:
    """The values (tensors, or tuples of them) of all nodes that depend on no input."""
    kept, names = {**program.state_dict, **program.constants}, stored_nodes(program)
    values: dict[Node, Any] = {}

    def given(argument: Any) -> Any:
        argument = values[argument] if isinstance(argument, Node) else argument
        return _widened(argument) if double else argument

    with torch.no_grad():
        for node in program.graph.nodes:
            if node in names:
                values[node] = given(kept[names[node]].detach().cpu())
            elif (
                operator_of(node)
                and "rand" not in str(node.target)
                and all(n in values for n in node.all_input_nodes)
            ):
                # An operator without a kernel for these types is skipped, so it is not traced.
                with contextlib.suppress(RuntimeError, TypeError, NotImplementedError):
                    args, kwargs = map_aggregate((node.args, node.kwargs), given)
                    values[node] = map_aggregate(node.target(*args, **kwargs), given)
    return values


def _widened(value: Any) -> Any:
    if value is torch.float32:
        return torch.float64
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if is_float else value
