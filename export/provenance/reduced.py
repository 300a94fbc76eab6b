"""Compare a float16 or int8 file with the float32 file that it was made from, node by node.

Each node of the float32 file must be in the reduced one, with the same attributes and the same
inputs. Its tensors may be rounded by a step, which is computed here from the float32 tensor and not
read from the file. Nodes that only convert values are skipped.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from export.bundle.metrics import Array
from export.provenance.figures import Outcome, WeightFigures, is_float, same_bits, where
from export.provenance.regions import stored_tensors, subgraph_inputs
from export.provenance.rules import attribute_of

# float16's smallest normal number, below which its rounding error is absolute, and its largest one.
SMALLEST_HALF, LARGEST_HALF = 2.0**-14, 65504.0
QUANTIZERS = {"QuantizeLinear", "DequantizeLinear"}
ACTIVATIONS = {"Relu", "Clip"}  # rounding to uint8 may replace their clipping
# Largest number of a symmetric int8 range; and of one that is reduced for processors whose products
# of bytes saturate. The same for uint8.
SYMMETRIC, REDUCED_SYMMETRIC = 127, 64
UNSIGNED, REDUCED_UNSIGNED = 255, 127
# ONNX Runtime enlarges a weight's step if the bias, in steps of input and weight, would exceed an
# int32; the reserve is how far beyond the limit.
BIAS_STEPS, BIAS_RESERVE = 2.0**32 - 2, 1.0001
ONE_ROUNDING = 2.0**-23


def check_reduced(model: onnx.ModelProto, source: onnx.ModelProto) -> WeightFigures:
    """Compare a float16 or int8 (QDQ) model with the float32 model that it was made from.

    Args:
        model: The reduced-precision model.
        source: The float32 model; ``trace.check_weights`` compares it with the checkpoint.
    """
    with np.errstate(invalid="ignore", divide="ignore"):  # a step of 0 is reported as a problem
        return _Comparison(_Graph(model), _Graph(source)).run()


class _Graph:
    """A model's nodes by name, its tensors, and the producer of each value.

    Attributes:
        givers: For each value, the name of the node that produces it, and the output's position.
        passed: Names of the nodes that are skipped, because they only convert values.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = {node.name or node.output[0]: node for node in model.graph.node}
        self.tensors = stored_tensors(model)
        self.givers = {
            output: (name, position)
            for name, node in self.nodes.items()
            for position, output in enumerate(node.output)
        }
        self.outputs = [value.name for value in model.graph.output]
        self.passed: set[str] = set()

    def giver(self, value: str) -> onnx.NodeProto | None:
        """The node that produces a value; None for an input or a stored tensor."""
        return self.nodes.get(self.givers.get(value, ("", 0))[0])

    def look_through(self, value: str) -> tuple[str, onnx.NodeProto | None]:
        """The value or tensor before the nodes in ``passed``, and the node that dequantizes it."""
        dequantizer = None
        while value not in self.tensors and self.givers.get(value, ("", 0))[0] in self.passed:
            node = self.nodes[self.givers[value][0]]
            dequantizer = node if node.op_type == "DequantizeLinear" else dequantizer
            value = node.input[0]
        return value, dequantizer

    def origin(self, value: str) -> tuple[str, int]:
        """The node before those in ``passed`` that produces a value, and which of its outputs."""
        behind, _ = self.look_through(value)
        return self.givers.get(behind, (behind, 0))

    def step(self, quantizer: onnx.NodeProto, array: Array | None = None) -> tuple[Array, Array]:
        """Scale and zero point of a QuantizeLinear or DequantizeLinear, in float64.

        Per-channel values have a shape that broadcasts to the array's, if an array is given.
        """
        zero = self.tensors[quantizer.input[2]] if quantizer.input[2:] else np.zeros(())
        scale, shape = self.tensors[quantizer.input[1]], None
        if array is not None and scale.size > 1:
            shape = [1] * array.ndim
            shape[attribute_of(quantizer, "axis")] = -1
        scale, zero = (a.astype(np.float64).reshape(shape or a.shape) for a in (scale, zero))
        return scale, zero


class _Comparison:
    """Compares all nodes of both graphs and collects the outcome of each tensor."""

    def __init__(self, found: _Graph, source: _Graph) -> None:
        self._found, self._source, self._outcome = found, source, Outcome()
        self._added = {n for n in found.nodes if n not in source.nodes}
        found.passed = {n for n in self._added if self._passes(found.nodes[n])}
        source.passed = {n for n in source.nodes if n not in found.nodes}
        self._reduced = _has_reduced_range(found)
        self._counted: set[str] = set()

    def run(self) -> WeightFigures:
        """Compare every node."""
        problems = self._outcome.problems
        for name in self._added - self._found.passed:
            node = self._found.nodes[name]
            problems.append(f"{name} ({node.op_type}) is not in the float32 file")
        for name, node in self._source.nodes.items():
            if name in self._source.passed:
                if not self._is_clipped_by_rounding(node):
                    problems.append(f"{node.name} ({node.op_type}) is not in the file")
            else:
                problems += self._attribute_problems(self._found.nodes[name], node)
                problems += self._input_problems(self._found.nodes[name], node)
        for mine, theirs in zip(self._found.outputs, self._source.outputs, strict=True):
            problems += self._wiring_problems("the output", mine, theirs)
        for name in self._found.passed:
            problems += self._activation_problems(self._found.nodes[name])
        return self._outcome.figures()

    def _passes(self, node: onnx.NodeProto) -> bool:
        """Whether an added node changes values only by rounding."""
        if node.op_type in {*QUANTIZERS, "Cast"}:
            return True
        bounds = [self._found.tensors.get(name, np.array(np.nan)) for name in node.input[1:]]
        if node.op_type != "Max" or all(bool((bound == -np.inf).all()) for bound in bounds):
            return node.op_type == "Max"
        giver = self._found.giver(node.input[0])
        while giver is not None and giver.op_type == "MaxPool":
            giver = self._found.giver(giver.input[0])
        zero = all(bool((bound == 0).all()) for bound in bounds)
        return zero and giver is not None and giver.op_type == "Relu"

    def _is_clipped_by_rounding(self, node: onnx.NodeProto) -> bool:
        """Whether a Relu or Clip may be missing: rounding to uint8 after it clips as much."""
        low, high = 0.0, np.inf
        if node.op_type == "Clip":
            low, high = (float(self._source.tensors[name].item()) for name in node.input[1:3])
        for name in self._found.passed if node.op_type in ACTIVATIONS else ():
            quantizer = self._found.nodes[name]
            if quantizer.op_type == "QuantizeLinear" and quantizer.input[0] == node.output[0]:
                scale, zero = (float(a.item()) for a in self._found.step(quantizer))
                lowest, highest = -zero * scale, (UNSIGNED - zero) * scale
                if lowest >= low - scale / 2 and highest <= high + scale / 2:
                    return True
        return False

    def _attribute_problems(self, found: onnx.NodeProto, source: onnx.NodeProto) -> Iterator[str]:
        if source.op_type != found.op_type:
            yield f"{source.name} is a {found.op_type}, expected a {source.op_type}"
            return
        kinds = {a.name: a.type for a in [*source.attribute, *found.attribute]}
        for name, kind in sorted(kinds.items()):
            if kind == onnx.AttributeProto.GRAPH:
                self._outcome.counts["settings_untraced"] += 1
                continue
            mine, theirs = _attribute(found, name), _attribute(source, name)
            half = name == "to" and (mine, theirs) == (TensorProto.FLOAT16, TensorProto.FLOAT)
            if mine == theirs or half:
                self._outcome.counts["settings"] += 1
            else:
                yield f"{name} of {source.name} ({source.op_type}) is {mine}, expected {theirs}"

    def _input_problems(self, found: onnx.NodeProto, source: onnx.NodeProto) -> Iterator[str]:
        if subgraph_inputs(source):
            self._outcome.counts["settings_untraced"] += 1  # its subgraph takes more
        if len(found.input) != len(source.input):
            yield f"{source.name} has {len(found.input)} inputs, expected {len(source.input)}"
            return
        for slot, name in enumerate(source.input):
            if name in self._source.tensors:
                yield from self._tensor_problems(found, slot, name)
            else:
                yield from self._wiring_problems(source.name, found.input[slot], name)

    def _wiring_problems(self, place: str, value: str, name: str) -> Iterator[str]:
        mine, theirs = self._found.origin(value), self._source.origin(name)
        if mine != theirs:
            yield f"{place} is connected to {mine[0]}, expected {theirs[0]}"

    def _tensor_problems(self, node: onnx.NodeProto, slot: int, name: str) -> Iterator[str]:
        """Compare a stored tensor; the error of a rounded one is noted in the outcome."""
        expected = self._source.tensors[name]
        stored, dequantizer = self._found.look_through(node.input[slot])
        place, array = f"{name}, input {slot} of {node.name},", self._found.tensors.get(stored)
        if array is None:
            yield f"{place} is not in the file"
        elif array.shape != expected.shape:
            yield f"{place} has the shape {array.shape}, expected {expected.shape}"
        elif dequantizer is not None and is_float(expected):
            scale, zero = self._found.step(dequantizer, array)
            wanted, wanted_zero = self._expected_step(node, slot, scale, array.dtype, expected)
            yield from _step_problems(place, scale, wanted)
            if np.any(zero != wanted_zero):
                yield f"{place} has another zero point, expected {wanted_zero}"
            values = (array.astype(np.float64) - zero) * scale
            self._outcome.note(name, values, expected, np.broadcast_to(wanted, values.shape))
            self._count(name, expected, "converted")
        elif array.dtype != expected.dtype and is_float(expected):
            unit = np.maximum(np.abs(expected), SMALLEST_HALF)
            self._outcome.note(name, *_representable(array, expected), unit)
            self._count(name, expected, "converted")
        elif array.dtype != expected.dtype or not same_bits(array, expected):
            yield f"{place} {where(array, expected)}"
        elif is_float(expected):
            self._count(name, expected, "equal")
        else:
            self._outcome.counts["settings"] += 1

    def _count(self, name: str, expected: Array, kind: str) -> None:
        if name not in self._counted:
            self._counted.add(name)
            self._outcome.counts["consumed"] += expected.size
            self._outcome.counts[kind] += 1

    def _expected_step(
        self,
        node: onnx.NodeProto,
        slot: int,
        scale: Array,
        dtype: np.dtype[np.generic],
        expected: Array,
    ) -> tuple[Array, int]:
        """Step and zero point as ONNX Runtime's ``quantize_static`` computes them.

        Args:
            node: The node that takes the tensor.
            slot: The position of that input.
            scale: The file's scale; its shape shows which channels have their own step.
            dtype: The type of the integers.
            expected: The float32 tensor.
        """
        giver = self._found.giver(node.input[0])
        of_input = None
        if giver is not None and giver.op_type == "DequantizeLinear":
            of_input, _ = self._found.step(giver)
        if dtype == np.int32:  # a bias, in the steps of the products it is added to
            _, of_weight = self._found.look_through(node.input[1])
            if of_input is None or of_weight is None:
                return np.full_like(scale, np.nan), 0
            return np.broadcast_to(of_input * self._found.step(of_weight)[0], scale.shape), 0
        together = tuple(i for i in range(expected.ndim) if scale.size == 1 or scale.shape[i] == 1)
        low = np.minimum(expected.min(axis=together, keepdims=True), 0).astype(np.float64)
        high = np.maximum(expected.max(axis=together, keepdims=True), 0).astype(np.float64)
        if dtype == np.uint8:
            step = (high - low) / (REDUCED_UNSIGNED if self._reduced else UNSIGNED)
            if not 0 < step.item() < np.inf:
                return np.ones_like(step), 0
            return step, int(np.round(-low / step).item())
        step = np.maximum(-low, high) / (REDUCED_SYMMETRIC if self._reduced else SYMMETRIC)
        step = np.where(step < np.finfo(np.float32).tiny, 1.0, step)
        source = self._source.nodes[node.name or node.output[0]]
        bias = self._source.tensors.get(source.input[2]) if source.input[2:] else None
        if slot == 1 and bias is not None and of_input is not None:
            sizes = np.abs(bias).reshape(step.shape) if step.size > 1 else np.abs(bias).max()
            least = BIAS_RESERVE * 2 * sizes.astype(np.float64) / BIAS_STEPS
            step = np.where(step * of_input < least, least / of_input, step)
        return step, 0

    def _activation_problems(self, node: onnx.NodeProto) -> Iterator[str]:
        """Check an activation's step, which calibration chose: only samples can judge its size."""
        if node.op_type not in QUANTIZERS or node.input[0] in self._found.tensors:
            return
        step = self._found.step(node)
        self._outcome.counts["calibrated"] += 1
        if not np.all(np.isfinite(step[0]) & (step[0] > 0)):
            yield f"{node.input[0]} has the step {step[0].item():g}, expected a finite one above 0"
        giver = self._found.giver(node.input[0])
        if node.op_type == "DequantizeLinear" and giver is not None and giver.op_type in QUANTIZERS:
            pairs = zip(step, self._found.step(giver), strict=True)
            if not all(np.array_equal(mine, theirs) for mine, theirs in pairs):
                yield f"{node.name} has another step or zero point than {giver.name}"


def _has_reduced_range(found: _Graph) -> bool:
    """Whether most weights use half of int8's range; one setting applies to all of them."""
    used = [
        np.abs(array.astype(np.int32)).max()
        for array in found.tensors.values()
        if array.dtype == np.int8 and array.ndim > 1 and array.size
    ]
    return bool(used) and bool(np.median(used) <= REDUCED_SYMMETRIC)


def _step_problems(place: str, scale: Array, wanted: Array) -> Iterator[str]:
    off = np.nan_to_num(np.abs(scale / wanted - 1), nan=np.inf)
    if np.any(off > ONE_ROUNDING):
        channel = int(np.argmax(off))
        found, asked = np.ravel(scale)[channel], np.ravel(wanted)[channel]
        yield f"{place} has the step {found:.7g} in channel {channel}, expected {asked:.7g}"


def _attribute(node: onnx.NodeProto, name: str) -> object:
    """An attribute's value; a tensor as numbers of any type (default 0 for ConstantOfShape)."""
    value = attribute_of(node, name)
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value).astype(np.float64).tolist()
    return [0.0] if value is None and node.op_type == "ConstantOfShape" else value


def _representable(array: Array, expected: Array) -> tuple[Array, Array]:
    """Both arrays; numbers beyond float16's range count as equal to its largest or to infinity."""
    if array.dtype != np.float16:
        return array, expected
    beyond = (np.abs(expected) > LARGEST_HALF) & (np.abs(array) >= LARGEST_HALF)
    beyond &= np.sign(array) == np.sign(expected)
    return np.where(beyond, expected, array.astype(np.float64)), expected
