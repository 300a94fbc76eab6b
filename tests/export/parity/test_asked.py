"""Numbers of samples, batch sizes and threads in a proof, and the use of the answers."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from export.bundle.manifest import Domain, TensorSpec
from export.bundle.metrics import Array, Arrays, Floor
from export.model.domains import LARGEST, edge_values
from export.model.under_test import Samples
from export.parity.candidates import FEW_RUNS, QUICK_RUNS, RUNS, run_filled
from export.parity.measure import (
    affordable,
    count_distinct,
    judged_outputs,
    measure_cross_sample_leakage,
    measure_row,
    measure_variation,
    narrow_samples,
    worst_samples,
)
from export.parity.reference import Reference, edge_case_images
from export.parity.schema import ALONE, EDGE_CASES
from tests.export.parity import figures as made
from tests.export.subjects import tiny_subject

X = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)


def _reference(x: Array = X, kind: str = "values", **changes: Any) -> Reference:
    """A reference whose answers are its inputs, without a module."""
    output = {"name": "y", "datatype": "FP32", "shape": (-1, *x.shape[1:]), "kind": kind}
    subject = dataclasses.replace(
        tiny_subject("mlp", 8),
        inputs=(
            TensorSpec(
                name="x",
                datatype="FP32",
                shape=(-1, *x.shape[1:]),
                domain=Domain(kind="range", low=-9, high=9),
            ),
        ),
        outputs=(TensorSpec.model_validate(output),),
        samples=Samples({"x": x}, "numbers", "0" * 64),
    )
    return Reference(subject, {"x": x}, {"y": x.astype(np.float64)}, np.full(len(x), -1), **changes)


def test_these_batches_and_threads_are_run() -> None:
    """Batches are one, odd numbers, powers of two and neighbours, some in two threads."""
    one = (256, 1024, 128, 64, 33, 32, 31, 16, 8, 7, 3, 2, 1)
    assert (*((size, 1) for size in one), (1024, 2), (64, 2), (8, 2)) == RUNS
    assert QUICK_RUNS == ((256, 1), (8, 1), (1, 1), (64, 2))
    assert FEW_RUNS == ((64, 1), (7, 1), (1, 1))


def test_a_batch_is_run_up_to_5e10_operations() -> None:
    """Batches up to 256 always run, and 1,024 only within this limit."""
    runs = ((257, 1), (256, 1))
    assert affordable(runs, operations=5e10 / 257) == list(runs)
    assert affordable(runs, operations=5.01e10 / 257) == [(256, 1)]
    assert affordable(runs, operations=1e15) == [(256, 1)]


def test_2e10_operations_are_spent_on_the_samples_of_a_further_batch_size() -> None:
    """The limit gives between 64 and 1,000 samples."""
    samples = [narrow_samples(n) for n in (1, 2e7, 4e7, 2e8, 2e10 / 64, 1e12)]
    assert samples == [1000, 1000, 500, 100, 64, 64]


def test_four_samples_are_asked_in_each_situation() -> None:
    """Each is first in a batch of 64: among others, beside extreme values, beside noise, alone."""
    reference, seen = _reference(), list[Array]()

    def predict(inputs: Arrays) -> Arrays:
        seen.append(inputs["x"])
        return {"y": inputs["x"]}

    assert measure_cross_sample_leakage(predict, reference) == {
        "beside the largest values": 0.0,
        "beside noise": 0.0,
        ALONE: 0.0,
    }
    assert [len(batch) for batch in seen] == [64, 64, 64, 1] * 4
    for probe in range(4):
        batches = seen[4 * probe : 4 * probe + 4]
        assert all(np.array_equal(batch[0], X[-1 - probe]) for batch in batches)
        among, beside_largest, beside_noise, _ = batches
        assert np.array_equal(among[1:], X[1:64])
        largest = edge_values(reference.subject.inputs[0], X)[LARGEST]
        assert np.array_equal(beside_largest[1:], np.repeat(largest[None], 63, axis=0))
        assert not np.array_equal(beside_noise[1:], among[1:])
        assert np.array_equal(np.sort(beside_noise[1:]), np.sort(among[1:]))


@pytest.mark.parametrize("situation", ["beside the largest values", "beside noise", ALONE])
def test_the_largest_change_of_any_probe_is_kept(situation: str) -> None:
    """A difference in the last of four is found, scaled by the answer among real samples."""

    def predict(inputs: Arrays) -> Arrays:
        x = inputs["x"]
        kind = {1: ALONE}.get(len(x), "among")
        if len(x) > 1 and not np.array_equal(x[1:], X[1:64]):
            kind = "beside the largest values" if (x[1:] == 9).all() else "beside noise"
        wrong = kind == situation and np.array_equal(x[0], X[-4])
        return {"y": x + np.float32(np.abs(X[-4]).max() / 8 * wrong)}

    found = measure_cross_sample_leakage(predict, _reference())
    assert found[situation] == pytest.approx(1 / 8, rel=1e-5)
    assert sum(found.values()) == found[situation]


def test_variation_is_in_units_of_the_floor() -> None:
    """It is the RMS distance from the mean, for the channel that varies most."""
    x = np.array([[1.0, 5.0], [3.0, 5.0]], np.float32)
    floor = Floor(np.array([0.25, 0.01]), np.zeros(2), np.zeros(0))
    reference = _reference(x, floors={"y": floor})
    assert measure_variation(reference) == {"y": 4.0}
    assert measure_variation(_reference(x)) == {}
    spec = reference.subject.outputs[0].model_copy(update={"datatype": "INT64"})
    integers = dataclasses.replace(reference.subject, outputs=(spec,))
    assert measure_variation(dataclasses.replace(reference, subject=integers)) == {}


def test_copies_of_a_sample_are_one() -> None:
    """Samples are equal if the bytes of all their inputs are."""
    x = np.array([[1], [2], [1], [2]], np.float32)
    reference = _reference(x)
    assert count_distinct(reference) == 2
    both = dataclasses.replace(reference, inputs={"x": x, "z": x[[0, 1, 1, 1]]})
    assert count_distinct(both) == 3


def test_a_row_compares_what_is_judged() -> None:
    """Only logits have labels, only float32 files have floors, and batches are optional."""
    floor = Floor(np.ones(3), np.ones(3), np.zeros(0))
    reference = _reference(kind="logits", floors={"y": floor})
    answers = {"y": X + np.float32(0.5)}
    row = measure_row("onnx", 7, answers, {"y": X}, reference, None)
    assert (row.variant, row.batch_size, row.samples, row.block) == ("onnx", 7, 100, "")
    assert row.outputs["y"].labels is not None
    assert row.outputs["y"].floor_largest == pytest.approx(0.5)
    assert (row.batch_invariance, row.softmax_error) == (None, 0)
    few = measure_row("onnx", 7, {"y": X[:9]}, {"y": X[:9]}, reference, answers)
    largest = np.abs(X[:9] + np.float32(0.5)).max()
    assert few.samples == few.outputs["y"].samples == 9
    assert few.batch_invariance == pytest.approx(0.5 / largest)
    for variant, has_floor in (("torchscript", True), ("torchscript-frozen", True), ("pt2", True),
                               ("onnx-int8", False), ("onnx-fp16", False)):  # fmt: skip
        found = measure_row(variant, 7, answers, {"y": X}, reference, None).outputs["y"]
        assert (found.floor_largest is not None) == has_floor
    edges = dataclasses.replace(reference, block=EDGE_CASES)
    floor_E = Floor(np.ones(3), np.ones(3), np.ones(100))
    edges = dataclasses.replace(edges, floors={"y": floor_E})
    output = measure_row("onnx", 7, answers, {"y": X}, edges, None).outputs["y"]
    assert (output.labels, output.floor_rms) == (None, 0)


def test_probabilities_are_held_against_their_own_logits() -> None:
    """Probabilities are compared with the file's own logits, not the reference's."""
    reference = _reference(kind="logits")
    (logits,) = reference.subject.outputs
    both = (logits, logits.model_copy(update={"name": "p", "kind": "probabilities"}))
    subject = dataclasses.replace(reference.subject, outputs=both)
    assert judged_outputs(dataclasses.replace(reference, subject=subject)) == [logits]


def test_the_worst_samples_are_those_of_the_worst_row() -> None:
    """Only the proof's samples count, with the reference's label and their pictures."""
    pictures = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2)
    x = np.array([[1, 0], [0, 1], [0, 2]], np.float32)
    reference = dataclasses.replace(_reference(x, kind="logits"), inputs={"x": pictures})
    rows = [
        made.row(outputs={"y": made.comparison(scaled_error=error, worst=worst)}, block=block)
        for error, worst, block in ((1.0, (0,), ""), (2.0, (2, 1), ""), (3.0, (0,), "length 5"))
    ]
    found = worst_samples(rows, reference)
    assert [sample.description for sample in found] == ["sample 2", "sample 1"]
    assert [sample.eager_label for sample in found] == [1, 1]
    assert found[0].images == {"x": pictures[2].tolist()}
    values = worst_samples(rows, dataclasses.replace(_reference(x), inputs={"x": x}))
    assert (values[0].eager_label, values[0].images) == (None, {})


def test_of_a_sample_s_answers_the_farthest_from_the_first_is_judged() -> None:
    """In a batch of seven, two samples occur three or four times each."""
    errors = np.array([0, 0, 0, 2, 1, 3, -4], np.float32)[:, None]

    def predict(inputs: Arrays) -> Arrays:
        return {"y": inputs["x"] + errors[: len(inputs["x"])]}

    x = np.array([[10], [20]], np.float32)
    assert run_filled(predict, {"x": x}, 7)["y"].tolist() == [[6], [23]]
    assert run_filled(predict, {"x": x}, 4)["y"].tolist() == [[10], [22]]


def test_pictures_have_seven_edge_cases() -> None:
    """Empty, full, two checkerboards, a single pixel at each end and a ramp are made."""
    found = edge_case_images(2, 3)
    assert {name: image.tolist() for name, image in found.items()} == {
        "empty": [[0, 0, 0], [0, 0, 0]],
        "full": [[255, 255, 255], [255, 255, 255]],
        "checkerboard": [[0, 255, 0], [255, 0, 255]],
        "the other checkerboard": [[255, 0, 255], [0, 255, 0]],
        "first pixel": [[255, 0, 0], [0, 0, 0]],
        "last pixel": [[0, 0, 0], [0, 0, 255]],
        "ramp": [[0, 1, 2], [3, 4, 5]],
    }
    assert edge_case_images(20, 20)["ramp"].flat[256] == 0
    assert all(image.dtype == np.uint8 for image in found.values())
