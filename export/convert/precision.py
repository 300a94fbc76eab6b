"""Reduced precision: float16, for GPUs, and static int8, for CPUs. From the ONNX model itself.

int8 has u8 activations and s8 weights per channel, its scales fitted to calibration samples. In
float32 stay the last layer (its rounding would make the two best logits equal now and then) and a
first convolution over few channels, which int8 kernels are slower at.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from export.bundle.metrics import Arrays

CALIBRATION_BATCH = 64
QUANTIZED = ["Conv", "Gemm", "MatMul", "MaxPool", "Relu", "Reshape", "Concat", "Add"]
PRODUCTS = {"Conv", "Gemm", "MatMul"}
# Measured: a 5x5 convolution over 1 channel takes 4 times as long in int8 as in float32.
FEW_CHANNELS = 4
BARRIER = "int8_barrier"


def convert_bytes(content: bytes, calibration: Arrays | None) -> bytes:
    """A float32 ONNX model's content in int8 with calibration samples, else in float16."""
    model = onnx.ModelProto.FromString(content)
    converted = to_fp16(model) if calibration is None else to_int8(model, calibration)
    return bytes(converted.SerializeToString(deterministic=True))


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in float16, inputs and outputs as they were.

    Weights are rounded to the nearest beforehand: the converter would raise those that round to 0
    to the smallest number above it.
    """
    rounded = _copy(model)
    for tensor in rounded.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    converted: onnx.ModelProto = convert_float_to_float16(rounded, keep_io_types=True)
    return converted


def to_int8(model: onnx.ModelProto, calibration: Arrays) -> onnx.ModelProto:
    """The model in static int8.

    Args:
        model: In float32, its operators not fused.
        calibration: Samples by input name, whose activations' ranges fix the scales.
    """
    prepared = _copy(model)
    kept = [*_last_products(prepared), *_first_block(prepared)]
    with tempfile.TemporaryDirectory() as folder:
        source, shaped, target = (
            Path(folder) / f"{name}.onnx" for name in ("fp32", "shaped", "int8")
        )
        onnx.save(prepared, source)
        # Shapes alone: its optimizer would fuse what the proof looks for by name.
        quant_pre_process(source, shaped, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            shaped,
            target,
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=QUANTIZED,
            nodes_to_exclude=kept,
        )
        quantized = onnx.load(target)
    quantized.producer_name, quantized.producer_version = "", ""
    return quantized


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


def _only_consumer(
    graph: onnx.GraphProto, node: onnx.NodeProto, op_type: str
) -> onnx.NodeProto | None:
    consumers = [other for other in graph.node if node.output[0] in other.input]
    return consumers[0] if [n.op_type for n in consumers] == [op_type] else None


def _put_barrier(graph: onnx.GraphProto, pool: onnx.NodeProto) -> None:
    after, zero = pool.output[0], f"{BARRIER}_zero"
    if not any(t.name == zero for t in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), zero))
    pool.output[0] = f"{after}_before_barrier"
    barrier = helper.make_node("Max", [pool.output[0], zero], [after], name=f"{BARRIER}_{after}")
    graph.node.insert(list(graph.node).index(pool) + 1, barrier)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
