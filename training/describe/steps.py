"""Describe any module step by step, with ``describe``."""

import inspect
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.describe.errors import DescribeError
from training.describe.receptive import UNKNOWN, Axis, Field, fields_after, whole_input, wider
from training.describe.rules import in_words, multiply_adds, parameters
from training.describe.schema import AxisField, Description, InputField, Named, Step, Totals
from training.describe.trace import Call, Trace, memory_of, trace

FLOAT32_BYTES = 4


def describe(
    module: nn.Module, inputs: Sequence[Sequence[int] | Tensor], *, name: str | None = None
) -> Description:
    """Describe what a network computes, step by step, in evaluation mode.

    ``forward`` runs once, on a copy of the module. If inputs are given as shapes, it runs without
    values, on the device "meta". Nothing is allocated then, so even networks larger than memory
    can be described; build those under ``with torch.device("meta")``.

    Args:
        module: Any module; it is not changed. Shared weights count in the first step using them.
        inputs: For each argument of ``forward``, the shape of one sample without the batch axis
            (float32, a batch of one), or a tensor with its batch axis: on "meta" for another type
            (``torch.empty(1, 9, dtype=torch.int64, device="meta")``), or with values if
            ``forward`` reads values.
        name: Name of the network; by default, the name of its class.

    Raises:
        DescribeError: The network cannot take these inputs (the message has the module, what was
            given and expected), its calls cannot be recorded, or a formula contradicts its weights.
    """
    if not inputs:
        raise DescribeError("no inputs given: give the shape of one sample for each input")
    tensors = [_tensor(given) for given in inputs]
    traced = trace(module, tensors)
    known = {id(tensor): _named(traced, i) for i, tensor in enumerate(tensors)}
    steps, totals = _Walk(traced, list(known.values())).steps()
    last = {id(out): step.name for call, step in zip(traced.calls, steps, strict=True)
            for out in call.outputs} | known  # fmt: skip
    return Description(
        name=name or type(module).__name__,
        inputs=tuple(
            Named(name=known[id(tensor)], shape=tuple(tensor.shape)) for tensor in tensors
        ),
        steps=tuple(steps),
        outputs=tuple(
            Named(name=last.get(id(out), "constant"), shape=tuple(out.shape))
            for out in traced.outputs
        ),
        totals=totals,
    )


class _Walk:
    """Turns calls into steps, and keeps track of the fields, weights and memory seen so far."""

    def __init__(self, traced: Trace, input_names: list[str]) -> None:
        self.traced = traced
        self.input_names = input_names
        self.parameters = {id(p): name for name, p in traced.module.named_parameters()}
        self.used: set[str] = set()
        weights = [*traced.module.parameters(), *traced.module.buffers()]
        constants = [*weights, *traced.constants]
        self.fields: dict[int, Field] = {id(tensor): {} for tensor in constants}
        for number, tensor in enumerate(traced.inputs):
            self.fields[id(tensor)] = whole_input(number, tensor.ndim)
        self.memory = {memory_of(tensor) for tensor in (*constants, *traced.inputs)}

    def steps(self) -> tuple[list[Step], Totals]:
        calls = self.traced.calls
        alone = _alone(calls)
        names = _names(calls, alone)
        steps = [self._step(*each) for each in zip(calls, names, alone, strict=True)]
        module = self.traced.module
        numbers = {name: p.numel() for name, p in module.named_parameters()}
        unused = tuple(name for name in numbers if name not in self.used)
        total = sum(numbers.values())
        counted = sum(step.parameters for step in steps) + sum(numbers[name] for name in unused)
        if counted != total:
            raise DescribeError(f"the steps have {counted:,} parameters, but the module {total:,}")
        trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
        buffers = sum(buffer.numel() for buffer in module.buffers())
        return steps, Totals(
            parameters=total,
            trainable=trainable,
            frozen=total - trainable,
            unused=unused,
            buffers=buffers,
            multiply_adds=sum(step.multiply_adds for step in steps),
            weight_bytes=FLOAT32_BYTES * (total + buffers),
            activation_bytes=sum(step.activation_bytes for step in steps),
            input_bytes=FLOAT32_BYTES * sum(x.numel() for x in self.traced.inputs),
        )

    def _step(self, call: Call, name: str, alone: bool) -> Step:
        given = {id(tensor): tensor for tensor in call.tensors if id(tensor) in self.parameters}
        new = [t for key, t in given.items() if self.parameters[key] not in self.used]
        shared = tuple(self.parameters[key] for key in given if self.parameters[key] in self.used)
        formula, work = parameters(call, new), multiply_adds(call)
        held = sum(tensor.numel() for tensor in new)
        if formula.value != held:
            raise DescribeError(f"{name}: {formula} parameters, but its weights have {held:,}")
        self.used |= {self.parameters[id(tensor)] for tensor in new}
        fields = fields_after(call, self._field)
        self.fields |= {id(out): field for out, field in zip(call.outputs, fields, strict=True)}
        return Step(
            name=name,
            what=in_words(call, call.visit.module_class.__name__ if alone else call.name),
            function=call.name,
            outputs=tuple(tuple(out.shape) for out in call.outputs),
            parameters=formula.value,
            trainable=sum(tensor.numel() for tensor in new if tensor.requires_grad),
            parameter_formula=formula.text,
            shared=shared,
            multiply_adds=work.value,
            multiply_add_formula=work.text,
            receptive_field=self._shown(fields),
            activation_bytes=FLOAT32_BYTES * self._written(call),
        )

    def _field(self, tensor: Tensor) -> Field:
        """A tensor's field; a tensor of unknown origin may depend on anything."""
        if id(tensor) in self.fields:
            return self.fields[id(tensor)]
        return {i: (UNKNOWN,) * (x.ndim - 1) for i, x in enumerate(self.traced.inputs)}

    def _shown(self, fields: Sequence[Field]) -> tuple[InputField, ...]:
        widest: Field = {}
        for field in fields:
            for number, axes in field.items():
                before = widest.get(number, axes)
                widest[number] = tuple(map(wider, before, axes))
        return tuple(
            InputField(input=self.input_names[i], axes=tuple(map(_axis, self._axes(i, widest[i]))))
            for i in sorted(widest)
        )

    def _axes(self, number: int, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        """The axes without channels: the first of three or more axes, or a first one of size 1."""
        shape = self.traced.inputs[number].shape[1:]
        channels = len(shape) > len("HW") or (len(shape) > 1 and shape[0] == 1)
        return axes[1:] if channels else axes

    def _written(self, call: Call) -> int:
        values = 0
        for out in call.outputs:
            if memory_of(out) not in self.memory:
                self.memory.add(memory_of(out))
                values += out.numel()
        return values


def _tensor(given: Sequence[int] | Tensor) -> Tensor:
    if isinstance(given, Tensor):
        return given.view(given.shape)  # the same values, but a distinct tensor for each input
    if any(size < 1 for size in given):
        raise DescribeError(f"an input of shape {tuple(given)}: every size must be 1 or more")
    return torch.empty(1, *given, device="meta")


def _named(traced: Trace, number: int) -> str:
    """The name of an argument of ``forward``; those of ``*inputs`` are numbered."""
    names = []
    for parameter in inspect.signature(traced.module.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            break
        names.append(parameter.name)
    return names[number] if number < len(names) else f"input{number + 1}"


def _alone(calls: Sequence[Call]) -> list[bool]:
    """Whether each call is the only one of a torch.nn layer and so gets the layer's name."""
    of_visit = Counter(call.visit for call in calls)
    return [
        of_visit[call.visit] == 1 and call.visit.module_class.__module__.startswith("torch.nn.")
        for call in calls
    ]


def _names(calls: Sequence[Call], alone: Sequence[bool]) -> list[str]:
    """A name for each call: the layer's path, or path and function; repeated ones are numbered."""
    seen: Counter[str] = Counter()
    names = []
    for call, is_layer in zip(calls, alone, strict=True):
        module = call.visit.module
        name = module if is_layer and module else f"{module}.{call.name}".lstrip(".")
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names


def _axis(axis: Axis) -> AxisField:
    is_regular = axis.reach == "window" and len(axis.dims) > 0
    return AxisField(reach=axis.reach, size=axis.size, jump=axis.jump if is_regular else None)
