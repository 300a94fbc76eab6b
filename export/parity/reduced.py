"""Is a float16 or int8 file the float32 file's own, rounded? Node by node, without a sample.

Both are walked side by side: each node of the float32 file must be in the reduced one, with the
same attributes, fed by the same nodes and by the same tensors, each rounded by a step that is
computed here from the float32 tensor and not read in the file.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from export.bundle.metrics import Array
from export.parity.operators import attribute_of
from export.parity.provenance import Outcome, same_bits, where
from export.parity.regions import inputs_of, stored_tensors
from export.parity.schema import WeightFigures

# Below float16's smallest normal number its rounding is absolute; above its largest there is none.
SMALLEST_HALF, LARGEST_HALF = 2.0**-14, 65504.0
CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "Cast"}
ACTIVATIONS = {"Relu", "Clip"}  # the rounding to uint8 may clip in their place
# Highest over lowest number of int8 with the sign's two sides alike; and with a range reduced for
# processors whose products of bytes saturate. The same of uint8.
SYMMETRIC, REDUCED_SYMMETRIC = 127, 64
UNSIGNED, REDUCED_UNSIGNED = 255, 127
# ONNX Runtime enlarges a weight's step where the bias, in steps of input and weight, would be more
# than an int32: so much beyond the limit.
BIAS_STEPS, BIAS_RESERVE = 2.0**32 - 2, 1.0001
ONE_ROUNDING = 2.0**-23


def check_reduced(model: onnx.ModelProto, source: onnx.ModelProto) -> WeightFigures:
    """Compare a float16 or int8 (QDQ) model with the float32 model that it is made of.

    Args:
        model: Of reduced precision.
        source: In float32; ``provenance.check_weights`` holds it against the checkpoint.
    """
    return _Comparison(_Graph(model), _Graph(source)).run()


class _Graph:
    """A model's nodes by name, its tensors, and what gives each value."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = {node.name or node.output[0]: node for node in model.graph.node}
        self.tensors = stored_tensors(model)
        self.givers = {
            output: (name, position)
            for name, node in self.nodes.items()
            for position, output in enumerate(node.output)
        }
        self.outputs = [value.name for value in model.graph.output]

    def origin(self, value: str, passed: set[str]) -> tuple[str, int]:
        """The node and output that give a value, seen through the nodes in ``passed``."""
        name, position = self.givers.get(value, (value, 0))
        if name not in passed:
            return name, position
        return self.origin(self.nodes[name].input[0], passed)

    def stored(self, value: str, passed: set[str]) -> tuple[str, onnx.NodeProto | None]:
        """The name of the tensor behind a value, "" if none, and what dequantizes it."""
        dequantizer = None
        while value not in self.tensors:
            name, _ = self.givers.get(value, ("", 0))
            if name not in passed:
                return "", None
            node = self.nodes[name]
            dequantizer = node if node.op_type == "DequantizeLinear" else dequantizer
            value = node.input[0]
        return value, dequantizer

    def step(self, quantizer: onnx.NodeProto) -> tuple[Array, Array]:
        """Scale and zero point of a QuantizeLinear or DequantizeLinear."""
        scale = self.tensors[quantizer.input[1]].astype(np.float64)
        zero = self.tensors[quantizer.input[2]] if quantizer.input[2:] else np.zeros((), np.uint8)
        return scale, zero


class _Comparison:
    """Walks both graphs and collects what came of each tensor."""

    def __init__(self, found: _Graph, source: _Graph) -> None:
        self._found, self._source, self._outcome = found, source, Outcome()
        self._added = {n for n in found.nodes if n not in source.nodes}
        self._passed = {n for n in self._added if self._passes(found.nodes[n])}
        self._removed = {n for n in source.nodes if n not in found.nodes}
        self._reduced = self._has_reduced_range()
        self._counted: set[str] = set()

    def run(self) -> WeightFigures:
        """Compare every node."""
        problems = self._outcome.problems
        for name in self._added - self._passed:
            node = self._found.nodes[name]
            problems.append(f"{name} ({node.op_type}) is not in the float32 file")
        for name, node in self._source.nodes.items():
            if name in self._removed:
                problems += self._removal_problems(node)
            else:
                problems += self._attribute_problems(node, self._found.nodes[name])
                self._compare_inputs(node, self._found.nodes[name])
        for mine, theirs in zip(self._found.outputs, self._source.outputs, strict=True):
            problems += self._wiring_problems("the output", mine, theirs)
        for name in self._passed:
            problems += self._quantizer_problems(self._found.nodes[name])
        self._outcome.problems = list(dict.fromkeys(problems))
        return self._outcome.figures()

    def _passes(self, node: onnx.NodeProto) -> bool:
        """Does an added node leave values as they are, but for rounding?"""
        if node.op_type in CONVERSIONS:
            return True
        bounds = [self._found.tensors.get(name) for name in node.input[1:]]
        zero = all(bound is not None and not bound.any() for bound in bounds)
        giver = self._found.givers.get(node.input[0], ("", 0))[0]
        return node.op_type == "Max" and zero and self._is_positive(giver)

    def _is_positive(self, name: str) -> bool:
        """Is a node's result never negative: a Relu's, or its largest?"""
        node = self._found.nodes.get(name)
        if node is not None and node.op_type == "MaxPool":
            return self._is_positive(self._found.givers.get(node.input[0], ("", 0))[0])
        return node is not None and node.op_type == "Relu"

    def _removal_problems(self, node: onnx.NodeProto) -> Iterator[str]:
        """A Relu or Clip may go where the rounding to uint8 behind it clips as much."""
        low, high = 0.0, np.inf
        if node.op_type == "Clip":
            low, high = (float(self._source.tensors[name].item()) for name in node.input[1:3])
        for name in self._passed if node.op_type in ACTIVATIONS else ():
            quantizer = self._found.nodes[name]
            if quantizer.op_type == "QuantizeLinear" and quantizer.input[0] == node.output[0]:
                scale, zero = (float(a.item()) for a in self._found.step(quantizer))
                limits = (-zero * scale, (UNSIGNED - zero) * scale)
                if limits[0] >= low - scale / 2 and limits[1] <= high + scale / 2:
                    return
        yield f"{node.name} ({node.op_type}) is not in the file"

    def _attribute_problems(self, source: onnx.NodeProto, found: onnx.NodeProto) -> Iterator[str]:
        names = {a.name for a in [*source.attribute, *found.attribute]}
        if source.op_type != found.op_type:
            yield f"{source.name} is a {found.op_type}, expected a {source.op_type}"
            return
        for name in sorted(names):
            kinds = {a.type for a in [*source.attribute, *found.attribute] if a.name == name}
            if onnx.AttributeProto.GRAPH in kinds:
                self._outcome.settings_untraced += 1
                continue
            mine, theirs = _attribute(found, name), _attribute(source, name)
            half = name == "to" and (mine, theirs) == (TensorProto.FLOAT16, TensorProto.FLOAT)
            if mine == theirs or half:
                self._outcome.settings += 1
            else:
                yield f"{name} of {source.name} ({source.op_type}) is {mine}, expected {theirs}"

    def _compare_inputs(self, source: onnx.NodeProto, found: onnx.NodeProto) -> None:
        mine, theirs = list(found.input), list(source.input)
        if len(inputs_of(source)) > len([name for name in theirs if name]):
            self._outcome.settings_untraced += 1  # a subgraph takes more from outside
        if len(mine) != len(theirs):
            self._outcome.problems.append(f"{source.name} takes {len(mine)} inputs")
            return
        for slot, (value, name) in enumerate(zip(mine, theirs, strict=True)):
            if name in self._source.tensors:
                self._compare_tensor(found, slot, name)
            else:
                self._outcome.problems += self._wiring_problems(source.name, value, name)

    def _wiring_problems(self, place: str, value: str, name: str) -> Iterator[str]:
        mine = self._found.origin(value, self._passed)
        theirs = self._source.origin(name, self._removed)
        if mine != theirs:
            yield f"{place} takes {mine[0]} where the float32 file takes {theirs[0]}"

    def _compare_tensor(self, node: onnx.NodeProto, slot: int, name: str) -> None:
        expected = self._source.tensors[name]
        stored, dequantizer = self._found.stored(node.input[slot], self._passed)
        place = f"{name}, input {slot} of {node.name},"
        if not stored:
            self._outcome.problems.append(f"{place} is not in the file")
            return
        array = self._found.tensors[stored]
        floats = np.issubdtype(expected.dtype, np.floating)
        if array.shape != expected.shape:
            self._outcome.problems.append(f"{place} is {array.shape}, expected {expected.shape}")
        elif not floats or (dequantizer is None and array.dtype == expected.dtype):
            self._compare_bits(name, place, array, expected)
        else:
            unit = _half_unit(expected)
            if dequantizer is not None:
                array, unit = self._dequantized(node, slot, array, expected, dequantizer, place)
            self._outcome.note(name, *_representable(array, expected), unit)
            self._count(name, expected, "converted")

    def _compare_bits(self, name: str, place: str, array: Array, expected: Array) -> None:
        if array.dtype != expected.dtype or not same_bits(array, expected):
            self._outcome.problems.append(f"{place} {where(array, expected)}")
        elif np.issubdtype(expected.dtype, np.floating):
            self._count(name, expected, "equal")
        else:
            self._outcome.settings += 1

    def _count(self, name: str, expected: Array, kind: str) -> None:
        if name not in self._counted:
            self._counted.add(name)
            self._outcome.consumed += expected.size
            setattr(self._outcome, kind, getattr(self._outcome, kind) + 1)

    def _dequantized(
        self,
        node: onnx.NodeProto,
        slot: int,
        array: Array,
        expected: Array,
        dequantizer: onnx.NodeProto,
        place: str,
    ) -> tuple[Array, Array]:
        """The values that an integer tensor stands for, and the steps it should have."""
        scale, zero = self._found.step(dequantizer)
        axis = attribute_of(dequantizer, "axis") % max(array.ndim, 1)
        shape = [-1 if i == axis else 1 for i in range(array.ndim)] if scale.size > 1 else []
        wanted, wanted_zero = self._expected_step(node, slot, expected, array.dtype, scale, axis)
        with np.errstate(invalid="ignore"):
            off = np.nan_to_num(np.abs(scale / wanted - 1), nan=np.inf)
        if np.any(off > ONE_ROUNDING):
            channel = int(np.argmax(off))
            found, asked = np.ravel(scale)[channel], np.ravel(wanted)[channel]
            self._outcome.problems.append(
                f"{place} has the step {found:.7g} in channel {channel}, expected {asked:.7g}"
            )
        if np.any(zero != wanted_zero):
            self._outcome.problems.append(f"{place} has another zero point than {wanted_zero}")
        values = (array.astype(np.float64) - zero.astype(np.float64).reshape(shape or ())) * (
            scale.reshape(shape or ())
        )
        return values, np.broadcast_to(np.asarray(wanted).reshape(shape or ()), values.shape)

    def _expected_step(
        self,
        node: onnx.NodeProto,
        slot: int,
        expected: Array,
        dtype: np.dtype[np.generic],
        scale: Array,
        axis: int,
    ) -> tuple[Array, int]:
        """As ONNX Runtime's ``quantize_static`` computes step and zero point of a tensor."""
        if dtype == np.int32:  # a bias: in the steps of the products that it is added to
            return self._bias_step(node, scale), 0
        others = tuple(i for i in range(expected.ndim) if i != axis) if scale.size > 1 else None
        low = np.minimum(expected.min(axis=others), 0).astype(np.float64)
        high = np.maximum(expected.max(axis=others), 0).astype(np.float64)
        if dtype == np.uint8:
            step = (high - low) / (REDUCED_UNSIGNED if self._reduced else UNSIGNED)
            if not 0 < step < np.inf:
                return np.ones_like(step), 0
            return step, int(np.round(-low / step))
        largest = np.maximum(-low, high)
        step = largest / (REDUCED_SYMMETRIC if self._reduced else SYMMETRIC)
        step = np.where(step < np.finfo(np.float32).tiny, 1.0, step)
        return self._enlarged(node, slot, step), 0

    def _enlarged(self, node: onnx.NodeProto, slot: int, step: Array) -> Array:
        """A weight's steps, larger where the bias beside it needs more than an int32's range."""
        source = self._source.nodes[node.name or node.output[0]]
        bias = self._source.tensors.get(source.input[2]) if source.input[2:] else None
        dequantizer = self._activation(node)
        if slot != 1 or bias is None or dequantizer is None:
            return step
        scale, _ = self._found.step(dequantizer)
        sizes = np.abs(bias) if np.size(step) > 1 else np.abs(bias).max()
        least = BIAS_RESERVE * 2 * sizes.astype(np.float64) / BIAS_STEPS
        return np.where(step * scale < least, least / scale, step)

    def _bias_step(self, node: onnx.NodeProto, scale: Array) -> Array:
        activation, (_, weight) = (
            self._activation(node),
            self._found.stored(node.input[1], self._passed),
        )
        if activation is None or weight is None:
            return np.full_like(scale, np.nan)
        step = self._found.step(activation)[0] * self._found.step(weight)[0]
        return np.broadcast_to(step, scale.shape)

    def _activation(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """What dequantizes a node's first input."""
        giver = self._found.givers.get(node.input[0], ("", 0))[0]
        found = self._found.nodes.get(giver)
        return found if found is not None and found.op_type == "DequantizeLinear" else None

    def _has_reduced_range(self) -> bool:
        """Does most of the file use half of int8's range? A setting of all its weights alike."""
        used = [
            np.abs(array.astype(np.int32)).max()
            for array in self._found.tensors.values()
            if array.dtype == np.int8 and array.ndim > 1 and array.size
        ]
        return bool(used) and bool(np.median(used) <= REDUCED_SYMMETRIC)

    def _quantizer_problems(self, node: onnx.NodeProto) -> Iterator[str]:
        """Steps of activations come from calibration: only samples can judge their size."""
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or (
            node.input[0] in self._found.tensors
        ):
            return
        scale, zero = self._found.step(node)
        self._outcome.calibrated += 1
        if not np.all(np.isfinite(scale) & (scale > 0)):
            yield f"{node.input[0]} has the step {scale.item():g}: int8 cannot hold its values"
        if node.op_type == "DequantizeLinear":
            giver = self._found.nodes.get(self._found.givers.get(node.input[0], ("", 0))[0])
            if giver is not None and giver.op_type == "QuantizeLinear":
                other_scale, other_zero = self._found.step(giver)
                if not (np.array_equal(scale, other_scale) and np.array_equal(zero, other_zero)):
                    yield f"{node.name} reads other steps than {giver.name} writes"


def _attribute(node: onnx.NodeProto, name: str) -> object:
    """An attribute's value; a tensor's numbers, whatever their type (0 of a ConstantOfShape)."""
    value = attribute_of(node, name)
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value).astype(np.float64).tolist()
    return [0.0] if value is None and node.op_type == "ConstantOfShape" else value


def _half_unit(expected: Array) -> Array:
    return np.maximum(np.abs(expected), SMALLEST_HALF)


def _representable(array: Array, expected: Array) -> tuple[Array, Array]:
    """Both arrays; numbers beyond float16 count as equal to its largest or infinity."""
    if array.dtype != np.float16:
        return array, expected
    beyond = (np.abs(expected) > LARGEST_HALF) & (np.abs(array) >= LARGEST_HALF)
    beyond &= np.sign(array) == np.sign(expected)
    return np.where(beyond, expected, array.astype(np.float64)), expected
