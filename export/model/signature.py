"""Map named arrays to the arguments of any ``forward``, and its result to named tensors.

A graph has a flat list of inputs and outputs. ``forward`` may take keyword-only and optional
arguments, tuples and dicts, and may return nested tuples and dicts.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

Plan = dict[str, Any]
"""By parameter name: a tensor's position among the inputs, or a tuple or dict of positions."""


class Positional(nn.Module):
    """Wraps any module: takes the input tensors in order and returns a flat tuple of tensors."""

    def __init__(self, module: nn.Module, names: Sequence[str] = ()) -> None:
        """Wrap a module and put it into evaluation mode.

        Args:
            module: Any module.
            names: The inputs' names; see ``plan_arguments``. If empty, inputs are positional.
        """
        super().__init__()
        self.module = module
        self.plan = plan_arguments(module, names)
        self.eval()

    def answer(self, inputs: Sequence[Tensor]) -> Any:
        """Return the wrapped module's own result."""
        if self.plan is None:
            return self.module(*inputs)
        return self.module(**{name: _filled(part, inputs) for name, part in self.plan.items()})

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map the inputs, in their order, to the outputs, in their order."""
        return tuple(tensor for _, tensor in named_tensors(self.answer(inputs)))


def plan_arguments(module: nn.Module, names: Sequence[str]) -> Plan | None:
    """Plan how the inputs are passed to ``forward``.

    Inputs with the name of a parameter are passed by name, so that optional parameters may be left
    out. "state_0" and "state_1" make up a tuple for the parameter "state"; "batch_ids" and
    "batch_mask" make up a dict for "batch".

    Args:
        module: The module that has the ``forward``.
        names: The inputs' names.

    Returns:
        The plan. None if a name belongs to no parameter, or a parameter without a default would be
        left out: the inputs are then passed by position.
    """
    parameters = inspect.signature(module.forward).parameters
    parts: dict[str, dict[str, Any]] = {}
    for position, name in enumerate(names):
        owners = [p for p in parameters if name == p or name.startswith(f"{p}_")]
        if not owners:
            return None
        owner = max(owners, key=len)
        parts.setdefault(owner, {})[name[len(owner) + 1 :]] = position
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = {
        p.name
        for p in parameters.values()
        if p.default is inspect.Parameter.empty and p.kind not in variadic
    }
    positional_only = any(p.kind is inspect.Parameter.POSITIONAL_ONLY for p in parameters.values())
    # One input such as "input_ids" for the parameter "input" is not a dict with one entry.
    single = any(len(part) == 1 and "" not in part for part in parts.values())
    if not required <= parts.keys() or positional_only or single:
        return None
    return {name: _grouped(part) for name, part in parts.items()}


def _grouped(part: dict[str, Any]) -> Any:
    if "" in part:
        return part[""]
    if all(key.isdigit() for key in part):
        return tuple(part[key] for key in sorted(part, key=int))
    return part


def _filled(part: Any, inputs: Sequence[Tensor]) -> Any:
    if isinstance(part, int):
        return inputs[part]
    if isinstance(part, tuple):
        return tuple(inputs[position] for position in part)
    return {key: inputs[position] for key, position in part.items()}


def named_tensors(answer: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module's result with their names, in order; None is left out.

    Names are the keys of dicts and the fields of named tuples and data classes, else positions:
    ``(y, (h, c))`` has output_0, output_1_0 and output_1_1.

    Raises:
        TypeError: A part of the result is not a tensor.
    """
    if isinstance(answer, Tensor):
        yield name or "output_0", answer
        return
    if answer is None:
        return
    prefix = f"{name}_" if name else ""
    if isinstance(answer, Mapping):
        parts = {f"{prefix}{key}": value for key, value in answer.items()}
    elif dataclasses.is_dataclass(answer):
        parts = {f"{prefix}{f.name}": getattr(answer, f.name) for f in dataclasses.fields(answer)}
    elif isinstance(answer, tuple) and hasattr(answer, "_fields"):
        fields = zip(answer._fields, answer, strict=True)
        parts = {f"{prefix}{key}": value for key, value in fields}
    elif isinstance(answer, list | tuple):
        prefix = prefix or "output_"
        parts = {f"{prefix}{position}": value for position, value in enumerate(answer)}
    else:
        raise TypeError(
            f"forward returns a {type(answer).__name__} ({name or 'its result'}); expected "
            "tensors, in tuples or dicts if there are several"
        )
    for key, value in parts.items():
        yield from named_tensors(value, key)
