"""Checkpoints read, checked and sorted into groups that differ in their seed alone."""

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
class SubjectGroup:
    """Checkpoints of one config but for the seed, by ascending seed."""

    name: str
    subjects: list[LoadedCheckpoint]

    @property
    def config(self) -> TrainConfig:
        """The config of the first seed."""
        return self.subjects[0].record.config

    @property
    def modules(self) -> list[nn.Module]:
        """The networks, by seed."""
        return [subject.module for subject in self.subjects]


def read_groups(folders: Sequence[Path], dataset: Dataset) -> list[SubjectGroup]:
    """Read checkpoints and sort them into groups, in the order in which each first appears.

    Raises:
        CheckpointError: As ``load_comparable``.
    """
    by_config: dict[str, list[LoadedCheckpoint]] = {}
    for subject in load_comparable(folders, dataset):
        by_config.setdefault(without_seed(subject.record.config), []).append(subject)
    sorted_by_seed = [
        sorted(same, key=lambda subject: subject.record.config.seed) for same in by_config.values()
    ]
    names = group_names([same[0].record.config for same in sorted_by_seed])
    return [SubjectGroup(*pair) for pair in zip(names, sorted_by_seed, strict=True)]


def unfair_conditions(groups: Sequence[SubjectGroup]) -> list[str]:
    """What differs between the groups' training besides the model, in words; empty if nothing."""
    told = [conditions(group.config) for group in groups]
    keys = dict.fromkeys(key for one in told for key in one)
    lines = [
        f"not trained alike, {key}: "
        + ", ".join(f"{g.name} {one.get(key)}" for g, one in zip(groups, told, strict=True))
        + "; a difference may come from that"
        for key in keys
        if len({json.dumps(one.get(key)) for one in told}) > 1
    ]
    for package in ("torch", "python"):
        found = {s.record.versions.get(package, "?") for g in groups for s in g.subjects}
        if len(found) > 1:
            lines.append(f"trained with several versions of {package}: {', '.join(sorted(found))}")
    return lines


def single_seeds(groups: Sequence[SubjectGroup]) -> list[str]:
    """A line that names the groups of one seed, if there are any."""
    names = [group.name for group in groups if len(group.subjects) == 1]
    if not names:
        return []
    return [
        f"one seed alone of {', '.join(names)}: no spread over seeds, so a difference may be the "
        "seed's; train further ones with --seed"
    ]
