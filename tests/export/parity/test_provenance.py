"""Every weight of an ONNX file is held against the checkpoint's, and no fault in one is missed."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.bundle.tolerances import FOLD_ERROR
from export.convert.precision import to_fp16, to_int8
from export.parity.provenance import check_reduced, check_weights, find_folds
from export.parity.run import ParityRun
from export.parity.schema import WeightFigures
from tests.export.subjects import tiny_subject

MODELS = ["cnn", "bn-cnn", "mlp"]


@pytest.fixture(scope="module")
def proofs() -> dict[str, ParityRun]:
    """Tiny networks, exported once; not to be changed."""
    return {model: ParityRun.of(tiny_subject(model)) for model in MODELS}


def _check(proof: ParityRun, model: onnx.ModelProto | None = None) -> WeightFigures:
    return check_weights(proof.translation.model if model is None else model, proof.program)


def _copy(proof: ParityRun) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(proof.translation.model)
    return copied


@pytest.mark.parametrize(
    ("model", "equal", "folded"), [("cnn", 8, 0), ("bn-cnn", 2, 6), ("mlp", 2, 2)]
)
def test_every_tensor_of_an_honest_export_is_accounted_for(
    model: str, equal: int, folded: int, proofs: dict[str, ParityRun]
) -> None:
    """Without BatchNorm all are bit-equal; with it the folded ones equal the float64 fold."""
    found = _check(proofs[model])
    assert (found.equal, found.folded, found.problems) == (equal, folded, ())
    assert found.error <= FOLD_ERROR / 2
    assert found.constants == 3  # 255, mean and deviation
    assert len(find_folds(proofs[model].program)) == folded // 2


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("factor", [1.01, -1.0, float("nan")])
def test_one_changed_weight_in_any_tensor_is_named(
    model: str, factor: float, proofs: dict[str, ParityRun]
) -> None:
    """A random element of each tensor, 1% off, negated or NaN, is found with its position."""
    generator = np.random.default_rng(0)
    tensors = [
        t.name for t in _copy(proofs[model]).graph.initializer if t.name.startswith("classifier.")
    ]
    assert len(tensors) >= 4
    for name in tensors:
        faulty = _copy(proofs[model])
        tensor = next(t for t in faulty.graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor).copy()
        position = tuple(int(generator.integers(size)) for size in values.shape)
        values[position] *= factor
        tensor.CopyFrom(numpy_helper.from_array(values, name))
        found = _check(proofs[model], faulty)
        words = " ".join([*found.problems, found.worst])
        assert found.problems or not found.error <= FOLD_ERROR
        assert name in words
        assert f"[{', '.join(map(str, position))}] is" in words


def test_missing_and_misshapen_tensors_are_named(proofs: dict[str, ParityRun]) -> None:
    """A dropped bias and a transposed weight are told by name; numbers of nowhere are counted."""
    model = _copy(proofs["cnn"])
    kept = [t for t in model.graph.initializer if t.name != "classifier.head.1.bias"]
    for tensor in kept:
        if tensor.name == "classifier.head.4.weight":
            values = numpy_helper.to_array(tensor).reshape(16, 10) + 1
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    kept.append(numpy_helper.from_array(np.ones(5, np.float32), "stranger"))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    found = _check(proofs["cnn"], model)
    assert found.constants == 3 + 5
    missing, misshapen = found.problems
    assert missing.startswith("classifier.head.1.bias is not in the file")
    assert misshapen == "classifier.head.4.weight is (16, 10), expected (10, 16)"


@pytest.mark.parametrize("model", MODELS)
def test_reduced_weights_are_the_nearest_to_the_checkpoints(
    model: str, proofs: dict[str, ParityRun]
) -> None:
    """fp16 is off by half a rounding, int8 by half a step; one step more is seen."""
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


def test_a_batchnorm_that_was_not_folded_is_compared_tensor_by_tensor(
    proofs: dict[str, ParityRun],
) -> None:
    """An exporter that leaves the BatchNorm in the graph is held to its statistics too."""
    proof = proofs["bn-cnn"]
    state = proof.subject.module.state_dict()
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [],
            "unfolded",
            [],
            [],
            [
                numpy_helper.from_array(tensor.numpy(), name)
                for name, tensor in state.items()
                if tensor.is_floating_point()
            ],
        )
    )
    assert _check(proof, model).problems == ()
    variance = next(t for t in model.graph.initializer if t.name.endswith("running_var"))
    values = numpy_helper.to_array(variance) * np.float32(1.01)
    variance.CopyFrom(numpy_helper.from_array(values, variance.name))
    (problem,) = _check(proof, model).problems
    assert variance.name in problem


@pytest.mark.parametrize(("epsilon", "problems"), [(1e-5, 0), (1e-3, 1)])
def test_the_epsilon_of_a_batchnorm_that_was_not_folded_is_compared(
    epsilon: float, problems: int, proofs: dict[str, ParityRun]
) -> None:
    """A weight comparison alone would not see it, and samples only where a variance is small."""
    proof = proofs["bn-cnn"]
    state = proof.subject.module.state_dict()
    tensors = [
        numpy_helper.from_array(tensor.numpy(), name)
        for name, tensor in state.items()
        if tensor.is_floating_point()
    ]
    before = next(name for name in state if name.endswith("running_mean")).removesuffix("mean")
    norm = before.removesuffix("running_")
    inputs = ["x", f"{norm}weight", f"{norm}bias", f"{before}mean", f"{before}var"]
    node = onnx.helper.make_node("BatchNormalization", inputs, ["y"], "norm", epsilon=epsilon)
    graph = onnx.helper.make_graph([node], "unfolded", [], [], tensors)
    found = _check(proof, onnx.helper.make_model(graph)).problems
    assert len(found) == problems
    assert all("epsilon of norm is 0.001, expected 1e-05" in problem for problem in found)


def test_a_weight_that_rounds_to_zero_in_fp16_becomes_zero(proofs: dict[str, ParityRun]) -> None:
    """Not the smallest number above it, as converters would have it."""
    proof = proofs["cnn"]
    model = _copy(proof)
    tensor = next(t for t in model.graph.initializer if t.name == "classifier.head.1.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0], values[0, 1] = 1.5e-8, -1e-9
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    half = {t.name: numpy_helper.to_array(t) for t in to_fp16(model).graph.initializer}
    assert half["classifier.head.1.weight"][0, :2].tolist() == [0, 0]
