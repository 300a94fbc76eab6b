"""float16 and int8 files are compared with the float32 file, rounded independently."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.bundle.metrics import Array, Arrays
from export.bundle.tolerances import tolerance_for
from export.convert.precision import NothingQuantizedError, to_fp16, to_int8
from export.parity.run import ParityRun
from export.provenance.figures import WeightFigures
from export.provenance.reduced import check_reduced
from tests.export.provenance.networks import NETWORKS, copied, exported
from tests.export.subjects import tiny_subject

MODELS = ["cnn", "bn-cnn", "mlp"]
# Their only layer is the last one, which is not quantized.
NOT_QUANTIZED = {
    "lstm",
    "lstm of 2 layers and directions",
    "gru",
    "normalised",
    "audio",
    "computed",
}


@pytest.fixture(scope="module")
def proofs() -> dict[str, ParityRun]:
    """Tiny networks, exported once; tests must not change them."""
    return {model: ParityRun.of(tiny_subject(model)) for model in MODELS}


def _copy(proof: ParityRun) -> onnx.ModelProto:
    return copied(proof.translation.model)


def _samples(name: str, model: onnx.ModelProto) -> Arrays:
    inputs = NETWORKS[name][1]
    return {v.name: t.numpy() for v, t in zip(model.graph.input, inputs, strict=True)}


def _is_killed(found: WeightFigures, variant: str) -> bool:
    return bool(found.problems) or not found.error <= (tolerance_for(variant, "cpu").weights or 0)


def _change(model: onnx.ModelProto, name: str, change: Callable[[Array], Array]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "encoder"])
def test_an_honest_reduced_file_is_no_false_alarm(name: str) -> None:
    """Networks of all kinds pass, whichever parts stay in float32."""
    model = exported(name).model
    half = check_reduced(to_fp16(model), model)
    assert not _is_killed(half, "onnx-fp16")
    if name in NOT_QUANTIZED:
        with pytest.raises(NothingQuantizedError):
            to_int8(model, _samples(name, model))
        return
    quantized = check_reduced(to_int8(model, _samples(name, model)), model)
    assert not _is_killed(quantized, "onnx-int8")
    assert quantized.consumed == half.consumed > 0


@pytest.mark.parametrize("factor", [8.0, 1.5, 1.01])
def test_a_wrong_step_of_one_channel_is_named(factor: float, proofs: dict[str, ParityRun]) -> None:
    """The step must be max|w| / 127 of the float32 weight, whatever the file contains."""
    proof = proofs["cnn"]
    quantized = to_int8(proof.translation.model, proof.subject.samples.arrays)
    scale = next(t.name for t in quantized.graph.initializer if t.name.endswith("weight_scale"))

    def enlarge(values: Array) -> Array:
        values[1] *= factor
        return values

    _change(quantized, scale, enlarge)
    problems = check_reduced(quantized, proof.translation.model).problems
    assert any("has the step" in p and "in channel 1, expected" in p for p in problems)


def test_a_step_and_its_weights_cannot_be_wrong_together(proofs: dict[str, ParityRun]) -> None:
    """Half the integers with double the step are detected, although the values hardly change."""
    proof = proofs["cnn"]
    quantized = to_int8(proof.translation.model, proof.subject.samples.arrays)
    name = next(t.name for t in quantized.graph.initializer if t.name.endswith("weight_quantized"))

    def halve(values: Array) -> Array:
        values[0] = values[0] // 2
        return values

    def double(values: Array) -> Array:
        values[0] *= 2
        return values

    _change(quantized, name, halve)
    _change(quantized, name.replace("_quantized", "_scale"), double)
    assert _is_killed(check_reduced(quantized, proof.translation.model), "onnx-int8")


@pytest.mark.parametrize("variant", ["onnx-fp16", "onnx-int8"])
def test_a_number_of_the_code_is_compared_too(variant: str, proofs: dict[str, ParityRun]) -> None:
    """The mean rounded to .13 in the reduced file is found, although it is no weight."""
    proof = proofs["cnn"]
    model = proof.translation.model
    arrays = proof.subject.samples.arrays
    reduced = to_fp16(model) if variant == "onnx-fp16" else to_int8(model, arrays)
    mean = next(
        t.name
        for t in model.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT
        and np.array_equal(numpy_helper.to_array(t), np.float32(0.1307))
    )
    _change(reduced, mean, lambda values: np.asarray(0.13, values.dtype).reshape(values.shape))
    assert _is_killed(check_reduced(reduced, model), variant)


@pytest.mark.parametrize(
    ("name", "variant"),
    [("mobile", "onnx-fp16"), ("mobile", "onnx-int8"), ("audio", "onnx-fp16")],
)
def test_every_change_of_one_number_in_a_reduced_file_is_seen(name: str, variant: str) -> None:
    """Every stored number, single elements included, is changed by 10 roundings or a step."""
    model = exported(name).model
    reduced = to_fp16(model) if variant == "onnx-fp16" else to_int8(model, _samples(name, model))
    activations = {n for node in reduced.graph.node if node.op_type == "QuantizeLinear"
                   for n in node.input[1:]}  # fmt: skip
    missed = []
    for tensor in list(reduced.graph.initializer):
        if tensor.name in activations:
            continue
        spoilt = copied(reduced)
        _change(spoilt, tensor.name, _off_by_a_little)
        if not _is_killed(check_reduced(spoilt, model), variant):
            missed.append(tensor.name)
    assert missed == []


def _off_by_a_little(values: Array) -> Array:
    if np.issubdtype(values.dtype, np.floating):
        values.flat[-1] = values.flat[-1] * 1.01 if values.flat[-1] else 1e-2
    else:
        values.flat[-1] += -1 if values.flat[-1] > 0 else 1
    return values


def test_steps_of_activations_are_counted_and_alike_on_both_sides(
    proofs: dict[str, ParityRun],
) -> None:
    """Samples judge steps from calibration, but quantize and dequantize must use the same."""
    proof = proofs["cnn"]
    quantized = to_int8(proof.translation.model, proof.subject.samples.arrays)
    assert check_reduced(quantized, proof.translation.model).calibrated > 0
    reader = next(
        n
        for n in quantized.graph.node
        if n.op_type == "DequantizeLinear" and "QuantizeLinear" in n.input[0]
    )
    scale = next(t for t in quantized.graph.initializer if t.name == reader.input[1])
    values = numpy_helper.to_array(scale) * np.float32(1.1)
    quantized.graph.initializer.append(numpy_helper.from_array(values, "another"))
    reader.input[1] = "another"
    problems = check_reduced(quantized, proof.translation.model).problems
    assert any("has another step or zero point than" in problem for problem in problems)


def test_a_reduced_file_is_wired_as_the_float32_file(proofs: dict[str, ParityRun]) -> None:
    """A missing node, an additional one and a changed attribute are named."""
    model = proofs["cnn"].translation.model
    half = to_fp16(model)
    relu = next(n for n in half.graph.node if n.op_type == "Relu")
    pool = next(n for n in half.graph.node if n.op_type == "MaxPool")
    without, added, changed = copied(half), copied(half), copied(half)
    for node in without.graph.node:
        node.input[:] = [relu.input[0] if name == relu.output[0] else name for name in node.input]
    without.graph.node.remove(next(n for n in without.graph.node if n.name == relu.name))
    (problem,) = check_reduced(without, model).problems
    assert problem == f"{relu.name} (Relu) is not in the file"
    extra = onnx.helper.make_node("Neg", [pool.output[0]], ["negative"], "extra")
    added.graph.node.append(extra)
    for node in added.graph.node:
        if node.name not in ("extra", pool.name):
            node.input[:] = ["negative" if n == pool.output[0] else n for n in node.input]
    assert any("extra (Neg) is not in" in p for p in check_reduced(added, model).problems)
    node = next(n for n in changed.graph.node if n.op_type == "MaxPool")
    next(a for a in node.attribute if a.name == "strides").ints[0] += 1
    (problem,) = check_reduced(changed, model).problems
    assert problem.startswith(f"strides of {pool.name} (MaxPool) is")


@pytest.mark.parametrize("model", MODELS)
def test_reduced_weights_are_the_nearest_to_the_checkpoints(
    model: str, proofs: dict[str, ParityRun]
) -> None:
    """The error is half a rounding in fp16 and half a step in int8; one step more is found."""
    proof = proofs[model]
    source = proof.translation.model
    half = check_reduced(to_fp16(source), source)
    assert (half.problems, half.equal) == ((), 0)
    assert 0 < half.error <= 2.0**-11 * 1.01
    quantized = to_int8(proof.translation.model, proof.subject.samples.arrays)
    honest = check_reduced(quantized, source)
    assert honest.problems == ()
    assert honest.converted >= 2
    assert 0.4 < honest.error <= 0.51
    tensor = next(t for t in quantized.graph.initializer if t.name.endswith("weight_quantized"))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 1 if values.flat[0] < 100 else -1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    assert check_reduced(quantized, source).error > 0.51


def test_a_weight_that_rounds_to_zero_in_fp16_becomes_zero(proofs: dict[str, ParityRun]) -> None:
    """It does not become the smallest nonzero number, as in some converters."""
    proof = proofs["cnn"]
    model = _copy(proof)
    tensor = next(t for t in model.graph.initializer if t.name == "classifier.head.1.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0], values[0, 1] = 1.5e-8, -1e-9
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    half = {t.name: numpy_helper.to_array(t) for t in to_fp16(model).graph.initializer}
    assert half["classifier.head.1.weight"][0, :2].tolist() == [0, 0]
