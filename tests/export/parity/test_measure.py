"""Proofs measure enough samples and detect answers that depend on other samples of a batch."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from export.bundle.golden import Predict, run_batched
from export.bundle.metrics import Arrays
from export.bundle.session import OnnxModel
from export.convert.onnx_export import model_bytes
from export.convert.pt2 import export_program
from export.model.under_test import Samples
from export.parity.adequacy import measure_coverage
from export.parity.measure import measure_cross_sample_leakage, measure_row
from export.parity.reference import (
    Reference,
    eager_predict,
    make_edge_reference,
    make_reference,
)
from export.parity.run import ParityRun
from export.parity.schema import ALONE, Row
from export.parity.structure import structure_problems
from tests.export.subjects import tiny_subject


class _Sum(nn.Module):
    """The sum of three numbers, as the only output."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x.sum(dim=1, keepdim=True),)


@pytest.fixture(scope="module")
def proof() -> ParityRun:
    """A tiny CNN, exported once; tests must not change it."""
    return ParityRun.of(tiny_subject("cnn"))


@pytest.fixture(scope="module")
def dynamic_int8(proof: ParityRun, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """The same network in dynamic int8, as other tools would serve it."""
    folder = tmp_path_factory.mktemp("dynamic")
    model = onnx.ModelProto.FromString(model_bytes(proof.translation.model))
    del model.graph.value_info[:]  # they contradict the quantizer's own shapes
    onnx.save(model, folder / "fp32.onnx")
    quantize_dynamic(folder / "fp32.onnx", folder / "int8.onnx", weight_type=QuantType.QUInt8)
    return onnx.load(folder / "int8.onnx")


def _row(predict: Predict, reference: Reference) -> Row:
    fp32 = reference.fp32_baseline(len(reference), 256)
    answers = run_batched(predict, reference.inputs, 256)
    return measure_row("onnx", 256, answers, fp32, reference, None)


def test_an_honest_model_does_not_look_at_its_neighbours(proof: ParityRun) -> None:
    """Beside white images and noise, an answer is bit-equal."""
    honest = OnnxModel(model_bytes(proof.translation.model), "cpu")
    found = measure_cross_sample_leakage(honest, proof.reference)
    assert set(found) == {"beside the largest values", "beside noise", ALONE}
    assert set(found.values()) == {0.0}


def test_dynamic_int8_looks_at_its_neighbours_and_is_named(
    proof: ParityRun, dynamic_int8: onnx.ModelProto
) -> None:
    """Its answers depend on the batch, and its operators are refused before any run."""
    found = measure_cross_sample_leakage(
        OnnxModel(model_bytes(dynamic_int8), "cpu"), proof.reference
    )
    assert max(found.values()) > 1e-3
    problems = structure_problems(dynamic_int8, proof.subject.inputs, proof.subject.outputs)
    assert any("depends on the other samples in its batch" in problem for problem in problems)


def test_a_model_that_mixes_its_batch_is_caught(proof: ParityRun) -> None:
    """Answers that include a little of the batch's mean differ beside other samples."""
    honest = eager_predict(proof.subject)

    def mixing(inputs: Arrays) -> Arrays:
        answers = honest(inputs)
        mixed = answers["logits"] + 1e-3 * answers["logits"].mean(axis=0)
        return answers | {"logits": mixed.astype(np.float32)}

    assert measure_cross_sample_leakage(mixing, proof.reference)["beside the largest values"] > 1e-6


def test_probabilities_of_other_logits_are_seen(proof: ParityRun) -> None:
    """Probabilities that are not the logits' softmax are detected, even if logits are right."""
    honest = eager_predict(proof.subject)

    def wrong(inputs: Arrays) -> Arrays:
        answers = honest(inputs)
        return answers | {"probabilities": np.roll(answers["probabilities"], 1, axis=1)}

    assert _row(honest, proof.reference).softmax_error < 1e-6
    row = _row(wrong, proof.reference)
    assert row.softmax_error > 1e-3
    assert row.outputs["logits"].max_abs_error == 0


def test_samples_that_leave_units_dead_are_not_enough(proof: ParityRun) -> None:
    """With only black images few units vary; all samples together activate more."""
    images = proof.subject.samples.arrays["images"].copy()
    images[:32] = 0
    found = measure_coverage(proof.program, {"images": images}, 32)
    assert (found.samples, found.active) == (32, 0)
    assert found.active_in_all > 0
    assert found.share == found.share_of_all_samples == 0
    everything = measure_coverage(proof.program, {"images": images}, len(images))
    assert everything.active == everything.active_in_all == found.active_in_all
    assert everything.units == 2 + 4 + 16
    assert everything.share_of_all_samples == 1
    assert everything.share == everything.active / everything.units


def test_numbers_without_a_domain_have_no_edge_cases() -> None:
    """For plain numbers only whole samples are known to be valid, so no edge case is invented.

    An earlier version filled samples with the smallest and the largest number.
    """
    subject = tiny_subject("cnn")
    values = np.linspace(-2, 3, 12, dtype=np.float32).reshape(4, 3)
    numbers = dataclasses.replace(
        subject,
        inputs=(subject.inputs[0].model_copy(update={"name": "x", "datatype": "FP32"}),),
        samples=Samples({"x": values}, "numbers", "0" * 64),
        module=_Sum().eval(),
        outputs=(subject.outputs[0].model_copy(update={"kind": "values"}),),
    )
    program = export_program(numbers)
    reference = make_reference(numbers, program)
    assert reference.inputs["x"].tolist() == values.tolist()
    assert reference.targets.tolist() == [-1] * 4
    assert reference.fp64["logits"].dtype == np.float64
    edge_cases, left_out = make_edge_reference(numbers, program)
    assert edge_cases is None
    assert "declare them" in left_out["all"]
