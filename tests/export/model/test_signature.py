"""Any forward signature (keyword-only, optional, nested), and its outputs as named tensors."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from export.model.signature import Positional, named_tensors

A, B, C = (torch.full((2, 1), float(value)) for value in (1, 2, 3))


class _Keywords(nn.Module):
    def forward(self, x: Tensor, *, scale: Tensor, shift: Tensor | None = None) -> Tensor:
        return x * scale if shift is None else x * scale + shift


class _Nested(nn.Module):
    def forward(self, x: Tensor, state: tuple[Tensor, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return x + 10 * state[0] + 100 * state[1] + 1000 * batch["ids"] + 10000 * batch["mask"]


class _Plain(nn.Module):
    def forward(self, input: Tensor, weight: Tensor) -> Tensor:
        return input - weight


class _Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclasses.dataclass
class _Answer:
    logits: Tensor
    loss: Tensor | None = None


def test_inputs_are_handed_over_by_the_names_of_parameters() -> None:
    """Inputs are passed by name in any order, and optional ones may be missing."""
    (found,) = Positional(_Keywords(), ["scale", "x"])(A, C)
    assert found.tolist() == (A * C).tolist()
    (found,) = Positional(_Keywords(), ["shift", "x", "scale"])(A, B, C)
    assert found.tolist() == (B * C + A).tolist()


def test_tuples_and_dicts_are_put_together() -> None:
    """Numbers in the names order a tuple, and other parts are a dict's keys."""
    names = ["state_1", "x", "state_0", "batch_mask", "batch_ids"]
    (found,) = Positional(_Nested(), names)(A, B, C, A, B)
    assert found.tolist() == (B + 10 * C + 100 * A + 1000 * B + 10000 * A).tolist()


@pytest.mark.parametrize("names", [[], ["a", "b"], ["input_ids", "weight"], ["weight_a", "input"]])
def test_other_names_are_taken_in_order(names: list[str]) -> None:
    """Other names are positional, as in bundles built before names mattered."""
    (found,) = Positional(_Plain(), names)(C, A)
    assert found.tolist() == (C - A).tolist()


def test_an_answer_is_named_by_its_keys_fields_and_positions() -> None:
    """Names of nested outputs are joined, and None is left out."""
    assert [name for name, _ in named_tensors(A)] == ["output_0"]
    nested = (A, (B, C))
    assert [name for name, _ in named_tensors(nested)] == ["output_0", "output_1_0", "output_1_1"]
    mapped = {"logits": A, "state": (B, None), "pair": _Pair(A, B)}
    names = ["logits", "state_0", "pair_first", "pair_second"]
    assert [name for name, _ in named_tensors(mapped)] == names
    assert [name for name, _ in named_tensors(_Answer(A))] == ["logits"]
    with pytest.raises(TypeError, match=r"returns a int \(output_1\); expected tensors"):
        list(named_tensors((A, 3)))
