"""Convert the ONNX model to reduced precision: float16 for GPUs, static int8 for CPUs.

int8 has u8 activations and per-channel s8 weights; its scales are fitted to calibration samples.
Two layers stay in float32: the last one, whose rounding would sometimes make the two best logits
equal, and a first convolution over few channels, for which int8 kernels are slower.
"""

import contextlib
import io
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    create_calibrator,
    quantize_static,
)
from onnxruntime.quantization.calibrate import save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from export.bundle.metrics import Arrays

CALIBRATION_BATCH = 64
QUANTIZED = ["Conv", "Gemm", "MatMul", "MaxPool", "Relu", "Reshape", "Concat", "Add"]
PRODUCTS = {"Conv", "Gemm", "MatMul"}
# Measured: a 5x5 convolution over 1 channel takes 4 times as long in int8 as in float32.
FEW_CHANNELS = 4
BARRIER = "int8_barrier"
# These operators can pass an infinite input on; the softmax after a mask turns it into 0.
HANDS_ON_INFINITIES = {
    "Where",
    "Add",
    "Sub",
    "Mul",
    "Concat",
    "Cast",
    "Identity",
    "Expand",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Transpose",
    "Slice",
    "Gather",
    "Flatten",
}
# Operators with weights, which begin a layer in float16.
WITH_WEIGHTS = PRODUCTS | {"ConvTranspose", "LSTM", "GRU", "RNN"}

Calibration = Literal["minmax", "entropy", "percentile"]
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
# Entropy chooses the best range among those from 128 bins up to all bins. With 256 bins it starts
# at half of the widest range; with ONNX Runtime's default of 128 there is no choice. A percentile
# clips both sides together; ONNX Runtime's default ranges for it are symmetric around 0, so that
# values after a ReLU would use only half of the range.
_HISTOGRAMS = {
    "entropy": {"num_bins": 256},
    "percentile": {"symmetric": False, "percentile": 99.99},
}


class NothingQuantizedError(ValueError):
    """The network has no weight that can be quantized to int8."""


@dataclass(frozen=True)
class Ranges:
    """The activations' ranges from ``fit_ranges``: their file, and how they were chosen."""

    path: Path
    method: Calibration


@dataclass(frozen=True)
class ReducibleLayer:
    """Nodes of a float32 ONNX model that are kept in float32 together, or not.

    Attributes:
        name: The module whose weights the first node uses, e.g. "layer4.0.conv1"; else the name of
            that node.
        nodes: A node with weights, and the nodes after it up to the next one with weights.
    """

    name: str
    nodes: tuple[str, ...]


def convert_bytes(content: bytes, calibration: Arrays | None) -> bytes:
    """Convert a float32 ONNX model's content: to int8 with calibration samples, else to float16."""
    model = onnx.ModelProto.FromString(content)
    converted = to_fp16(model) if calibration is None else to_int8(model, calibration)
    return bytes(converted.SerializeToString(deterministic=True))


def to_fp16(model: onnx.ModelProto, kept: Collection[str] = ()) -> onnx.ModelProto:
    """Convert the model to float16; inputs and outputs keep their types.

    Weights are rounded to the nearest float16 beforehand: the converter would replace those that
    round to 0 by the smallest positive number.

    Args:
        model: A float32 model.
        kept: Names of nodes that stay in float32; the values between them do too.
    """
    rounded = _copy(model)
    exact = {name for node in model.graph.node if node.name in kept for name in node.input}
    for tensor in rounded.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in exact:
            with np.errstate(over="ignore"):  # the gate detects overflow
                values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    converted: onnx.ModelProto = convert_float_to_float16(
        rounded, keep_io_types=True, node_block_list=list(kept)
    )
    if kept:
        before = {node.name for node in model.graph.node}
        _join_casts(converted.graph, {n.name for n in converted.graph.node} - before)
    return converted


def to_int8(
    model: onnx.ModelProto,
    calibration: Arrays | None,
    kept: Collection[str] = (),
    ranges: Ranges | None = None,
) -> onnx.ModelProto:
    """Convert the model to static int8.

    Args:
        model: A float32 model whose operators are not fused.
        calibration: Samples by input name; the ranges of their activations determine the scales.
        kept: Names of further nodes that stay in float32.
        ranges: Those ranges, if they are known already; no samples are needed then.

    Raises:
        NothingQuantizedError: No weight would be int8, so the result would still be float32.
    """
    prepared = _copy(model)
    usually = _usually_kept(prepared)
    _keep_weights(prepared.graph, set(kept))
    # ONNX Runtime computes a scale for every value, even for infinite ones that stay in float32.
    with _shaped(prepared) as shaped, np.errstate(invalid="ignore"):
        target = shaped.with_name("int8.onnx")
        quantize_static(
            shaped,
            target,
            None if calibration is None else _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=QUANTIZED,
            nodes_to_exclude=[*usually, *kept],
            calibrate_method=_METHODS[ranges.method if ranges else "minmax"],
            calibration_cache_path=ranges.path if ranges else None,
        )
        quantized = onnx.load(target)
    if not any(tensor.data_type == TensorProto.INT8 for tensor in quantized.graph.initializer):
        raise NothingQuantizedError(
            "none of its weights would be in int8: convolutions and matrix products are converted "
            "to int8, except the last one before each output and convolutions over fewer than "
            f"{FEW_CHANNELS} channels; use the float32 or the float16 file"
        )
    quantized.producer_name, quantized.producer_version = "", ""
    return quantized


def fit_ranges(content: bytes, calibration: Arrays, ranges: Ranges) -> None:
    """Find the ranges of the activations and write them to the file that ``ranges`` names.

    Args:
        content: The content of the float32 ONNX model's file.
        calibration: Samples by input name.
        ranges: The file to write, and the method to use.
    """
    prepared = onnx.ModelProto.FromString(content)
    _usually_kept(prepared)
    with _shaped(prepared) as shaped, contextlib.redirect_stdout(io.StringIO()):
        calibrator = create_calibrator(
            shaped,
            QUANTIZED,
            augmented_model_path=str(shaped.with_name("augmented.onnx")),
            calibrate_method=_METHODS[ranges.method],
            extra_options=_HISTOGRAMS.get(ranges.method, {}),
        )
        for batch in _batches(calibration):  # all values of one batch are in memory
            calibrator.collect_data(_Reader(batch))
        save_tensors_data(calibrator.compute_data(), ranges.path)


def reducible_layers(model: onnx.ModelProto, variant: str) -> list[ReducibleLayer]:
    """The layers that "onnx-int8" or "onnx-fp16" runs in reduced precision, in order.

    A node without weights belongs to the last layer whose values it uses. Nodes before the first
    weights form a layer of their own, except in int8, which does not have that layer.
    """
    prepared = _copy(model)
    int8 = variant == "onnx-int8"
    never = set(_usually_kept(prepared)) if int8 else set()
    begins = PRODUCTS if int8 else WITH_WEIGHTS
    owners: dict[str, int] = {}
    groups: list[list[onnx.NodeProto]] = [[]]
    for node in prepared.graph.node:
        owner = max((owners.get(name, 0) for name in node.input), default=0)
        if node.op_type in begins:
            groups.append([])
            owner = len(groups) - 1
        owners |= dict.fromkeys(node.output, owner)
        if node.name not in never and (not int8 or node.op_type in QUANTIZED):
            groups[owner].append(node)
    groups = [nodes for nodes in groups if nodes]
    if int8:
        groups = [nodes for nodes in groups if nodes[0].op_type in PRODUCTS]
    weights = {tensor.name for tensor in prepared.graph.initializer}
    return [
        ReducibleLayer(_layer_name(nodes[0], weights), tuple(node.name for node in nodes))
        for nodes in groups
    ]


def _layer_name(node: onnx.NodeProto, weights: Collection[str]) -> str:
    named = next((n for n in node.input if n in weights and n.endswith(".weight")), node.name)
    return named.removesuffix(".weight")


def _usually_kept(model: onnx.ModelProto) -> list[str]:
    """Nodes that int8 always leaves in float32; changes the model's first block for that."""
    return [*_last_products(model), *_first_block(model), *_with_infinities(model)]


@contextlib.contextmanager
def _shaped(model: onnx.ModelProto) -> Iterator[Path]:
    """A file of the model with the shapes of its values; it is deleted when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        source, shaped = Path(folder) / "fp32.onnx", Path(folder) / "shaped.onnx"
        onnx.save(model, source)
        # Only infer shapes: the optimizer would fuse values that the proof finds by name.
        quant_pre_process(source, shaped, skip_optimization=True, skip_symbolic_shape=True)
        yield shaped


def _join_casts(graph: onnx.GraphProto, added: Collection[str]) -> None:
    """Remove casts to float16 and back, so that the value reaches its consumers in float32.

    The converter casts every input and output of a float32 node. It casts a value again for each
    consumer, under the same name.

    Args:
        graph: The converter's graph.
        added: The names of the casts that the converter added.
    """
    casts = {node.name: node for node in graph.node if node.name in added}
    to_half = {
        node.output[0]: node.input[0]
        for node in casts.values()
        if node.attribute[0].i == TensorProto.FLOAT16
    }
    for node in casts.values():
        if node.attribute[0].i == TensorProto.FLOAT:
            node.input[0] = to_half.get(node.input[0], node.input[0])
    taken = {name for node in graph.node for name in node.input} | {v.name for v in graph.output}
    nodes = [n for n in graph.node if n.name not in added]
    nodes += [node for node in casts.values() if node.output[0] in taken]
    del graph.node[:]
    graph.node.extend(nodes)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime ships no types
    """Passes the calibration samples to the quantizer, one batch at a time."""

    def __init__(self, samples: Arrays) -> None:
        self._batches = _batches(samples)

    def get_next(self) -> Arrays | None:
        return next(self._batches, None)


def _batches(samples: Arrays) -> Iterator[Arrays]:
    count = len(next(iter(samples.values())))
    for start in range(0, count, CALIBRATION_BATCH):
        yield {name: array[start : start + CALIBRATION_BATCH] for name, array in samples.items()}


def _last_products(model: onnx.ModelProto) -> list[str]:
    """The product nearest to each output: searching backwards, the first one on each path."""
    producers = {output: node for node in model.graph.node for output in node.output}
    found, seen = [], set()
    waiting = [value.name for value in model.graph.output]
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type in PRODUCTS:
            found.append(node.name)
        else:
            waiting += list(node.input)
    return found


def _with_infinities(model: onnx.ModelProto) -> list[str]:
    """Nodes that an infinite constant reaches, e.g. an attention mask; int8 cannot represent it."""
    reached = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and np.isinf(numpy_helper.to_array(tensor)).any()
    }
    found = []
    for node in model.graph.node:
        if node.op_type in HANDS_ON_INFINITIES and reached.intersection(node.input):
            reached |= set(node.output)
            found.append(node.name)
    return found


def _first_block(model: onnx.ModelProto) -> list[str]:
    """Convolutions over few channels, with the ReLU and the max pooling after them.

    This inserts max(x, 0) after the pooling, which changes nothing after a ReLU. Without it, ONNX
    Runtime moves the rounding to int8 before the pooling, which then uses a slow kernel.
    """
    graph = model.graph
    sizes = {t.name: t.dims for t in graph.initializer}
    kept = []
    for node in [n for n in graph.node if n.op_type == "Conv"]:
        if sizes.get(node.input[1], [0, FEW_CHANNELS])[1] >= FEW_CHANNELS:
            continue
        kept.append(node.name)
        relu = _only_consumer(graph, node, "Relu")
        pool = _only_consumer(graph, relu, "MaxPool") if relu else None
        if relu and pool:
            kept += [relu.name, pool.name]
            _put_barrier(graph, pool)
    return kept


def _keep_weights(graph: onnx.GraphProto, kept: Collection[str]) -> None:
    """Insert max(x, -infinity), which changes nothing, after products that stay in float32.

    Without it, ONNX Runtime's optimizer would still convert their weights to int8 wherever their
    inputs and results are int8, with one scale for the whole tensor.
    """
    for node in [n for n in graph.node if n.name in kept and n.op_type in PRODUCTS]:
        _put_barrier(graph, _only_consumer(graph, node, "Relu") or node, -np.inf)


def _only_consumer(
    graph: onnx.GraphProto, node: onnx.NodeProto, op_type: str
) -> onnx.NodeProto | None:
    consumers = [other for other in graph.node if node.output[0] in other.input]
    return consumers[0] if [n.op_type for n in consumers] == [op_type] else None


def _put_barrier(graph: onnx.GraphProto, node: onnx.NodeProto, bound: float = 0.0) -> None:
    """Insert max(x, bound) after a node; its output takes over the name of the node's result."""
    after = node.output[0]
    name = f"{BARRIER}_zero" if bound == 0 else f"{BARRIER}_none"
    if not any(t.name == name for t in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.array(bound, np.float32), name))
    node.output[0] = f"{after}_before_barrier"
    barrier = helper.make_node("Max", [node.output[0], name], [after], name=f"{BARRIER}_{after}")
    graph.node.insert(list(graph.node).index(node) + 1, barrier)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
