"""Weight provenance: are a file's weights the checkpoint's? Asks no sample, misses no unit.

Each tensor of an ONNX file is compared with the checkpoint's tensor of its name: bit-equal, or,
where the exporter folded a BatchNorm into the layer before it, equal to the same fold computed in
float64, up to the rounding of the file's precision. A gate of samples alone overlooks a changed
weight that hardly matters for these samples; this one does not.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

from export.bundle.metrics import Array, Arrays
from export.parity.intermediates import Program, operator_of
from export.parity.schema import WeightFigures

# Below float16's smallest normal number its rounding is absolute.
SMALLEST_HALF = 2.0**-14
PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# aten's names, and which axis of their weight counts the output channels.
LAYERS = {
    **dict.fromkeys(["conv1d", "conv2d", "conv3d", "linear"], 0),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], 1),
}
EPSILON_ARGUMENT = 7  # of aten.batch_norm


@dataclass(frozen=True)
class Fold:
    """A layer and the BatchNorm behind it, as names of tensors ("" for one that is not there).

    Attributes:
        norm: The BatchNorm's scale, shift, mean and variance.
        axis: Of the weight; counts the output channels.
    """

    weight: str
    bias: str
    norm: tuple[str, str, str, str]
    epsilon: float
    axis: int

    @property
    def tensors(self) -> set[str]:
        """All that is folded into one weight and one bias."""
        return {self.weight, self.bias, *self.norm}

    def folded(
        self, tensors: Mapping[str, Array], epsilon: float | None = None
    ) -> tuple[Array, Array]:
        """Weight and bias, float64, of one layer that computes both."""
        factor, shift, mean, variance = (
            tensors[name].astype(np.float64) if name else default
            for name, default in zip(self.norm, (1.0, 0.0, 0.0, 1.0), strict=True)
        )
        scale = factor / np.sqrt(variance + (epsilon or self.epsilon))
        weight = tensors[self.weight].astype(np.float64)
        bias = (tensors[self.bias] if self.bias else 0) - mean
        shape = [-1 if axis == self.axis else 1 for axis in range(weight.ndim)]
        return weight * np.reshape(scale, shape), shift + bias * scale


def state_arrays(module: nn.Module) -> Arrays:
    """A module's tensors by name."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}


def used_tensors(program: Program) -> Arrays:
    """The float tensors that a program computes with, by name: parameters, buffers, constants."""
    names = _names(program)
    kept = {**program.state_dict, **program.constants}
    return {
        names[node.name]: kept[names[node.name]].detach().cpu().numpy()
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names and node.users
        if kept[names[node.name]].is_floating_point()
    }


def find_folds(program: Program) -> list[Fold]:
    """The layers of a program that are followed by a BatchNorm and by nothing else."""
    names = _names(program)

    def named(nodes: Iterable[object]) -> list[str]:
        return [names.get(getattr(node, "name", ""), "") for node in nodes]

    folds = []
    for node in program.graph.nodes:
        after = list(node.users)
        if operator_of(node) not in LAYERS or [operator_of(user) for user in after] != [
            "batch_norm"
        ]:
            continue
        (norm,) = after
        weight, *bias = named(node.args[1:3])
        factor, shift, mean, variance = named(norm.args[1:5])
        if norm.args[0] is node and variance:  # without statistics it takes the batch's
            epsilon, axis = norm.args[EPSILON_ARGUMENT], LAYERS[operator_of(node)]
            parts = (factor, shift, mean, variance)
            folds.append(Fold(weight, "".join(bias), parts, epsilon, axis))
    return folds


def check_weights(model: onnx.ModelProto, program: Program) -> WeightFigures:
    """Compare a float32 ONNX model's tensors with the checkpoint's.

    Args:
        model: What ``export.convert.onnx_export`` made, or what became of it.
        program: The checkpoint's module, float32, exported: it holds the module's own tensors, and
            knows which are used and which can be folded.
    """
    found, _ = _tensors(model)
    comparison = _Comparison(found, {})
    expected = used_tensors(program)
    rest = set(expected)
    for fold in find_folds(program):
        if fold.weight in found and np.array_equal(found[fold.weight], expected[fold.weight]):
            continue  # this exporter did not fold it: its tensors are compared one by one
        weight, bias = fold.folded(expected)
        comparison.add(fold.weight, weight, folded=True)
        comparison.add(_bias_name(model, fold.weight), bias, folded=True)
        rest -= fold.tensors
    for name in sorted(rest):
        comparison.add(name, expected[name])
    comparison.add_epsilons(model, program)
    return comparison.figures()


def check_reduced(model: onnx.ModelProto, source: onnx.ModelProto) -> WeightFigures:
    """Compare a float16 or int8 (QDQ) model's tensors with the float32 model's it is made of.

    Args:
        model: Of reduced precision.
        source: In float32; ``check_weights`` holds it against the checkpoint.
    """
    found, steps = _tensors(model)
    comparison = _Comparison(found, steps)
    for name, array in _tensors(source)[0].items():
        if array.size > 1:
            comparison.add(name, array)
    return comparison.figures()


def check_state(found: Mapping[str, Array], module: nn.Module) -> WeightFigures:
    """Compare a TorchScript module's or a program's tensors with a module's, by name."""
    comparison = _Comparison(dict(found), {})
    for name, array in state_arrays(module).items():
        comparison.add(name, array)
    return comparison.figures()


class _Comparison:
    """Collects what came of each tensor."""

    def __init__(self, found: Arrays, steps: Arrays) -> None:
        self._found, self._steps = found, steps
        self._unclaimed = set(found)
        self._counts = {"equal": 0, "folded": 0, "converted": 0}
        self._error, self._worst = 0.0, ""
        self._problems: list[str] = []

    def add(self, name: str, expected: Array, *, folded: bool = False) -> None:
        """One tensor that the checkpoint asks for."""
        if name not in self._found:
            name = self._by_value(expected) or name
        if name not in self._found and (not expected.any() or np.all(expected == 1)):
            self._counts["equal"] += 1  # the exporter leaves out a sum with 0 and a product with 1
            return
        if name not in self._found:
            self._problems.append(
                f"{name} is not in the file (if the exporter computes with it in advance, say so: "
                "--tolerance onnx.cpu.weights=none --because ...)"
            )
            return
        self._unclaimed.discard(name)
        array = self._found[name]
        if array.shape != expected.shape:
            self._problems.append(f"{name} is {array.shape}, expected {expected.shape}")
        elif name in self._steps:
            self._note("converted", name, array, expected, self._steps[name])
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
            self._note("folded", name, array, expected, np.asarray(unit))

    def add_epsilons(self, model: onnx.ModelProto, program: Program) -> None:
        """Those of the BatchNorms that were not folded, known by their variance's name."""
        names = _names(program)
        expected = {
            names.get(getattr(node.args[4], "name", ""), ""): node.args[EPSILON_ARGUMENT]
            for node in program.graph.nodes
            if operator_of(node) == "batch_norm"
        }
        for node in model.graph.node:
            if node.op_type == "BatchNormalization" and node.input[4] in expected:
                found, own = epsilon_of(node), expected[node.input[4]]
                if not np.isclose(found, own, rtol=1e-6, atol=0):  # it is a float32 in the file
                    self._problems.append(f"epsilon of {node.name} is {found:g}, expected {own:g}")

    def figures(self) -> WeightFigures:
        """The sum of all."""
        constants = sum(self._found[name].size for name in self._unclaimed)
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
        """A tensor that lost its name, took another shape, or stands for two in the file."""
        for name in sorted(self._found):
            array = self._found[name]
            if np.array_equal(array, expected):
                return name
            for seen in (
                array.T,
                array.reshape(expected.shape) if array.size == expected.size else 0,
            ):
                if np.array_equal(seen, expected):
                    self._found[name] = np.asarray(seen)
                    return name
        return None


def where(array: Array, expected: Array, unit: Array | float = 1.0) -> str:
    """The element that differs most, measured in its unit, with both values."""
    difference = np.abs(array.astype(np.float64) - expected) / unit
    position = np.unravel_index(np.nan_to_num(difference, nan=np.inf).argmax(), array.shape)
    at = ", ".join(str(int(i)) for i in position)
    return f"[{at}] is {array[position]:.7g}, expected {expected[position]:.7g}"


def epsilon_of(node: onnx.NodeProto) -> float:
    """A BatchNormalization node's epsilon; ONNX's default where it says none."""
    return next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)


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
        zero = arrays[node.input[2]].astype(np.float64).reshape(shape) if node.input[2:] else 0
        found[name] = (quantized - zero) * step
        steps[name] = np.broadcast_to(step, quantized.shape)
    return found, steps


def _bias_name(model: onnx.ModelProto, weight: str) -> str:
    """What the third input of the node is called whose second is this weight."""
    for node in model.graph.node:
        if node.op_type in PRODUCTS and node.input[1] == weight and node.input[2:]:
            return str(node.input[2])
    return f"the bias beside {weight}"


def _names(program: Program) -> dict[str, str]:
    """Names of tensors by the names of the program's placeholders."""
    signature = program.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
