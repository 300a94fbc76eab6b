"""Runs a module once and records every torch function that it calls.

``TorchFunctionMode`` sees calls as they are written (``conv2d``, ``cat``, ``x + y``), whether a
layer or ``forward`` makes them; calls within a call are not recorded. Hooks record in which module
each happens. On the device "meta" tensors have shapes and no values: nothing is allocated or
computed.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from training.describe.errors import DescribeError, explained

# What torch and a network's own checks raise for tensors that do not fit.
FROM_FORWARD = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)

# What Python calls where the operands come in another order, or where one of them is changed.
OPERATORS = {"radd": "add", "iadd": "add", "rmul": "mul", "imul": "mul", "isub": "sub"} | {
    "rsub": "sub", "itruediv": "div", "truediv": "div", "rtruediv": "div", "rdiv": "div",
    "rmatmul": "matmul", "rpow": "pow", "ipow": "pow",
}  # fmt: skip


class Call(NamedTuple):
    """One call of a torch function that gave tensors.

    Attributes:
        module: Path of the module it happened in; "" for the outermost.
        module_class: The class of that module.
        visit: Counts how often any module was entered: calls of one visit are of one module.
        name: The function's, without underscores: "conv2d", "add".
        function: The function.
        arguments: As given.
        keywords: As given.
        outputs: The tensors that it gave, or the one that it changed.
        flops: What ``torch.utils.flop_counter`` counts for it: two for each multiply-add.
    """

    module: str
    module_class: type[nn.Module]
    visit: int
    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    outputs: tuple[Tensor, ...]
    flops: int

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, those in lists included, in their order."""
        return _tensors((self.arguments, self.keywords))


class Visit(NamedTuple):
    """A module was entered: its path, its class, and its number among the visits."""

    module: str
    module_class: type[nn.Module]
    number: int


class Trace(NamedTuple):
    """What happened: the calls in their order, and what went in and came out.

    What was made from no tensor (``torch.zeros``) is among the constants, and no call.
    """

    calls: list[Call]
    constants: list[Tensor]
    inputs: list[Tensor]
    outputs: list[Tensor]
    module: nn.Module


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.visits: list[Visit] = []
        self.constants: list[Tensor] = []
        self.entered = 0

    def enter(self, path: str, module: nn.Module) -> None:
        self.visits.append(Visit(path, type(module), self.entered))
        self.entered += 1

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        arguments: tuple[Any, ...] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(keywords or {})
        name = _name(function)
        path, module_class, number = self.visits[-1]
        try:
            with FlopCounterMode(display=False) as counter:
                result = function(*arguments, **given)
        except FROM_FORWARD as error:
            raise DescribeError(explained(path, name, arguments, given, error)) from error
        changed = arguments[0] if name == "setitem" else result
        if outputs := tuple(_tensors(changed)):
            flops = counter.get_total_flops()
            # Copies of the lists among the arguments: forward may append to them afterwards.
            arguments, given = tree_map(lambda leaf: leaf, (arguments, given))
            call = Call(
                path, module_class, number, name, function, arguments, given, outputs, flops
            )
            if call.tensors:
                self.calls.append(call)
            else:
                self.constants.extend(outputs)
        return result

    def leave(self, module: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
        """A module that only hands on what it got (``nn.Identity``) is a step as well."""
        path, module_class, number = self.visits.pop()
        silent = not self.calls or self.calls[-1].visit < number
        if silent and not any(module.children()) and any(result is x for x in inputs):
            self.calls.append(
                Call(path, module_class, number, "identity", module, inputs, {}, (result,), 0)
            )


def trace(module: nn.Module, inputs: Sequence[Tensor]) -> Trace:
    """Run a copy of the module, in evaluation mode, and note its calls.

    Args:
        module: Stays as it is. Its weights are not copied where the inputs are on "meta".
        inputs: What ``forward`` takes, in its order, the first axis being the sample.

    Raises:
        DescribeError: The module cannot take these inputs, or looks at values that are not there.
    """
    _refuse_what_cannot_be_read(module)
    try:
        inspect.signature(module.forward).bind(*inputs)
    except TypeError as error:
        raise DescribeError(
            f"forward of {type(module).__name__} cannot take {len(inputs)} inputs ({error}): state "
            "a shape for each of its arguments"
        ) from error
    without_values = all(tensor.is_meta for tensor in inputs)
    twin = _on_meta(module) if without_values else copy.deepcopy(module)
    twin.eval()
    recorder = _Recorder()
    for path, part in twin.named_modules():
        part.register_forward_pre_hook(
            lambda part, _, path=path: recorder.enter(path, part),
            prepend=True,
        )
        part.register_forward_hook(recorder.leave)
    device = torch.device("meta") if without_values else inputs[0].device
    try:
        with torch.no_grad(), device, recorder:
            result = twin(*inputs)
    except DescribeError:
        raise
    except FROM_FORWARD as error:
        where = recorder.visits[-1].module if recorder.visits else ""
        raise DescribeError(explained(where, "forward", tuple(inputs), {}, error)) from error
    return Trace(recorder.calls, recorder.constants, list(inputs), _tensors(result), twin)


def _refuse_what_cannot_be_read(module: nn.Module) -> None:
    for path, part in module.named_modules():
        where = path or type(module).__name__
        if isinstance(part, torch.jit.ScriptModule):
            raise DescribeError(
                f"{where} is TorchScript, whose calls cannot be seen: describe the nn.Module that "
                "it was made from"
            )
        if any(isinstance(weight, UninitializedParameter) for weight in part.parameters()):
            raise DescribeError(
                f"{where} is lazy and has no weights yet: run it once before describe()"
            )


def _on_meta(module: nn.Module) -> nn.Module:
    """A copy without values: ``deepcopy`` gets a stand-in for each tensor."""
    stand_ins: dict[int, Any] = {}
    for parameter in module.parameters():
        empty = torch.empty_like(parameter, device="meta")
        stand_ins[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    for buffer in module.buffers():
        stand_ins[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, stand_ins)


def _name(function: Callable[..., Any]) -> str:
    name: str = getattr(function, "__name__", type(function).__name__)
    if name == "__get__":  # a property: x.T
        name = getattr(getattr(function, "__self__", None), "__name__", name)
    name = name.split(".")[0].strip("_").removesuffix("_with_indices")
    return OPERATORS.get(name, name)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
