"""Reduced precision: float16, for GPUs, and static int8, for CPUs. From the ONNX model itself.

int8 has u8 activations and s8 weights per channel, its scales fitted to calibration samples. In
float32 stay the last layer (its rounding would make the two best logits equal now and then) and a
first convolution over few channels, which int8 kernels are slower at.
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
# Of an infinite value they make another one; a softmax behind a mask makes 0 of it.
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
# Entropy looks for the best among ranges of 128 bins up to all: with 256, from half of the widest
# range on; with ONNX Runtime's own 128 there is no choice. A percentile cuts what is beyond it from
# both sides together; ONNX Runtime's own ranges for it are symmetric around 0, of which values
# behind a ReLU use one half.
_HISTOGRAMS = {
    "entropy": {"num_bins": 256},
    "percentile": {"symmetric": False, "percentile": 99.99},
}


class NothingQuantizedError(ValueError):
    """No weight of the network is one that int8 takes."""


@dataclass(frozen=True)
class Ranges:
    """Ranges of the activations that ``fit_ranges`` has found: a file, and how they were chosen."""

    path: Path
    method: Calibration


@dataclass(frozen=True)
class ReducibleLayer:
    """Nodes of a float32 ONNX model that are kept in float32 together, or not.

    Attributes:
        name: Of the module whose weights the first takes, e.g. "layer4.0.conv1"; else its own.
        nodes: One with weights, and those behind it up to the next such.
    """

    name: str
    nodes: tuple[str, ...]


def convert_bytes(content: bytes, calibration: Arrays | None) -> bytes:
    """A float32 ONNX model's content in int8 with calibration samples, else in float16."""
    model = onnx.ModelProto.FromString(content)
    converted = to_fp16(model) if calibration is None else to_int8(model, calibration)
    return bytes(converted.SerializeToString(deterministic=True))


def to_fp16(model: onnx.ModelProto, kept: Collection[str] = ()) -> onnx.ModelProto:
    """The model in float16, inputs and outputs as they were.

    Weights are rounded to the nearest beforehand: the converter would raise those that round to 0
    to the smallest number above it.

    Args:
        model: In float32.
        kept: Names of nodes that stay in float32, and what they hand each other too.
    """
    rounded = _copy(model)
    exact = {name for node in model.graph.node if node.name in kept for name in node.input}
    for tensor in rounded.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in exact:
            with np.errstate(over="ignore"):  # the gate sees what becomes of it
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
    """The model in static int8.

    Args:
        model: In float32, its operators not fused.
        calibration: Samples by input name, whose activations' ranges fix the scales.
        kept: Names of further nodes that stay in float32.
        ranges: Those ranges, if they are known already; then no samples are needed.

    Raises:
        NothingQuantizedError: The file would be a float32 one by another name.
    """
    prepared = _copy(model)
    usually = _usually_kept(prepared)
    _keep_weights(prepared.graph, set(kept))
    # ONNX Runtime computes a step for every value, those that stay in float32 and are infinite too.
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
            "none of its weights would be in int8: convolutions and matrix products are taken to "
            "int8, except the last one before each output and convolutions over fewer than "
            f"{FEW_CHANNELS} channels; serve the float32 or the float16 file"
        )
    quantized.producer_name, quantized.producer_version = "", ""
    return quantized


def fit_ranges(content: bytes, calibration: Arrays, ranges: Ranges) -> None:
    """Find the ranges of the activations and write them to the file that ``ranges`` names.

    Args:
        content: The float32 ONNX model's.
        calibration: Samples by input name.
        ranges: Where to, and by which method.
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
    """The layers that "onnx-int8" or "onnx-fp16" has in reduced precision, in order.

    A node without weights belongs to the last layer that it takes values of; those before all
    weights are a layer of their own, of which int8 has none.
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
    """Nodes that int8 leaves in float32 anyway; prepares the model's first block for it."""
    return [*_last_products(model), *_first_block(model), *_with_infinities(model)]


@contextlib.contextmanager
def _shaped(model: onnx.ModelProto) -> Iterator[Path]:
    """The model in a file, with the shapes of its values, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        source, shaped = Path(folder) / "fp32.onnx", Path(folder) / "shaped.onnx"
        onnx.save(model, source)
        # Shapes alone: its optimizer would fuse what the proof looks for by name.
        quant_pre_process(source, shaped, skip_optimization=True, skip_symbolic_shape=True)
        yield shaped


def _join_casts(graph: onnx.GraphProto, added: Collection[str]) -> None:
    """Let a value that the converter casts to float16 and back reach its takers in float32.

    It casts what every float32 node gives and takes, and once for each taker, under one name.

    Args:
        graph: What the converter made.
        added: The names of its casts.
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
    """Hands the calibration samples to the quantizer, a batch at a time."""

    def __init__(self, samples: Arrays) -> None:
        self._batches = _batches(samples)

    def get_next(self) -> Arrays | None:
        return next(self._batches, None)


def _batches(samples: Arrays) -> Iterator[Arrays]:
    count = len(next(iter(samples.values())))
    for start in range(0, count, CALIBRATION_BATCH):
        yield {name: array[start : start + CALIBRATION_BATCH] for name, array in samples.items()}


def _last_products(model: onnx.ModelProto) -> list[str]:
    """The products nearest to each output: from the outputs backwards, the first on each way."""
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
    """Nodes that an infinite constant reaches, as an attention mask's: int8 has no step for it."""
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
    """Convolutions over few channels, with the ReLU and the max pooling behind them.

    Behind the pooling comes max(x, 0), which changes nothing after a ReLU: without it ONNX
    Runtime moves the rounding to int8 before the pooling, to a slow kernel.
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
    """Put max(x, -infinity) behind products that stay in float32: it changes nothing.

    Without it ONNX Runtime's optimizer would take their weights to int8 all the same, wherever
    their inputs and results are rounded to it, and by a step for the whole tensor.
    """
    for node in [n for n in graph.node if n.name in kept and n.op_type in PRODUCTS]:
        _put_barrier(graph, _only_consumer(graph, node, "Relu") or node, -np.inf)


def _only_consumer(
    graph: onnx.GraphProto, node: onnx.NodeProto, op_type: str
) -> onnx.NodeProto | None:
    consumers = [other for other in graph.node if node.output[0] in other.input]
    return consumers[0] if [n.op_type for n in consumers] == [op_type] else None


def _put_barrier(graph: onnx.GraphProto, node: onnx.NodeProto, bound: float = 0.0) -> None:
    """Put max(x, bound) behind a node, under the name that its result had."""
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
