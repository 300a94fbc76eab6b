"""Run an exported program node by node: as it is, or with every floating operator in float64.

``module.double()`` is not a float64 reference: a ``.float()`` in ``forward``, an explicit dtype or
``uint8 / 255`` silently computes in float32. Here each operator that runs is intercepted, including
the parts of composite operators. If one still returns less than float64, the reference is refused
and the error names the operator.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch._ops import HigherOrderOperator
from torch.fx import Interpreter, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from export.bundle.golden import Predict
from export.bundle.manifest import SubjectError
from export.bundle.metrics import Arrays
from export.model.program import Program

# The default dtype is shared by all threads.
_ONE_AT_A_TIME = threading.Lock()

WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


class NarrowOperatorError(SubjectError):
    """An operator, named in the message, cannot be computed in float64: there is no reference."""

    def __init__(self, operators: set[str]) -> None:
        """Make a message that names the operators and says what to do."""
        super().__init__(
            f"there is no float64 reference: {', '.join(sorted(operators))} computed in less than "
            "float64 although every input was float64; expected operators that follow the type of "
            "their inputs: replace them in forward by PyTorch's own operators"
        )


class _Float64Mode(TorchDispatchMode):
    """While it is active, every operator takes and returns float64 instead of narrower floats.

    Attributes:
        narrow: The operators that returned a narrower float nevertheless.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.narrow: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = (args, kwargs or {})
        wide_args, wide_kwargs = tree_map(_widened, given)
        result = func(*wide_args, **wide_kwargs)
        # An in-place operator would have changed the widened copy, not the tensor itself.
        lost = func._schema.is_mutable and any(map(_is_narrow, tree_leaves(given)))
        if lost or any(map(_is_narrow, tree_leaves(result))):
            self.narrow.add(str(func))
        return result


class WideInterpreter(Interpreter):
    """Runs a program as it is, or with every floating operator in float64 (``run_program``)."""

    def __init__(self, program: Program, *, double: bool) -> None:
        """Prepare the program; nothing is run yet."""
        super().__init__(program.module())
        self.double = double

    def run_node(self, n: Node) -> Any:
        """Return the node's value."""
        result = super().run_node(n)
        return _widened(result) if self.double and n.op in ("get_attr", "placeholder") else result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result of the node's function."""
        if self.double and isinstance(target, HigherOrderOperator):
            return _call_block(target, args, kwargs)
        return super().call_function(target, args, kwargs)


class _Recorder(WideInterpreter):
    """Runs a program and keeps the values of the wanted nodes."""

    def __init__(self, program: Program, wanted: dict[str, str], *, double: bool) -> None:
        super().__init__(program, double=double)
        self._wanted = wanted
        self.values: Arrays = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.name in self._wanted and isinstance(result, torch.Tensor):
            # A copy: a later operator may change the values in place.
            self.values[self._wanted[n.name]] = result.detach().resolve_conj().numpy().copy()
        return result


def fp64_predict(program: Program, outputs: list[str]) -> Predict:
    """The program as a function from arrays to arrays, with every floating operator in float64.

    Args:
        program: From ``export.convert.pt2.export_program``.
        outputs: The outputs' names, in order.
    """

    def predict(inputs: Arrays) -> Arrays:
        recorder = _Recorder(program, {}, double=True)
        answers = run_program(recorder, inputs)
        return {name: t.numpy() for name, t in zip(outputs, answers, strict=True)}

    return predict


def node_values(
    program: Program, wanted: dict[str, Node], inputs: Arrays, *, double: bool
) -> Arrays:
    """The values of some nodes of a program, by the given names.

    Args:
        program: The program that has the nodes.
        wanted: The nodes by the names of their values.
        inputs: Samples.
        double: Compute every floating operator in float64.

    Raises:
        NarrowOperatorError: An operator cannot be computed in float64.
    """
    recorder = _Recorder(program, {n.name: name for name, n in wanted.items()}, double=double)
    run_program(recorder, inputs)
    return recorder.values


def run_program(program: WideInterpreter, inputs: Arrays) -> Any:
    """The program's outputs as tensors.

    Raises:
        NarrowOperatorError: An operator cannot be computed in float64.
    """
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in inputs.values()]
    with torch.no_grad():
        if not program.double:
            return program.run(*tensors)
        mode = _Float64Mode()
        with _ONE_AT_A_TIME, _default_dtype(torch.float64), mode:
            answers = program.run(*tensors)
    if mode.narrow:
        raise NarrowOperatorError(mode.narrow)
    return answers


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set the dtype of results without an explicit one, such as the quotient of integers."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def _widened(value: Any) -> Any:
    """Convert narrow float tensors and dtypes to float64; return anything else unchanged."""
    if isinstance(value, torch.dtype):
        return WIDE.get(value, value)
    return value.to(WIDE[value.dtype]) if _is_narrow(value) else value


def _is_narrow(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in WIDE


def _call_block(operator: HigherOrderOperator, args: tuple[Any, ...], kwargs: Any) -> Any:
    """Run the block of a higher-order operator directly, so that its operators are intercepted."""
    block: Callable[..., Any]
    match operator.name(), args:
        case "wrap_with_set_grad_enabled", (_, block, *operands):
            return block(*operands)
        case "wrap_with_autocast", (_, _, _, _, block, *operands):
            return block(*operands)
        case "cond", (predicate, when_true, when_false, operands):
            return (when_true if bool(predicate) else when_false)(*operands)
        case name, _:
            raise NarrowOperatorError({name})
