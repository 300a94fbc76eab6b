"""Check whether int8 products could saturate on processors that add pairs of them in 16 bits.

ONNX Runtime multiplies u8 activations by s8 weights. On x86 without VNNI its AVX2 and AVX-512
kernels do so by VPMADDUBSW, which adds two neighbouring products in 16 bits and clips the sum
(https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html). Neighbours are
weights 2i and 2i + 1 along the reduction. A convolution's order is height, width, channel, as in
mlas/lib/convsym.cpp and in the transposed im2col of QLinearConv.
"""

import numpy as np
import onnx

from export.bundle.metrics import Array
from export.parity.schema import Saturation
from export.provenance.regions import stored_tensors
from export.provenance.rules import attribute_of

LARGEST_ACTIVATION = 255  # any activation can reach it: larger values are clipped to it
INT16 = np.iinfo(np.int16)


def bound_saturation(model: onnx.ModelProto) -> Saturation:
    """Bound the sums of neighbouring products of an int8 model over all possible inputs."""
    tensors = stored_tensors(model)
    givers = {output: node for node in model.graph.node for output in node.output}
    products, found = 0, [np.zeros((2, 0), np.int64)]
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        dequantizer = givers.get(node.input[1])
        stored = tensors.get(dequantizer.input[0]) if dequantizer is not None else None
        if stored is not None and stored.dtype == np.int8:
            products += 1
            found.append(_pair_sums(_reductions(node, stored)))
    high, low = np.concatenate(found, axis=1)
    return Saturation(
        products=products,
        channels=len(high),
        unsafe=int(np.count_nonzero((high > INT16.max) | (low < INT16.min))),
        largest=int(max(high.max(initial=0), -low.min(initial=0))),
    )


def _reductions(node: onnx.NodeProto, weight: Array) -> Array:
    """The weights of each output channel in the order of multiplication, [O, K]."""
    if node.op_type == "Conv":
        return np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    if node.op_type == "Gemm" and attribute_of(node, "transB"):
        return weight
    return np.swapaxes(weight, -1, -2).reshape(-1, weight.shape[-2])


def _pair_sums(weight_OK: Array) -> Array:
    """The highest and the lowest sum of two products of each channel, int64 [2, O]."""
    odd = weight_OK.shape[1] % 2
    pairs = np.pad(weight_OK.astype(np.int64), ((0, 0), (0, odd))).reshape(len(weight_OK), -1, 2)
    high = LARGEST_ACTIVATION * np.maximum(pairs, 0).sum(axis=2).max(axis=1)
    low = LARGEST_ACTIVATION * np.minimum(pairs, 0).sum(axis=2).min(axis=1)
    return np.stack([high, low])
