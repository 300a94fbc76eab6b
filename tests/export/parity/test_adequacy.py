"""Coverage counts units on the right axis and reports units that no sample activates."""

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from export.model.program import Program, operator_of
from export.parity.adequacy import ACTIVATIONS, measure_coverage, units_axis
from export.parity.schema import Coverage


class _Tokens(nn.Module):
    """A dense layer over tokens, [N, T, C]; two of its six units are dead."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)
        with torch.no_grad():
            self.layer.bias[:2] = -1000

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x))


class _Series(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.layer(x)) + 1)


class _Turned(nn.Module):
    """A convolution's channels that become the last axis before the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(4, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x).transpose(1, 2))


class _Permuted(_Turned):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x).permute(2, 0, 1))


class _Bare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


def _export(module: nn.Module) -> Program:
    torch.manual_seed(0)
    return torch.export.export(module.eval(), (torch.randn(8, 4, 4),))


def _activation(program: Program) -> Node:
    node: Node = next(n for n in program.graph.nodes if operator_of(n) in ACTIVATIONS)
    return node


@pytest.mark.parametrize(
    ("module", "axis"),
    [(_Tokens(), 2), (_Series(), 1), (_Turned(), 2), (_Permuted(), 2), (_Bare(), 2)],
)
def test_units_stand_where_their_layer_puts_them(module: nn.Module, axis: int) -> None:
    """Units are last after a dense layer, second after a convolution, and follow moved axes."""
    assert units_axis(_activation(_export(module)), 3) == axis


def test_pictures_without_a_known_layer_have_channels_second() -> None:
    """Units are on the second of four axes, else on the last axis."""
    node = _activation(_export(_Bare()))
    assert [units_axis(node, ndim) for ndim in (2, 3, 4)] == [1, 2, 1]


def test_dead_units_behind_a_dense_layer_over_tokens_are_seen() -> None:
    """Counted over the token axis, each would look alive because of another unit."""
    samples = torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(0)).numpy()
    found = measure_coverage(_export(_Tokens()), {"x": samples}, 8)
    assert (found.active, found.units) == (4, 6)


class _InPlace(nn.Module):
    """An in-place ReLU whose output is modified in place afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(x * 1).mul_(0)


def test_activations_in_place_are_counted_with_their_own_values() -> None:
    """Relu_ is counted before a later in-place change could make its units look dead."""
    samples = torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(0)).numpy()
    found = measure_coverage(_export(_InPlace()), {"x": samples}, 8)
    assert (found.active, found.units) == (4, 4)


def test_the_share_is_of_all_units() -> None:
    """154 of 176 units are 88%, even if the other samples activate no more."""
    found = Coverage(samples=9, units=176, active_in_all=154, active=154, by_layer={})
    assert found.share == pytest.approx(154 / 176)
    assert found.share_of_all_samples == 1
