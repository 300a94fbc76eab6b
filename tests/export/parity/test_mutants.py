"""Mutants are planted as described and killed, and the first wrong value is named."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.bundle.tolerances import BOUNDS, tolerance_for
from export.parity.judge import explain, first_wrong
from export.parity.limits import with_local
from export.parity.mutants import Mutant, MutationTest, make_mutants
from export.parity.run import ParityRun
from export.parity.schema import MutantResult
from export.provenance.forms import find_folds
from export.provenance.state import state_arrays
from tests.export.subjects import tiny_subject

ALLOWED = tolerance_for("onnx", "cpu")
MODELS = ["cnn", "bn-cnn", "mlp"]
NAMES = {
    *("one sign flipped", "one NaN weight", "a wrong BatchNorm epsilon"),
    *("mean rounded (.13 for .1307)", "x * (1/255) for x / 255", "two channels swapped"),
    *("a weight transposed", "a bias dropped", "weights rounded to fp16"),
    *("outputs shifted by one", "a dead channel"),
}


@pytest.fixture(scope="module")
def proofs() -> dict[str, ParityRun]:
    """Tiny networks, exported once; tests must not change them."""
    return {model: ParityRun.of(tiny_subject(model)) for model in MODELS}


def _planted(proof: ParityRun) -> list[Mutant]:
    folds, state = find_folds(proof.program), state_arrays(proof.subject.module)
    return list(make_mutants(proof.translation.model, folds, state))


def _checks(proof: ParityRun) -> MutationTest:
    return MutationTest(proof.reference, proof.translation.program, proof.inside, ALLOWED)


@pytest.mark.parametrize("model", MODELS)
def test_every_fault_is_planted_and_caught(model: str, proofs: dict[str, ParityRun]) -> None:
    """All kinds are listed; each is killed or has a reason why it does not apply."""
    checks = _checks(proofs[model])
    found = [checks.run(planted) for planted in _planted(proofs[model])]
    kinds = {"one weight +1% (Gemm)"} | ({"one weight +1% (Conv)"} if "cnn" in model else set())
    assert {fault.name for fault in found} == NAMES | kinds
    missing = {fault.name: fault.not_applicable for fault in found if fault.not_applicable}
    without_norm = {"a wrong BatchNorm epsilon": "the model has no BatchNorm"}
    assert missing == (without_norm if model == "cnn" else {})
    assert [f.name for f in found if not f.caught_by and not f.not_applicable] == []


def test_an_honest_file_is_caught_by_nothing(proofs: dict[str, ParityRun]) -> None:
    """The same checks find nothing wrong in the unchanged file."""
    for proof in proofs.values():
        found = _checks(proof).run(Mutant("none", "nothing", proof.translation.model))
        assert found.caught_by == ()
        assert found.figures["exact"] == 0


def test_what_no_answer_shows_is_caught_by_exact_values(proofs: dict[str, ParityRun]) -> None:
    """X * (1/255) changes answers only by rounding, but exactly rounded operators reveal it."""
    planted = next(p for p in _planted(proofs["cnn"]) if p.name.startswith("x * (1/255)"))
    found: MutantResult = _checks(proofs["cnn"]).run(planted)
    assert found.caught_by == ("exact values",)
    assert 0 < found.figures["exact"] < 1e-6
    assert found.figures["rms_ratio"] < 8


def test_a_spoilt_layer_is_the_first_wrong_value(proofs: dict[str, ParityRun]) -> None:
    """A changed weight of the second convolution is located by node, module, line and errors."""
    proof = proofs["bn-cnn"]
    model = onnx.ModelProto.FromString(proof.translation.model.SerializeToString())
    weight = next(t for t in model.graph.initializer if t.name == "classifier.features.4.weight")
    values = numpy_helper.to_array(weight).copy()
    values.flat[np.abs(values).argmax()] *= 1.5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    layers = tuple(proof.inside.layers(model))
    position = first_wrong(layers, ALLOWED)
    assert position is not None
    words = explain(layers, ALLOWED)
    assert layers[position].op == "Conv"
    assert layers[position].module == "classifier.features.5"  # the BatchNorm folded into it
    assert "training/models/cnn.py:" in words
    assert "self.features(x_NCHW)" in words
    assert layers[position - 1].scaled_error <= 2e-6 < layers[position].scaled_error
    assert f"the value before it ({layers[position - 1].value})" in words


def test_an_honest_file_has_no_wrong_value(proofs: dict[str, ParityRun]) -> None:
    """All inner values are within the tolerance, and those of the scaling are bit-equal."""
    for proof in proofs.values():
        model = proof.translation.model
        layers = with_local(tuple(proof.inside.layers(model)), proof.local(model).figures(model))
        assert first_wrong(layers, ALLOWED) is None
        exact = {layer.value for layer in layers if layer.exact}
        assert {"div", "sub", "div_1"} <= exact
        assert not {"logits", "probabilities"} & exact
        assert [layer.value for layer in layers][-2:] == ["logits", "probabilities"]


def test_an_uncaught_fault_fails_the_gate(proofs: dict[str, ParityRun]) -> None:
    """With unlimited bounds, only checks without a bound still kill."""
    blind = dataclasses.replace(proofs["mlp"].subject)
    checks = MutationTest(
        ParityRun(blind, proofs["mlp"].program, proofs["mlp"].translation).reference,
        proofs["mlp"].translation.program,
        proofs["mlp"].inside,
        ALLOWED.model_copy(update=dict.fromkeys(BOUNDS) | {"softmax_error": 1}),
    )
    planted = next(p for p in _planted(proofs["mlp"]) if p.name == "a dead channel")
    assert checks.run(planted).caught_by == ()
