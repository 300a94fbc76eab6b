"""Edge cases are a separate block, and inputs without a finite reference are not used."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

from export.bundle.manifest import Domain, FactorySummary, SubjectError, TensorSpec
from export.bundle.session import OnnxModel
from export.convert.onnx_export import model_bytes
from export.convert.pt2 import export_program
from export.model.domains import LARGEST, SHUFFLED, SMALLEST
from export.model.program import Program
from export.model.signature import Positional
from export.model.under_test import ModelUnderTest, Samples
from export.parity.candidates import QUICK_RUNS, Setting, Workers
from export.parity.judge import judge
from export.parity.reference import eager_predict, make_edge_reference, make_reference
from export.parity.run import ParityRun
from export.parity.schema import EDGE_CASES
from tests.export.rows import few_rows
from tests.export.subjects import tiny_subject

X = np.random.default_rng(0).uniform(1, 2, (40, 3)).astype(np.float32)


class _Steep(nn.Module):
    """Cubes its inputs, so that large inputs give far larger answers."""

    def forward(self, x: Tensor) -> Tensor:
        return x**3


class _Root(nn.Module):
    """The square root, which is NaN for negative numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


class _Lookup(nn.Module):
    """An embedding of four words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.words(x)
        return found.sum(1)


def _subject(
    module: nn.Module, array: np.ndarray, domain: Domain | None, outputs: int = 3
) -> ModelUnderTest:
    datatype = {"f": "FP32", "i": "INT64"}[array.dtype.kind]
    fields = {"name": "x", "datatype": datatype, "shape": (-1, array.shape[1]), "domain": domain}
    return dataclasses.replace(
        tiny_subject("cnn"),
        name="tiny",
        module=Positional(module),
        inputs=(TensorSpec.model_validate(fields),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, outputs)),),
        samples=Samples({"x": array}, "numbers", "0" * 64),
        factory=FactorySummary(factory="tests:tiny", arguments={}, parameters=0),
    )


def _program(subject: ModelUnderTest) -> Program:
    return export_program(subject)


def test_answers_lie_in_memory_as_an_exported_file_s() -> None:
    """A transposed answer would sum in another order, with an RMS of 1.0000000000000002 x."""

    class Transposed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, None].repeat(1, 2, 1).transpose(1, 2)

    subject = _subject(Transposed(), X, None)
    named = (subject.outputs[0].model_copy(update={"shape": (-1, 3, 2)}),)
    answer = eager_predict(dataclasses.replace(subject, outputs=named))({"x": X})["y"]
    assert answer.shape == (40, 3, 2)
    assert answer.flags.c_contiguous


def test_a_declared_range_gives_its_ends_as_edge_cases() -> None:
    """Any value of the range is valid at any place, so its ends fill whole samples."""
    subject = _subject(_Steep(), X, Domain(kind="range", low=0, high=100))
    block, left_out = make_edge_reference(subject, _program(subject))
    assert block is not None
    assert (block.edge_cases, left_out) == ((SMALLEST, LARGEST, SHUFFLED), {})
    assert block.inputs["x"][:2].tolist() == [[0] * 3, [100] * 3]
    assert block.fp64["y"][1].tolist() == [1e6] * 3
    assert block.targets.tolist() == [-1] * 3


def test_an_edge_case_without_a_finite_reference_is_left_out_and_counted() -> None:
    """The root of -1 is NaN on both sides, so it is omitted and reported."""
    subject = _subject(_Root(), X, Domain(kind="range", low=-1, high=4))
    block, left_out = make_edge_reference(subject, _program(subject))
    assert block is not None
    assert block.edge_cases == (LARGEST, SHUFFLED)
    assert list(left_out) == [SMALLEST]
    assert "not finite" in left_out[SMALLEST]
    everywhere = _subject(_Root(), X, Domain(kind="range", low=-2, high=-1))
    everywhere = dataclasses.replace(everywhere, samples=Samples({"x": -X}, "", "0" * 64))
    block, left_out = make_edge_reference(everywhere, _program(everywhere))
    assert (block, len(left_out)) == (None, 3)


def test_samples_without_a_finite_answer_are_refused() -> None:
    """The error gives the number of such samples and the first one."""
    array = X.copy()
    array[7] = -1
    subject = _subject(_Root(), array, None)
    with pytest.raises(SubjectError, match=r"1 of 40 samples of numbers .* first sample 7"):
        make_reference(subject, _program(subject))


def test_a_declared_vocabulary_that_the_network_lacks_is_refused() -> None:
    """With nine declared words, the id 8 has no row in the table."""
    ids = np.random.default_rng(0).integers(0, 4, (8, 5))
    subject = _subject(_Lookup(), ids, Domain(kind="tokens", low=0, high=8), outputs=2)
    with pytest.raises(SubjectError, match=r"cannot run its edge cases .* declare"):
        make_edge_reference(subject, _program(subject))


def test_an_edge_case_s_scale_does_not_hide_errors_of_real_samples() -> None:
    """Scaled by an edge case's 1e6, an error of 1e-4 in answers up to 8 would be only 1e-10."""
    subject = _subject(_Steep(), X, Domain(kind="range", low=0, high=100))
    program = _program(subject)
    reference = make_reference(subject, program)
    edge, _ = make_edge_reference(subject, program)
    assert edge is not None

    def wrong(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] ** 3 + np.float32(1e-4)}

    (row, *_) = few_rows(wrong, reference)
    assert (row.block, row.outputs["y"].samples) == ("", 40)
    assert row.outputs["y"].scaled_error > 1e-5
    (row, *_) = few_rows(wrong, edge)
    assert (row.block, row.outputs["y"].samples) == (EDGE_CASES, 3)
    assert row.outputs["y"].scaled_error < 1e-6


def test_a_wrong_edge_case_fails_and_is_named(tmp_path: Path) -> None:
    """A file that is right on every sample and wrong on full images fails."""
    proof = ParityRun.of(tiny_subject("mlp", 8))
    path = tmp_path / "model.onnx"
    path.write_bytes(model_bytes(proof.translation.model))
    with Workers() as workers:
        figures = proof.measure({"onnx": path}, Setting(runs=QUICK_RUNS), workers=workers)
    assert figures.edge_cases[:2] == ("empty", "full")
    honest = judge(figures, figures.tolerances)
    edge, _ = proof.edge_cases
    assert edge is not None
    model = OnnxModel(path, "cpu")

    def wrong(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        full = inputs["images"].min(axis=(1, 2)) == 255
        answers = model(inputs)
        return answers | {"logits": answers["logits"] + full[:, None].astype(np.float32) / 10}

    rows = few_rows(wrong, edge)
    changed = figures.model_copy(update={"rows": (*figures.rows, *rows)})
    new = set(judge(changed, figures.tolerances).failures) - set(honest.failures)
    assert new
    assert all(", edge cases" in f for f in new)
    assert all("edge case 'full'" in f for f in new if "logits" in f)


def test_a_size_that_depends_on_values_is_refused_with_what_to_do() -> None:
    """The number of nonzero positions depends on the values."""

    class Positions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0]

    subject = _subject(Positions(), X, None)
    with pytest.raises(SubjectError, match="return a fixed number of entries"):
        export_program(subject)
