"""Measure the floor: float32's own error in a network's outputs.

The same module is run in about ten arrangements that are all float32 and all correct: other
batches, threads, memory formats and kernels, permuted sums, sequential sums, functions a few units
in the last place off. The floor is the worst error against float64 over all of them, channel by
channel. A correct file is one more arrangement and stays within a small multiple of the floor for
any network. A fixed bound would not suffice: a correct LSTM had a scaled error of 2.04e-6, an MLP
with a weight off by 1% one of 2.23e-6.

The multiples (``tolerances.RMS_MULTIPLE``, ``LARGEST_MULTIPLE``) come from
``python -m tests.export.limits``, which prints false-alarm and miss rates over networks and seeds.
"""

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.fx.node import map_aggregate

from export.bundle.golden import Predict, run_batched
from export.bundle.metrics import UNIT_ROUNDOFF, Arrays, Floor
from export.model.program import Program, operator_of
from export.parity.measure import judged_outputs, torch_threads
from export.parity.reference import Reference, eager_predict, predict_with

FLOOR_SAMPLES = 256
ODD_BATCH = 33
# Positions of a product's two factors among the operator's arguments; the product is a sum over one
# axis of each factor.
CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "convolution"}  # the last may be transposed
PRODUCTS = {
    "linear": (0, 1),
    **dict.fromkeys(CONVOLUTIONS, (0, 1)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), (0, 1)),
    **dict.fromkeys(("matmul", "mm", "bmm"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm"), (1, 2)),
}
# IEEE 754 does not fix the results of these. The OpenCL specification allows errors of 3 units in
# the last place for exp and log, 5 for tanh and 16 for erf; common libraries stay within 4.
ELEMENTARY = {"exp", "log", "tanh", "sigmoid", "erf", "sin", "cos", "pow", "rsqrt"}
ACTIVATIONS = {"gelu", "silu", "softplus", "elu", "selu", "celu", "mish"}
SOFTMAXES = {"softmax", "log_softmax", "logsumexp"}
NORMALISATIONS = {"layer_norm", "native_layer_norm", "group_norm"}
COMPOSED = {"lstm", "gru", "scaled_dot_product_attention"}
FUNCTIONS = ELEMENTARY | ACTIVATIONS | SOFTMAXES | NORMALISATIONS | COMPOSED
FUNCTION_ULPS = 4
# A gate is between 0 and 1; gated operators multiply their input by a gate. Runtimes compute a gate
# as 1/2 plus a remainder, so that its error is in roundings of 1, however small the gate is. ONNX
# Runtime's Sigmoid was off by up to 1.93 roundings for an unlikely class with outputs below 0.06.
GATES, GATED = {"sigmoid", "hardsigmoid"}, {"silu", "gelu", "mish", "hardswish"}
GATE_ROUNDINGS = 2


def measure_floor(reference: Reference, program: Program, samples: int) -> dict[str, Floor]:
    """Measure the floor of each output that is compared.

    Args:
        reference: Samples or edge cases, with their float64 outputs.
        program: The same module, exported.
        samples: The largest number of samples to use.
    """
    edges = len(reference.edge_cases)
    count = min(FLOOR_SAMPLES, samples, len(reference))
    inputs = reference.first(count)
    floors: dict[str, Floor] = {}
    for answers in _arrangements(reference, program, inputs):
        for spec in judged_outputs(reference):
            found = Floor.of(answers[spec.name], reference.fp64[spec.name][:count], edges)
            floors[spec.name] = found.or_worse(floors.get(spec.name, found))
    return floors


def _arrangements(reference: Reference, program: Program, inputs: Arrays) -> Iterator[Arrays]:
    module = reference.subject.module
    names = [spec.name for spec in reference.subject.outputs]
    eager = eager_predict(reference.subject)
    count = len(next(iter(inputs.values())))
    for batch in (count, ODD_BATCH, 1):
        yield run_batched(eager, inputs, batch)
    backwards = eager({name: array[::-1] for name, array in inputs.items()})
    yield {name: array[::-1] for name, array in backwards.items()}
    with torch_threads(2):
        yield eager(inputs)
    with _without_onednn():
        yield eager(inputs)
    if any(parameter.ndim == 4 for parameter in module.parameters()):  # noqa: PLR2004 - N, C, H, W
        channels_last = copy.deepcopy(module).to(memory_format=torch.channels_last)
        yield predict_with(channels_last, names)(inputs)
    for seed in range(2):
        yield disturbed(program, names, PermutedSums(seed))(inputs)
        yield disturbed(program, names, SequentialSums(seed))(inputs)


Disturbance = Callable[[Node, tuple[Any, ...], dict[str, Any]], Any]
"""Computes a node of a program in another, equally correct way."""


def disturbed(program: Program, outputs: list[str], disturbance: Disturbance) -> Predict:
    """The program as a function that computes each operator by the disturbance."""
    return predict_with(functools.partial(_run, _Disturbed(program, disturbance)), outputs)


def _run(interpreter: Interpreter, *tensors: Tensor) -> tuple[Tensor, ...]:
    result = interpreter.run(*tensors)
    values = result.values() if isinstance(result, dict) else result
    return (values,) if isinstance(values, Tensor) else tuple(values)


class _Disturbed(Interpreter):
    def __init__(self, program: Program, disturbance: Disturbance) -> None:
        super().__init__(program.module())
        self._disturbance = disturbance

    def run_node(self, n: Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        return self._disturbance(n, *self.fetch_args_kwargs_from_env(n))


class PermutedSums:
    """Sums the terms of each product in a random order."""

    def __init__(self, seed: int) -> None:
        """Seed the random orders."""
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The node's value."""
        if axes := _summed_axes(node, args):
            first, second = PRODUCTS[operator_of(node)]
            order = torch.randperm(args[second].shape[axes[1]], generator=self._generator)
            changed = list(args)
            changed[first] = args[first].index_select(axes[0], order)
            changed[second] = args[second].index_select(axes[1], order)
            args = tuple(changed)
        return _call(node, args, kwargs)


class SequentialSums:
    """Adds the errors of sequential sums, and of another library's functions.

    A sequential sum of n terms t rounds n times, each time by up to half a unit in the last place
    of the partial sum. The partial sum's square is on average half the sum of all t^2 if signs are
    random, and a third of the total's square if they agree. With errors of u / sqrt(3) each, the
    variance is u^2 n (sum t^2 / 6 + total^2 / 9).
    """

    def __init__(self, seed: int) -> None:
        """Seed the random errors."""
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The node's value."""
        result = _call(node, args, kwargs)
        name = operator_of(node)
        if name in PRODUCTS and isinstance(result, Tensor) and result.is_floating_point():
            squares = product_of(node, args, kwargs, torch.square)
            variance = terms_of(node, args) * (squares / 6 + result.square() / 9)
            return result + UNIT_ROUNDOFF * variance.sqrt() * self._random(result).clamp(-3, 3)
        if name in FUNCTIONS:
            result = map_aggregate(result, self._off)
        if name in GATES | GATED:
            size = args[0].abs() if name in GATED else torch.ones_like(args[0])
            return result + GATE_ROUNDINGS * UNIT_ROUNDOFF * size * self._random(result).sign()
        return result

    def _off(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        signs = self._random(value).sign()
        return value * (1 + 2 * UNIT_ROUNDOFF * FUNCTION_ULPS * signs)

    def _random(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._generator, dtype=like.dtype)


def product_of(
    node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]
) -> Tensor:
    """Compute a product with changed factors and bias, e.g. sum |a| |b| with ``torch.abs``."""

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    result: Tensor = _call(node, map_aggregate(args, changed), map_aggregate(kwargs, changed))
    return result


def terms_of(node: Node, args: tuple[Any, ...]) -> int:
    """The number of terms in the sum of each value of a product, including the bias."""
    name = operator_of(node)
    weight = args[PRODUCTS[name][1]]
    if _is_transposed(name, args):
        return int(weight[:, 0].numel()) + 1
    if name in CONVOLUTIONS:
        return int(weight[0].numel()) + 1
    return int(args[PRODUCTS[name][0]].shape[-1]) + 1


def _is_transposed(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a convolution is transposed, which is aten.convolution's seventh argument."""
    return name.startswith("conv_transpose") or (name == "convolution" and bool(args[6]))


def _call(node: Node, args: Any, kwargs: Any) -> Any:
    return node.target(*args, **kwargs)  # type: ignore[operator]  # a function, for such a node


def _summed_axes(node: Node, args: tuple[Any, ...]) -> tuple[int, int] | None:
    """The axes of both factors that are summed over; None if they cannot be permuted."""
    name = operator_of(node)
    if name not in PRODUCTS or _is_transposed(name, args):
        return None
    first, second = (args[position] for position in PRODUCTS[name])
    if min(first.ndim, second.ndim) < 2:  # noqa: PLR2004 - a vector
        return None
    if name in CONVOLUTIONS:
        grouped = first.shape[1] != second.shape[1]
        return None if grouped or first.ndim != second.ndim else (1, 1)
    return (-1, -1) if name == "linear" else (-1, -2)


@contextmanager
def _without_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32 acceleration")  # concerns Intel's GPUs
        with torch.backends.mkldnn.flags(enabled=False):
            yield
