"""Run a module once and record every torch function that it calls.

``TorchFunctionMode`` intercepts calls as they are written (``conv2d``, ``cat``, ``x + y``), whether
a layer or ``forward`` makes them; calls within a call are not recorded. Hooks record the module of
each call. On the device "meta", tensors have shapes but no values, so nothing is allocated or
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

# Errors that torch and a network's own checks raise for tensors that do not fit.
FROM_FORWARD = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)

# Operator methods, most for swapped operands or in-place work, and the functions they stand for.
OPERATORS = {"radd": "add", "iadd": "add", "rmul": "mul", "imul": "mul", "isub": "sub"} | {
    "rsub": "sub", "itruediv": "div", "truediv": "div", "rtruediv": "div", "rdiv": "div",
    "rmatmul": "matmul", "rpow": "pow", "ipow": "pow",
}  # fmt: skip


class Visit(NamedTuple):
    """One entry into a module: its path ("" for the outermost), its class, the visit's number."""

    module: str
    module_class: type[nn.Module]
    number: int


class Call(NamedTuple):
    """One call of a torch function that returned tensors.

    Attributes:
        visit: The visit to the module that made the call.
        name: The function's name without underscores: "conv2d", "add".
        function: The function.
        arguments: Positional arguments.
        keywords: Keyword arguments.
        outputs: The tensors that it returned, or the one that it changed.
        flops: The count of ``torch.utils.flop_counter``: two for each multiply-add.
    """

    visit: Visit
    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    outputs: tuple[Tensor, ...]
    flops: int

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, including those in lists, in their order."""
        return _tensors((self.arguments, self.keywords))


class Trace(NamedTuple):
    """A recorded run: the calls in their order, the inputs, the outputs and the copied module.

    Tensors made from no other tensor (``torch.zeros``) are constants, and have no call.
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
        visit = self.visits[-1]
        try:
            with FlopCounterMode(display=False) as counter:
                result = function(*arguments, **given)
        except FROM_FORWARD as error:
            raise DescribeError(explained(visit.module, name, arguments, given, error)) from error
        changed = arguments[0] if name == "setitem" else result
        if outputs := tuple(_tensors(changed)):
            flops = counter.get_total_flops()
            # Lists among the arguments are copied: forward may append to them afterwards.
            arguments, given = tree_map(lambda leaf: leaf, (arguments, given))
            call = Call(visit, name, function, arguments, given, outputs, flops)
            if call.tensors:
                self.calls.append(call)
            else:
                self.constants.extend(outputs)
        return result

    def leave(self, module: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
        """End a visit; a module that only returns its input (``nn.Identity``) is recorded, too."""
        visit = self.visits.pop()
        silent = not self.calls or self.calls[-1].visit.number < visit.number
        if silent and not any(module.children()) and any(result is x for x in inputs):
            self.calls.append(Call(visit, "identity", module, inputs, {}, (result,), 0))


def trace(module: nn.Module, inputs: Sequence[Tensor]) -> Trace:
    """Run a copy of the module in evaluation mode and record its calls.

    Args:
        module: The module; it is not changed. Its weights are not copied if inputs are on "meta".
        inputs: The arguments of ``forward``, in its order; their first axis is the batch.

    Raises:
        DescribeError: The module cannot take these inputs, or reads values of "meta" tensors.
    """
    _refuse_what_cannot_be_read(module)
    try:
        inspect.signature(module.forward).bind(*inputs)
    except TypeError as error:
        raise DescribeError(
            f"forward of {type(module).__name__} cannot take {len(inputs)} inputs ({error}): give "
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


def memory_of(tensor: Tensor) -> int:
    """Identify the tensor's memory, which its views share."""
    return int(tensor.untyped_storage()._cdata)


def _refuse_what_cannot_be_read(module: nn.Module) -> None:
    for path, part in module.named_modules():
        where = path or type(module).__name__
        if isinstance(part, torch.jit.ScriptModule):
            raise DescribeError(
                f"{where} is TorchScript, whose calls cannot be recorded: describe the nn.Module "
                "that it was made from"
            )
        if any(isinstance(weight, UninitializedParameter) for weight in part.parameters()):
            raise DescribeError(
                f"{where} is lazy and has no weights yet: run it once before describe()"
            )


def _on_meta(module: nn.Module) -> nn.Module:
    """Copy a module without its values: ``deepcopy`` gets a "meta" stand-in for each tensor."""
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
