"""Two groups on the same test images: McNemar's test of every pair of seeds, and where they part.

Shape suffixes: N images.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.compare.figures import SIGNIFICANT, mcnemar
from training.compare.result import Differing, GroupPair, SeedPair


@dataclass(frozen=True)
class Readings:
    """What a group's networks read on the test images: seeds, and int64 [N] for each of them."""

    seeds: list[int]
    read_as: list[Tensor]


def group_pairs(
    groups: Mapping[str, Readings], labels: Tensor, differing_shown: int
) -> list[GroupPair]:
    """Every two groups, then every group of several seeds with itself.

    Args:
        groups: By name.
        labels: int64 [N].
        differing_shown: The most images that are listed for two groups.
    """
    between = [
        _between(*pair, groups, labels, differing_shown)
        for pair in itertools.combinations(groups, 2)
    ]
    within = [
        _within(name, readings, labels)
        for name, readings in groups.items()
        if len(readings.seeds) > 1
    ]
    return between + within


def _between(
    first: str, second: str, groups: Mapping[str, Readings], labels: Tensor, shown: int
) -> GroupPair:
    one, other = groups[first], groups[second]
    pairs = [
        _seed_pair(one, other, i, j, labels)
        for i in range(len(one.seeds))
        for j in range(len(other.seeds))
    ]
    gap = _share_right(one, labels) - _share_right(other, labels)
    # The greatest difference first, the first image first among equals.
    order = gap.abs().argsort(descending=True, stable=True)[: int((gap != 0).sum())]
    return GroupPair(
        first=first,
        second=second,
        pairs=pairs,
        significant=_share_significant(pairs),
        differing_images=len(order),
        differing=[
            Differing(
                index=int(index),
                digit=int(labels[index]),
                readings={
                    name: [int(read_as[index]) for read_as in groups[name].read_as]
                    for name in (first, second)
                },
            )
            for index in order[:shown]
        ],
    )


def _within(name: str, readings: Readings, labels: Tensor) -> GroupPair:
    pairs = [
        _seed_pair(readings, readings, i, j, labels)
        for i, j in itertools.combinations(range(len(readings.seeds)), 2)
    ]
    return GroupPair(
        first=name,
        second=name,
        pairs=pairs,
        significant=_share_significant(pairs),
        differing_images=0,
        differing=[],
    )


def _seed_pair(one: Readings, other: Readings, i: int, j: int, labels: Tensor) -> SeedPair:
    only_first, only_second, p_value = mcnemar(one.read_as[i] == labels, other.read_as[j] == labels)
    return SeedPair(
        first_seed=one.seeds[i],
        second_seed=other.seeds[j],
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
    )


def _share_significant(pairs: Sequence[SeedPair]) -> float:
    return sum(pair.p_value < SIGNIFICANT for pair in pairs) / len(pairs)


def _share_right(readings: Readings, labels: Tensor) -> Tensor:
    """Share of the group's networks that read each image rightly, float64 [N]."""
    return torch.stack([read_as == labels for read_as in readings.read_as]).double().mean(0)
