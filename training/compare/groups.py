"""Sort checkpoints into groups that differ only in their seeds, and warn of unfair comparisons."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from training.config import TrainConfig
from training.data import Dataset
from training.evaluation.grouping import (
    LoadedCheckpoint,
    conditions,
    group_names,
    load_comparable,
    without_seed,
)


@dataclass(frozen=True)
class CheckpointGroup:
    """Checkpoints whose configs differ only in the seed, by ascending seed."""

    name: str
    checkpoints: list[LoadedCheckpoint]

    @property
    def config(self) -> TrainConfig:
        """The config of the first seed."""
        return self.checkpoints[0].record.config

    @property
    def modules(self) -> list[nn.Module]:
        """The networks, by seed."""
        return [checkpoint.module for checkpoint in self.checkpoints]


def read_groups(folders: Sequence[Path], dataset: Dataset) -> list[CheckpointGroup]:
    """Read checkpoints and sort them into groups, in the order of their first appearance.

    Raises:
        CheckpointError: They cannot be compared: see ``load_comparable``.
    """
    by_config: dict[str, list[LoadedCheckpoint]] = {}
    for checkpoint in load_comparable(folders, dataset):
        by_config.setdefault(without_seed(checkpoint.record.config), []).append(checkpoint)
    names = group_names([group[0].record.config for group in by_config.values()])
    return [
        CheckpointGroup(name, sorted(group, key=lambda checkpoint: checkpoint.record.config.seed))
        for name, group in zip(names, by_config.values(), strict=True)
    ]


def unfair_conditions(groups: Sequence[CheckpointGroup]) -> list[str]:
    """A warning for each training setting, except the model, in which the groups differ."""
    trained = [conditions(group.config) for group in groups]
    keys = dict.fromkeys(key for one in trained for key in one)
    lines = [
        f"training differs in {key}: "
        + ", ".join(f"{g.name} {one.get(key)}" for g, one in zip(groups, trained, strict=True))
        + "; this may explain differences in the results"
        for key in keys
        if len({json.dumps(one.get(key)) for one in trained}) > 1
    ]
    for package in ("torch", "python"):
        found = {c.record.versions.get(package, "?") for g in groups for c in g.checkpoints}
        if len(found) > 1:
            lines.append(
                f"trained with different versions of {package}: {', '.join(sorted(found))}"
            )
    return lines


def single_seeds(groups: Sequence[CheckpointGroup]) -> list[str]:
    """A warning that names the groups with a single seed, or an empty list."""
    names = [group.name for group in groups if len(group.checkpoints) == 1]
    if not names:
        return []
    return [
        f"only one seed of {', '.join(names)}: the spread over seeds is unknown, so a difference "
        "may be due to the seed; train more seeds with --seed"
    ]
