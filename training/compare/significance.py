"""Tests of whether a difference is significant: over seeds (Welch, Holm) or images (McNemar).

Shape suffixes: N images.
"""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from training.compare.schema import Differing, GroupPair, SeedPair
from training.evaluation.statistics import CONFIDENCE, Interval

SIGNIFICANT = 0.05


class Welch(NamedTuple):
    """The 95% interval of a difference of two means, and the p value of no difference."""

    interval: Interval
    p_value: float


def welch(base: Sequence[float], other: Sequence[float]) -> Welch | None:
    """Welch's t-test of mean(other) - mean(base), for independent seeds.

    Student's t with unequal variances (B. L. Welch 1947, Biometrika 34, 28-35). None if the spread
    over seeds is not known: a group has a single seed, or in both groups all seeds agree exactly
    (few test images), where an estimated variance of 0 would make any difference certain.
    """
    from scipy import stats  # noqa: PLC0415 - the import takes a second

    if min(len(base), len(other)) < 2 or len(set(base)) == len(set(other)) == 1:  # noqa: PLR2004
        return None
    with warnings.catch_warnings():
        # SciPy warns of lost precision if one group's seeds agree, but their variance is exactly 0.
        warnings.simplefilter("ignore", RuntimeWarning)
        found = stats.ttest_ind(list(other), list(base), equal_var=False)
    interval = found.confidence_interval(CONFIDENCE)
    return Welch(Interval(low=float(interval.low), high=float(interval.high)), float(found.pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for multiple comparisons (S. Holm 1979, Scand. J. Statist. 6, 65-70).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none becomes smaller than
    the one before it, or greater than 1. If all are compared with 0.05, the probability of
    rejecting any true null hypothesis is at most 0.05.

    Args:
        p_values: One p value for each comparison; None where there is none, and it stays None.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        corrected[place] = least
    return corrected


def mcnemar(first_correct: Tensor, second_correct: Tensor) -> tuple[int, int, float]:
    """McNemar's exact test of two networks on the same images.

    If both networks are equally good, each is expected to have half of the images that only one
    of them classifies correctly: a binomial test with 1/2 (Q. McNemar 1947, Psychometrika 12,
    153-157; for classifiers T. Dietterich 1998, Neural Computation 10, 1895-1923).

    Args:
        first_correct: Whether the first network classifies each image correctly, bool [N].
        second_correct: The same for the second network.

    Returns:
        Number of images that only the first network classifies correctly, number that only the
        second one does, and the two-sided p value, which is 1 if there are no such images.
    """
    from scipy import stats  # noqa: PLC0415 - the import takes a second

    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((second_correct & ~first_correct).sum())
    either = only_first + only_second
    p_value = float(stats.binomtest(only_first, either, 0.5).pvalue) if either else 1.0
    return only_first, only_second, p_value


# The predicted digits of a group's networks for the test images, int64 [N], by seed.
Predictions: TypeAlias = Mapping[int, Tensor]


def group_pairs(
    groups: Mapping[str, Predictions], labels: Tensor, differing_shown: int
) -> list[GroupPair]:
    """Compare every two groups, then every group of several seeds with itself.

    Args:
        groups: The groups' predictions by name.
        labels: The digits, int64 [N].
        differing_shown: Maximum number of images to list for two groups.
    """
    within = [(name, name) for name, group in groups.items() if len(group) > 1]
    return [
        _pair(first, second, groups, labels, differing_shown)
        for first, second in [*itertools.combinations(groups, 2), *within]
    ]


def _pair(
    first: str, second: str, groups: Mapping[str, Predictions], labels: Tensor, shown: int
) -> GroupPair:
    one, other = (
        {seed: predicted == labels for seed, predicted in groups[name].items()}
        for name in (first, second)
    )
    seeds = itertools.combinations(one, 2) if first == second else itertools.product(one, other)
    pairs = [_seed_pair(one, other, *each) for each in seeds]
    gap = _share_correct(one) - _share_correct(other)
    # The greatest difference first; among equal ones, the image with the lowest index first.
    order = gap.abs().argsort(descending=True, stable=True)[: int((gap != 0).sum())]
    return GroupPair(
        first=first,
        second=second,
        pairs=pairs,
        significant=sum(pair.p_value < SIGNIFICANT for pair in pairs) / len(pairs),
        differing_images=len(order),
        differing=[
            Differing(
                index=index,
                digit=int(labels[index]),
                readings={
                    name: [int(digits[index]) for digits in groups[name].values()]
                    for name in (first, second)
                },
            )
            for index in order[:shown].tolist()
        ],
    )


def _seed_pair(
    one: Mapping[int, Tensor], other: Mapping[int, Tensor], first_seed: int, second_seed: int
) -> SeedPair:
    only_first, only_second, p_value = mcnemar(one[first_seed], other[second_seed])
    return SeedPair(
        first_seed=first_seed,
        second_seed=second_seed,
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
    )


def _share_correct(correct: Mapping[int, Tensor]) -> Tensor:
    """Share of the group's networks that classify each image correctly, float64 [N]."""
    return torch.stack(list(correct.values())).double().mean(0)
