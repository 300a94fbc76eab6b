"""Networks of the catalogue are exported and match their references without false alarms."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.bundle.manifest import TensorSpec
from export.bundle.session import OnnxModel
from export.bundle.tolerances import FOLD_ERROR, tolerance_for, violations
from export.convert.onnx_export import model_bytes
from export.model.domains import LARGEST, SHUFFLED, SMALLEST
from export.parity.measure import measure_cross_sample_leakage
from export.parity.run import ParityRun
from export.parity.schema import ALONE, EDGE_CASES
from export.provenance.trace import check_weights
from tests.export.catalogue import SMALL, network_under_test
from tests.export.rows import few_rows

# Their only inputs are numbers without a declared domain.
WITHOUT_EDGE_CASES = {"lstm_classifier", "audio_classifier", "untraceable"}
ONNX = tolerance_for("onnx", "cpu")
SAMPLES = 24


@pytest.fixture(scope="module")
def proofs() -> dict[str, ParityRun]:
    """The networks exported so far, by name."""
    return {}


@pytest.fixture(params=list(SMALL))
def proof(
    request: pytest.FixtureRequest, proofs: dict[str, ParityRun], tmp_path: Path
) -> ParityRun:
    """A network, exported once; tests must not change it."""
    name: str = request.param
    if name not in proofs:
        proofs[name] = ParityRun.of(network_under_test(name, tmp_path, samples=SAMPLES))
    return proofs[name]


def test_every_answer_is_the_reference_s(proof: ParityRun) -> None:
    """All sizes and edge cases are within the tolerances, independent of the batch."""
    model = OnnxModel(model_bytes(proof.translation.model), "cpu")
    complaints = []
    for block in proof.blocks:
        allowed = ONNX
        if block.block == EDGE_CASES:
            allowed = ONNX.model_copy(update={"rms_ratio": None})
        for row in few_rows(model, block):
            for name, found in row.outputs.items():
                where = f"{block.block}, batch {row.batch_size}, {name}: "
                complaints += [where + complaint for complaint in violations(found, allowed)]
    assert complaints == []
    neighbours = measure_cross_sample_leakage(model, proof.reference)
    assert neighbours.pop(ALONE) <= (
        ONNX.batch_invariance or 0
    )  # ORT uses another kernel for one row
    assert set(neighbours.values()) == {0.0}


def test_every_value_inside_is_the_checkpoint_s(proof: ParityRun) -> None:
    """This includes infinite masks, spectra and attention, and uncompared values are counted."""
    found = proof.inside.compare(proof.translation.model)
    assert len(found.layers) >= 3
    # Not the scaled error, because the logarithm of a small power magnifies earlier roundings.
    assert max(layer.rms_ratio for layer in found.layers) <= (ONNX.rms_ratio or 0)
    assert all(np.isfinite(layer.scaled_error) for layer in found.layers)
    assert all(layer.max_abs_error == 0 for layer in found.layers if layer.exact)
    names = [output for node in proof.translation.model.graph.node for output in node.output]
    assert set(found.unmatched) < set(names)
    assert not set(found.unmatched) & {layer.value for layer in found.layers}


def test_every_number_is_traced_to_the_checkpoint(proof: ParityRun) -> None:
    """Causal masks and spectra give no false alarm and no untraced number."""
    found = check_weights(proof.translation.model, proof.translation.program)
    assert found.problems == ()
    assert found.error <= FOLD_ERROR
    assert found.untraced == 0


def test_edge_cases_are_what_the_inputs_may_be(proof: ParityRun) -> None:
    """If values are declared or learned, there are three edge cases, none omitted."""
    block, left_out = proof.edge_cases
    if proof.subject.name in WITHOUT_EDGE_CASES:
        assert block is None
        assert "declare them" in left_out["all"]
    else:
        assert block is not None
        assert (block.edge_cases, left_out) == ((SMALLEST, LARGEST, SHUFFLED), {})
        assert all(np.isfinite(a).all() for a in block.fp64.values())


def test_a_variable_axis_is_proven_at_its_ends_and_between(tmp_path: Path) -> None:
    """Height and width vary together and separately, and so do outputs with their names."""
    proof = ParityRun.of(network_under_test("segmenter", tmp_path, samples=4))
    blocks = {block.block for block in proof.blocks[1:]}
    assert blocks == {
        *("height=6, width=5", "height=11, width=8", "height=6, width=12", "height=16, width=5"),
        EDGE_CASES,
    }
    scores = proof.subject.outputs[0]
    assert (scores.shape, scores.bounds) == ((-1, 4, -1, -1), {2: (6, 16), 3: (5, 12)})
    assert scores.axes == {2: "height", 3: "width"}
    model = OnnxModel(model_bytes(proof.translation.model), "cpu")
    odd = {"picture": np.zeros((3, 3, 7, 11), np.uint8)}
    assert model(odd)["labels"].shape == (3, 7, 11)


def test_ids_alone_learn_their_mask(tmp_path: Path) -> None:
    """With undeclared ids and mask, no edge case masks everything, and answers are finite."""
    declared = network_under_test("text_encoder", tmp_path, samples=4)
    plain = tuple(
        TensorSpec(name=spec.name, datatype=spec.datatype, shape=(-1, 12))
        for spec in declared.inputs
    )
    samples = replace(declared.samples, others=())
    block, left_out = ParityRun.of(replace(declared, inputs=plain, samples=samples)).edge_cases
    assert block is not None
    assert left_out == {}
    assert block.inputs["mask"].sum(axis=1).min() == 1
