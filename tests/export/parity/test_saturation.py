"""Results of int8 products on processors that add pairs of them in 16 bits."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.bundle.metrics import Array
from export.bundle.session import CPU_INFO, saturates_int8
from export.convert.precision import to_int8
from export.parity.saturation import bound_saturation


def _quantized(op_type: str, weight: Array, **attributes: Any) -> onnx.ModelProto:
    """One product of u8 activations and weights, both dequantized, as in ONNX Runtime."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "one", "zero"], ["x32"]),
        helper.make_node("DequantizeLinear", ["w8", "one"], ["w32"]),
        helper.make_node(op_type, ["x32", "w32"], ["y32"], **attributes),
        helper.make_node("QuantizeLinear", ["y32", "wide", "zero"], ["y8"]),
        helper.make_node("DequantizeLinear", ["y8", "wide", "zero"], ["y"]),
    ]
    tensors: dict[str, Array] = {
        "w8": weight.astype(np.int8),
        "one": np.array(1, np.float32),
        "wide": np.array(4000, np.float32),
        "zero": np.array(0, np.uint8),
    }
    shape = ["n", weight.shape[1], 4, 4] if op_type == "Conv" else ["n", None]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _in_16_bits(activations_K: Array, weights_K: Array) -> int:
    """Like VPMADDUBSW and VPMADDWD: pairs saturate in 16 bits, and are then summed in 32."""
    products = activations_K.astype(np.int64) * weights_K
    return int(np.clip(products.reshape(-1, 2).sum(axis=1), -(2**15), 2**15 - 1).sum())


@pytest.mark.parametrize(
    ("weights", "unsafe"),
    [
        ([64, 64, -64, -64], False),
        ([127, -127, 127, -127], False),
        ([127, 1, 0, 0], False),
        ([127, 2, 0, 0], True),
        ([0, 127, 127, 0], False),
        ([0, 0, -65, -64], True),
        ([0, 0, -64, -64], False),
    ],
)
def test_the_bound_is_what_the_instruction_clips(weights: list[int], unsafe: bool) -> None:
    """Safe weights give the exact sum for any activations, unsafe ones not for 255."""
    weight_K = np.array(weights)
    found = bound_saturation(_quantized("Gemm", weight_K[:, None]))
    assert (found.products, found.channels, found.unsafe) == (1, 1, int(unsafe))
    worst = [255 * (weight_K > 0), 255 * (weight_K < 0)]
    random = list(np.random.default_rng(0).integers(0, 256, (200, 4)))
    wrong = [a for a in [*worst, *random] if _in_16_bits(a, weight_K) != a @ weight_K]
    assert bool(wrong) is unsafe
    assert ("exceeds 16 bits" in found.summary()) is not unsafe


def test_neighbours_of_a_convolution_are_channels_of_one_pixel() -> None:
    """The kernels' order is height, width, channel, unlike that of the file."""
    weight = np.zeros((1, 2, 1, 2), np.int8)
    weight[0, 0, 0, :] = 100  # one channel, two pixels
    assert bound_saturation(_quantized("Conv", weight)).unsafe == 0
    weight = np.zeros((1, 2, 1, 2), np.int8)
    weight[0, :, 0, 0] = 100  # two channels of one pixel
    found = bound_saturation(_quantized("Conv", weight))
    assert (found.unsafe, found.largest) == (1, 255 * 200)


def test_an_odd_reduction_is_filled_with_zero_and_transb_is_seen() -> None:
    """The last weight has no neighbour, and a Gemm's weights may be transposed."""
    weight_OK = np.array([[1, 1, 127], [127, 127, 1]])
    found = bound_saturation(_quantized("Gemm", weight_OK, transB=1))
    assert (found.channels, found.unsafe) == (2, 1)
    assert bound_saturation(_quantized("MatMul", weight_OK.T)) == found


def _x86_with_vnni() -> bool:
    text = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    return "vnni" in text and not saturates_int8(text)


@pytest.mark.skipif(not _x86_with_vnni(), reason="needs an x86 processor that does not saturate")
@pytest.mark.parametrize("op_type", ["Conv", "Gemm", "MatMul"])
def test_the_setting_gives_the_same_answers_by_other_kernels(op_type: str) -> None:
    """With u8 weights in place of s8, kernels without 16-bit sums give bit-equal answers."""
    generator = np.random.default_rng(0)
    shape = (8, 4, 3, 3) if op_type == "Conv" else (12, 8)
    weight = generator.integers(-127, 128, shape)
    model = _quantized(op_type, weight)
    assert bound_saturation(model).unsafe
    size = (5, 4, 4, 4) if op_type == "Conv" else (5, 12)
    x = generator.integers(0, 256, size).astype(np.float32)
    answers = []
    for setting in ("0", "1"):
        options = ort.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", setting)
        session = ort.InferenceSession(model.SerializeToString(), options)
        answers.append(session.run(None, {"x": x})[0])
    assert np.array_equal(*answers)
    assert answers[0].any()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("sse2 avx2", True),
        ("sse2 avx2 avx_vnni", False),
        ("sse2 avx2 avx512bw", True),
        ("sse2 avx2 avx512bw avx_vnni", True),
        ("sse2 avx2 avx512bw avx512_vnni", False),
        ("sse2", True),
    ],
)
def test_which_processors_saturate(flags: str, expected: bool) -> None:
    """AVX-512's kernels have priority, and each kind needs its own VNNI."""
    assert saturates_int8(f"processor : 0\nflags\t\t: {flags}\nbugs : none\n") is expected
    assert not saturates_int8("processor : 0\nFeatures : fp asimd\n")


def test_int8_files_are_bounded_as_they_are_made() -> None:
    """Files of to_int8 use all 8 bits, and the bound says that they may saturate."""
    generator = np.random.default_rng(0)
    names = ["x", "a", "ra", "y"]
    tensors = {"wa": (8, 8), "wb": (8, 4)}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "wa"], ["a"], name="first"),
            helper.make_node("Relu", ["a"], ["ra"], name="relu"),
            helper.make_node("Gemm", ["ra", "wb"], ["y"], name="last"),
        ],
        "chain",
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, ["n", 4])],
        [
            numpy_helper.from_array(generator.normal(size=size).astype(np.float32), name)
            for name, size in tensors.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    samples = {"x": generator.normal(size=(16, 8)).astype(np.float32)}
    found = bound_saturation(to_int8(model, samples))
    assert (found.products, found.channels) == (1, 8)  # the last product stays in float32
    assert found.unsafe > 0
