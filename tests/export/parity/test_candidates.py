"""Recorded batches were really run: few samples fill a batch, and large networks run fewer."""

import dataclasses

import numpy as np
import pytest

from export.bundle.metrics import Arrays
from export.convert.pt2 import export_program
from export.parity.candidates import RUNS, run_filled
from export.parity.measure import affordable, narrow_samples, operations_per_sample
from export.parity.reference import Reference, choose_golden, make_reference
from tests.export.subjects import tiny_subject


def _batches_of(sizes: list[int]) -> object:
    def predict(inputs: Arrays) -> Arrays:
        sizes.append(len(inputs["x"]))
        return {"y": inputs["x"] * 2}

    return predict


@pytest.mark.parametrize(("samples", "run"), [(10, [256]), (256, [256]), (300, [256, 44])])
def test_a_batch_that_is_recorded_was_full(samples: int, run: list[int]) -> None:
    """Ten samples are repeated to fill a batch of 256, and each gets one answer."""
    inputs, sizes = {"x": np.arange(samples, dtype=np.float32)[:, None]}, list[int]()
    found = run_filled(_batches_of(sizes), inputs, 256)  # type: ignore[arg-type]
    assert sizes == run
    assert np.array_equal(found["y"], inputs["x"] * 2)


@pytest.mark.parametrize("wrong", [1.0, np.nan])
def test_a_fault_at_a_later_place_of_the_batch_is_kept(wrong: float) -> None:
    """If the last answer of a full batch is wrong, that answer is judged."""

    def predict(inputs: Arrays) -> Arrays:
        answers = inputs["x"].copy()
        answers[-1] += wrong
        return {"y": answers}

    inputs = {"x": np.arange(10, dtype=np.float32)[:, None]}
    found = run_filled(predict, inputs, 256)["y"]
    assert np.flatnonzero((found != inputs["x"])[:, 0]).tolist() == [5]  # place 255, ten samples


def test_two_threads_and_a_batch_of_1024_are_run_unless_they_are_too_much_work() -> None:
    """The limit counts operations, independent of the machine, and never affects 256."""
    assert {(1024, 1), (1024, 2), (64, 2), (1, 1)} <= set(RUNS)
    assert affordable(RUNS, operations=2e6) == list(RUNS)
    assert max(size for size, _ in affordable(RUNS, operations=5e7)) == 256
    assert max(size for size, _ in affordable(RUNS, operations=1e12)) == 256
    assert [narrow_samples(n) for n in (2e6, 1e8, 1e12)] == [1000, 200, 64]


def test_operations_are_counted_without_a_clock() -> None:
    """A tiny MLP has 784 x 8 + 8 x 10 products, each with an addition."""
    assert operations_per_sample(tiny_subject("mlp")) == 2 * (784 * 8 + 8 * 10)


@pytest.fixture(scope="module")
def reference() -> Reference:
    """The reference of a tiny MLP; tests must not change it."""
    subject = tiny_subject("mlp")
    return make_reference(subject, export_program(subject))


def test_golden_samples_are_there_even_if_no_label_is_right(reference: Reference) -> None:
    """A network that misclassifies every sample still has samples with a clear margin."""
    fp64 = reference.fp64["logits"]
    wrong = dataclasses.replace(reference, targets=(fp64.argmax(axis=1) + 1) % 10)
    golden = choose_golden(wrong)
    assert len(golden) > 0
    assert len(choose_golden(reference)) > 0  # without known labels
