"""Weight provenance: are a file's weights the checkpoint's? Asks no sample, misses no unit.

Each tensor of an ONNX file is compared with the checkpoint's tensor of its name: bit-equal, or,
where the exporter folded a BatchNorm into the layer before it, equal to the same fold computed in
float64, up to the rounding of the file's precision. A gate of samples alone overlooks a changed
weight that hardly matters for these samples; this one does not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.fx import Node

from export.parity.figures import WeightFigures
from export.parity.metrics import Array, Arrays, scaled_difference
from export.parity.tolerances import FOLD_ERROR

# Below float16's smallest normal number its rounding is absolute.
SMALLEST_HALF = 2.0**-14
PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
LAYERS = ("conv1d", "conv2d", "conv3d", "linear")
Program = torch.export.ExportedProgram


@dataclass(frozen=True)
class Fold:
    """A layer and the BatchNorm behind it, as names of the module's tensors ("" for no bias)."""

    weight: str
    bias: str
    norm: str
    epsilon: float

    def folded(
        self, state: Mapping[str, Array], epsilon: float | None = None
    ) -> tuple[Array, Array]:
        """Weight and bias, float64, of one layer that computes both."""
        part = {name: state[f"{self.norm}{name}"].astype(np.float64) for name in _NORM_PARTS}
        scale = part["weight"] / np.sqrt(part["running_var"] + (epsilon or self.epsilon))
        weight = state[self.weight].astype(np.float64)
        bias = (state[self.bias] if self.bias else 0) - part["running_mean"]
        rows = scale.reshape(-1, *[1] * (weight.ndim - 1))
        return weight * rows, part["bias"] + bias * scale


_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


def state_arrays(module: nn.Module) -> Arrays:
    """A module's tensors by name."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}


def find_folds(program: Program) -> list[Fold]:
    """The layers of a program that are followed by a BatchNorm and by nothing else."""
    names = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    folds = []
    for node in program.graph.nodes:
        if not _is(node, LAYERS):
            continue
        users = list(node.users)
        if len(users) == 1 and _is(users[0], ("batch_norm",)) and users[0].args[0] is node:
            _, weight, *bias = (names.get(getattr(arg, "name", ""), "") for arg in node.args[:3])
            norm = names[users[0].args[1].name].removesuffix("weight")
            folds.append(Fold(weight, "".join(bias), norm, users[0].args[7]))
    return folds


def check_weights(model: onnx.ModelProto, module: nn.Module, program: Program) -> WeightFigures:
    """Compare an ONNX model's tensors with a module's.

    Args:
        model: What ``export.to_onnx`` made, or what became of it: float32, float16, or int8 in
            QDQ form.
        module: The checkpoint's module, float32, in evaluation mode.
        program: The same, exported: it knows which tensors are used, and which can be folded.
    """
    found, steps = _tensors(model)
    comparison = _Comparison(found, steps)
    state = state_arrays(module)
    used = _used(program)
    for fold in find_folds(program):
        if fold.weight in found and np.array_equal(found[fold.weight], state[fold.weight]):
            continue  # this exporter did not fold it: its tensors are compared one by one
        weight, bias = fold.folded(state)
        comparison.add(fold.weight, weight, folded=True)
        comparison.add(_bias_name(model, fold.weight), bias, folded=True)
        used -= {fold.weight, fold.bias, *(f"{fold.norm}{part}" for part in _NORM_PARTS)}
    for name in sorted(used):
        comparison.add(name, state[name], folded=False)
    return comparison.figures()


def check_state(found: Mapping[str, Array], module: nn.Module) -> WeightFigures:
    """Compare a TorchScript module's or a program's tensors with a module's, by name."""
    comparison = _Comparison(dict(found), {})
    for name, array in state_arrays(module).items():
        comparison.add(name, array, folded=False)
    return comparison.figures()


class _Comparison:
    """Collects what came of each tensor."""

    def __init__(self, found: Arrays, steps: Arrays) -> None:
        self._found, self._steps = found, steps
        self._unclaimed = set(found)
        self._counts = {"equal": 0, "folded": 0, "converted": 0}
        self._error, self._worst = 0.0, ""
        self._problems: list[str] = []

    def add(self, name: str, expected: Array, *, folded: bool) -> None:
        """One tensor that the checkpoint asks for."""
        if name not in self._found:
            name = self._by_value(expected) or name
        if name not in self._found:
            self._problems.append(f"{name} is not in the file")
            return
        self._unclaimed.discard(name)
        array = self._found[name]
        if array.shape != expected.shape:
            self._problems.append(f"{name} is {array.shape}, expected {expected.shape}")
        elif name in self._steps:
            # A folded tensor was rounded once before it was quantized.
            earlier = 2 * FOLD_ERROR * np.abs(expected).max() if folded else 0
            self._note("converted", name, array, expected, self._steps[name] + earlier)
        elif array.dtype == np.float16 and expected.dtype != np.float16:
            self._note("converted", name, array, expected, np.maximum(abs(expected), SMALLEST_HALF))
        elif not folded and np.array_equal(array, expected):
            self._counts["equal"] += 1
        elif not folded:
            self._problems.append(f"{name} differs from the checkpoint: {where(array, expected)}")
        else:
            # A bias is a difference of large numbers: its error is one of theirs.
            tiny = np.finfo(np.float32).tiny  # a weight that is exactly zero must stay so
            unit = np.abs(expected).max() if expected.ndim == 1 else np.maximum(abs(expected), tiny)
            if self._steps and scaled_difference(array, expected) > FOLD_ERROR:
                self._problems.append(f"{name} differs from the fold: {where(array, expected)}")
            else:
                self._note("folded", name, array, expected, np.asarray(unit))

    def figures(self) -> WeightFigures:
        """The sum of all; floats of more than one element that nobody asked for are a problem."""
        for name in sorted(self._unclaimed):
            if self._found[name].size > 1:
                self._problems.append(f"{name} {self._found[name].shape} is not in the checkpoint")
        constants = sum(self._found[name].size == 1 for name in self._unclaimed)
        return WeightFigures(
            **self._counts,
            constants=constants,
            error=self._error,
            worst=self._worst,
            problems=tuple(self._problems),
        )

    def _note(self, kind: str, name: str, array: Array, expected: Array, unit: Array) -> None:
        self._counts[kind] += 1
        difference = np.abs(array.astype(np.float64) - expected) / unit
        error = float(np.where(np.isfinite(difference), difference, np.inf).max())
        if not self._worst or error > self._error:
            self._error, self._worst = error, f"{name}{where(array, expected, unit)}"

    def _by_value(self, expected: Array) -> str | None:
        """A tensor that lost its name, or was transposed, on its way into the file."""
        for name in sorted(self._unclaimed):
            array = self._found[name]
            if np.array_equal(array, expected):
                return name
            if np.array_equal(array.T, expected):
                self._found[name] = array.T
                return name
        return None


def where(array: Array, expected: Array, unit: Array | float = 1.0) -> str:
    """The element that differs most, measured in its unit, with both values."""
    difference = np.abs(array.astype(np.float64) - expected) / unit
    position = np.unravel_index(np.nan_to_num(difference, nan=np.inf).argmax(), array.shape)
    at = ", ".join(str(int(i)) for i in position)
    return f"[{at}] is {array[position]:.7g}, expected {expected[position]:.7g}"


def _tensors(model: onnx.ModelProto) -> tuple[Arrays, Arrays]:
    """Float tensors by name, dequantized where need be; and the steps of those that were."""
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = {name: a for name, a in arrays.items() if np.issubdtype(a.dtype, np.floating)}
    steps: Arrays = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            found.pop(node.input[1], None)  # an activation's scale
        if node.op_type != "DequantizeLinear":
            continue
        found.pop(node.input[1], None)
        if node.input[0] not in arrays:
            continue
        quantized, scale = arrays[node.input[0]].astype(np.float64), arrays[node.input[1]]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if i == axis else 1 for i in range(quantized.ndim)] if scale.ndim else []
        step = scale.astype(np.float64).reshape(shape)
        name = node.input[0].removesuffix("_quantized")
        found[name] = quantized * step  # zero points are 0: weights are symmetric
        steps[name] = np.broadcast_to(step, quantized.shape)
    return found, steps


def _bias_name(model: onnx.ModelProto, weight: str) -> str:
    """What the third input of the node is called whose second is this weight."""
    for node in model.graph.node:
        names = [_stored_name(name) for name in node.input]
        if node.op_type in PRODUCTS and names[1] == weight and names[2:]:
            return names[2]
    return f"the bias beside {weight}"


def _stored_name(name: str) -> str:
    return name.removesuffix("_DequantizeLinear_Output")


def _used(program: Program) -> set[str]:
    """Names of the float tensors that a program computes with."""
    signature = program.graph_signature
    names = signature.inputs_to_parameters | signature.inputs_to_buffers
    return {
        names[node.name]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names and node.users
        if program.state_dict[names[node.name]].is_floating_point()
    }


def _is(node: Node, names: tuple[str, ...]) -> bool:
    return node.op == "call_function" and str(node.target).split(".")[1:2] in [[n] for n in names]
