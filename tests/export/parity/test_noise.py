"""Arrangements of float32 arithmetic, and the errors that they cause."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from export.bundle.manifest import TensorSpec
from export.model.program import Program
from export.model.under_test import ModelUnderTest, Samples
from export.parity.noise import (
    PermutedSums,
    SequentialSums,
    _arrangements,
    disturbed,
    measure_floor,
    product_of,
    terms_of,
)
from export.parity.reference import Reference
from tests.export.subjects import Answers

aten = torch.ops.aten
U = 2.0**-24
DRAWS = 40_000


def _node(target: Callable[..., Any]) -> Node:
    return Graph().call_function(target)


def _ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)


PRODUCTS: list[tuple[Any, tuple[Any, ...], int]] = [
    (aten.linear.default, (_ones(2, 5), _ones(3, 5)), 5),
    (aten.matmul.default, (_ones(2, 5), _ones(5, 3)), 5),
    (aten.addmm.default, (_ones(3), _ones(2, 7), _ones(7, 3)), 7),
    (aten.baddbmm.default, (_ones(3), _ones(2, 2, 7), _ones(2, 7, 3)), 7),
    (aten.conv1d.default, (_ones(2, 4, 9), _ones(3, 4, 3)), 12),
    (aten.conv2d.default, (_ones(2, 4, 9, 9), _ones(8, 1, 3, 3)), 9),
    (aten.convolution.default, (_ones(2, 4, 9), _ones(3, 4, 3), None, [1], [0], [1], False), 12),
    (aten.convolution.default, (_ones(2, 3, 4), _ones(3, 8, 5), None, [1], [0], [1], True), 15),
    (aten.conv_transpose2d.input, (_ones(2, 3, 4, 4), _ones(3, 8, 2, 2)), 12),
]


@pytest.mark.parametrize(("target", "args", "products"), PRODUCTS)
def test_a_sum_has_a_term_for_each_product_and_one_for_the_bias(
    target: Any, args: tuple[Tensor, ...], products: int
) -> None:
    """The count holds for any layout of the weight and per group of a grouped convolution."""
    assert terms_of(_node(target), args) == products + 1


def test_a_product_s_factors_are_changed_before_it() -> None:
    """The result is sum |a| |b| + |bias|, and values that are not float tensors do not change."""
    args = (torch.tensor([[1.0, -2.0]]), torch.tensor([[-3.0, 4.0]]), torch.tensor([-5.0]))
    assert product_of(_node(aten.linear.default), args, {}, torch.abs).tolist() == [[16]]
    ids = (torch.tensor([[-1.0]]), torch.tensor([0]))
    found = product_of(_node(aten.embedding.default), ids, {}, torch.abs)
    assert found.tolist() == [[1]]


@pytest.mark.parametrize(
    ("target", "shapes", "changes"),
    [
        (aten.linear.default, ((2, 500), (3, 500)), True),
        (aten.matmul.default, ((2, 500), (500, 3)), True),
        (aten.addmm.default, ((3,), (2, 500), (500, 3)), True),
        (aten.conv1d.default, ((2, 100, 9), (3, 100, 3)), True),
        (aten.relu.default, ((2, 500),), False),
        (aten.matmul.default, ((500,), (500, 3)), False),
    ],
)
def test_permuted_terms_give_the_same_sum_with_other_roundings(
    target: Any, shapes: tuple[tuple[int, ...], ...], changes: bool
) -> None:
    """Both factors are permuted alike; vectors and other operators keep their order."""
    generator = torch.Generator().manual_seed(0)
    args = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    wide = tuple(a.double() for a in args)
    exact = target(*wide)
    assert torch.allclose(PermutedSums(0)(_node(target), wide, {}), exact, rtol=1e-12, atol=1e-12)
    one, other = (PermutedSums(seed)(_node(target), args, {}) for seed in (0, 1))
    assert torch.equal(one, target(*args)) != changes
    assert torch.equal(one, other) != changes


def test_a_grouped_convolution_is_not_permuted() -> None:
    """Groups have different channels, and a transposed convolution sums over other axes."""
    x, weight = torch.randn(2, 100, 9), torch.randn(100, 50, 3)
    args = (x, weight, None, [1], [1], [1], 2)
    node = _node(aten.conv1d.default)
    assert torch.equal(PermutedSums(0)(node, args, {}), aten.conv1d.default(*args))
    node = _node(aten.conv_transpose1d.default)
    args = (x, torch.randn(100, 3, 3))  # type: ignore[assignment]
    assert torch.equal(PermutedSums(0)(node, args, {}), aten.conv_transpose1d.default(*args))


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([1.0, -1.0, 1.0, -1.0], (5 * (4 / 6)) ** 0.5),  # signs differ: the total is 0
        ([4.0, 0.0, 0.0, 0.0], (5 * (16 / 6 + 16 / 9)) ** 0.5),
        ([1.0, 1.0, 1.0, 1.0], (5 * (4 / 6 + 16 / 9)) ** 0.5),
    ],
)
def test_a_sequential_sum_s_error_has_the_variance_of_its_roundings(
    x: list[float], expected: float
) -> None:
    """It is u^2 n (sum t^2 / 6 + total^2 / 9), here for four products and a bias."""
    args = (torch.tensor([x], dtype=torch.float64).repeat(DRAWS, 1), _ones(1, 4))
    error = SequentialSums(0)(_node(aten.linear.default), args, {}) - args[0].sum(1, keepdim=True)
    deviations = error / (U * expected)
    assert float(deviations.square().mean().sqrt()) == pytest.approx(1, rel=0.02)
    assert float(deviations.abs().max()) == pytest.approx(3, rel=1e-6)


def test_a_function_is_off_by_four_units_in_the_last_place() -> None:
    """Functions vary in both directions, as libraries do; exact operators and integers do not."""
    x = _ones(1000)
    relative = SequentialSums(0)(_node(aten.exp.default), (x,), {}) / x.exp() - 1
    assert (relative.abs() / (8 * U)).tolist() == pytest.approx([1] * 1000)
    assert 300 < int((relative > 0).sum()) < 700
    found = SequentialSums(0)(_node(aten.relu.default), (x,), {})
    assert torch.equal(found, x)
    ids = torch.arange(3)
    assert torch.equal(SequentialSums(0)(_node(aten.pow.Tensor_Scalar), (ids, 1), {}), ids)


@pytest.mark.parametrize(
    ("target", "size"), [(aten.sigmoid.default, 1.0), (aten.silu.default, 8.0)]
)
def test_a_gate_is_off_by_two_roundings_of_1(target: Any, size: float) -> None:
    """The error does not depend on the gate's size, but scales with an input that it multiplies."""
    x = -8 * _ones(1000)
    error = SequentialSums(0)(_node(target), (x,), {}) - target(x)
    function = 8 * U * float(target(x)[0].abs())
    parts = {-1, 1}
    expected = {a * 2 * U * size + b * function for a in parts for b in parts}
    found = torch.tensor(sorted(expected), dtype=torch.float64)
    assert all(float((found - e).abs().min()) < 1e-3 * U for e in error)
    assert len(set((error / U).round(decimals=4).tolist())) == 4


def test_seeds_give_other_errors_and_one_seed_the_same() -> None:
    """The floor is the same in each run, although it uses several draws."""
    node, args = _node(aten.exp.default), (_ones(1000),)
    one, again, other = (SequentialSums(seed)(node, args, {}) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


class _Watched(nn.Module):
    """A convolution that records how it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layer(x)
        return answer


def _watched(samples: int) -> tuple[Reference, Program, list[tuple[Any, ...]]]:
    torch.manual_seed(0)
    module = Answers(_Watched()).eval()
    x = np.random.default_rng(0).normal(size=(samples, 2, 5, 5)).astype(np.float32)
    program = torch.export.export(
        module, (torch.from_numpy(x[:4]),), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}}
    )
    seen: list[tuple[Any, ...]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        weight = next(layer.parameters())
        is_turned = weight.is_contiguous(memory_format=torch.channels_last)
        first = float(inputs[0].flatten()[0])
        enabled = torch.backends.mkldnn.enabled
        seen.append((len(inputs[0]), first, torch.get_num_threads(), enabled, is_turned))

    module.network.get_submodule("layer").register_forward_hook(note)
    subject = ModelUnderTest(
        name="network",
        module=module,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2, 5, 5)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 3, 3, 3)),),
        labels=(),
        weights=Path("nowhere"),
        samples=Samples({"x": x}, "noise", "0" * 64),
        calibration=None,
    )
    with torch.no_grad():
        truth = module.double()(torch.from_numpy(x).double())[0].numpy()
    module.float()
    seen.clear()
    return Reference(subject, {"x": x}, {"y": truth}, np.full(samples, -1)), program, seen


def test_eleven_arrangements_are_run() -> None:
    """Batches, order, threads, kernels and memory format vary, plus 2 x 2 other sums."""
    reference, program, seen = _watched(40)
    threads, inputs = torch.get_num_threads(), reference.inputs
    found = list(_arrangements(reference, program, inputs))
    first, last = (float(inputs["x"][i].flatten()[0]) for i in (0, -1))
    assert seen[0] == (40, first, threads, True, False)
    assert [run[0] for run in seen[:43]] == [40, 33, 7, *[1] * 40]
    assert seen[43:] == [
        (40, last, threads, True, False),
        (40, first, 2, True, False),
        (40, first, threads, False, False),
        (40, first, threads, True, True),
    ]
    sums = (PermutedSums(0), SequentialSums(0), PermutedSums(1), SequentialSums(1))
    others = [disturbed(program, ["y"], other)(inputs)["y"] for other in sums]
    assert [answers["y"].tolist() for answers in found[7:]] == [y.tolist() for y in others]
    assert np.allclose(found[3]["y"], found[0]["y"], atol=1e-6)


def test_the_floor_is_the_worst_arrangement() -> None:
    """It is the worst for each channel, and at least the answer's own rounding."""
    reference, program, _ = _watched(40)
    truth = reference.fp64["y"]
    errors = [
        np.abs(answers["y"] - truth).max(axis=(0, 2, 3))
        for answers in _arrangements(reference, program, reference.inputs)
    ]
    found = measure_floor(reference, program, 40)["y"].largest_C[:3]
    rounded = U * np.abs(truth).max(axis=(0, 2, 3))
    assert found.tolist() == np.maximum(np.max(errors, axis=0), rounded).tolist()


def test_the_floor_is_measured_on_at_most_256_samples() -> None:
    """It uses fewer if the further batch sizes do, or if fewer are given."""
    for samples, narrow, count in ((300, 1000, 256), (300, 64, 64), (40, 1000, 40)):
        reference, program, seen = _watched(samples)
        measure_floor(reference, program, narrow)
        assert seen[0][0] == count
