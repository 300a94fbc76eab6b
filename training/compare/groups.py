"""Checkpoints read, checked and sorted into groups that differ in their seed alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from training.checkpoint import (
    CheckpointError,
    CheckpointRecord,
    read_checkpoint,
    require_same_images,
)
from training.config import PRESETS, TrainConfig
from training.data import Dataset
from training.models import VARIANTS, architecture_config


@dataclass(frozen=True)
class ModelUnderTest:
    """A checkpoint: its folder as given, its record and its module (CPU, evaluation mode)."""

    folder: Path
    record: CheckpointRecord
    module: nn.Module


@dataclass(frozen=True)
class SubjectGroup:
    """Checkpoints of one config but for the seed, by ascending seed."""

    name: str
    subjects: list[ModelUnderTest]

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
        CheckpointError: A checkpoint is broken, is no digit model, was trained on other images,
            holds out another number of them, or has the config and seed of another one given.
    """
    subjects = [ModelUnderTest(folder, *read_checkpoint(folder)) for folder in folders]
    if not subjects:
        raise CheckpointError("no checkpoint to compare; give two folders or more")
    first = subjects[0]
    by_config: dict[str, list[ModelUnderTest]] = {}
    for subject in subjects:
        _check(subject, first, dataset)
        same = by_config.setdefault(without_seed(subject.record.config), [])
        for other in same:
            if other.record.config.seed == subject.record.config.seed:
                raise CheckpointError(
                    f"{other.folder} and {subject.folder} have the same config and seed "
                    f"{subject.record.config.seed}: they tell nothing of the spread over seeds; "
                    "leave one out"
                )
        same.append(subject)
    sorted_by_seed = [
        sorted(same, key=lambda subject: subject.record.config.seed) for same in by_config.values()
    ]
    names = group_names([same[0].record.config for same in sorted_by_seed])
    return [SubjectGroup(*pair) for pair in zip(names, sorted_by_seed, strict=True)]


def _check(subject: ModelUnderTest, first: ModelUnderTest, dataset: Dataset) -> None:
    record, folder = subject.record, subject.folder
    if record.data.validation_images != first.record.data.validation_images:
        raise CheckpointError(
            f"{folder} held out {record.data.validation_images} validation images, "
            f"{first.folder} {first.record.data.validation_images}: one of them learned from "
            "images that the other is tuned on; train both with the same number"
        )
    require_same_images(record, dataset, folder)


def without_seed(config: TrainConfig) -> str:
    """What a group of seeds has in common, as one word."""
    return json.dumps(config.model_dump(mode="json", exclude={"seed"}), sort_keys=True)


def conditions(config: TrainConfig) -> dict[str, Any]:
    """How it was trained: all but the model, its numbers and the seed, nested names joined."""
    left = config.model_dump(mode="json", exclude={"seed", "model", "architecture"})
    return dict(_flat(left))


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def group_names(configs: Sequence[TrainConfig]) -> list[str]:
    """A name for each config: its variant's or model's, and what tells it from its namesakes."""
    plain = [_variant(config) for config in configs]
    names = []
    for config, name in zip(configs, plain, strict=True):
        namesakes = [
            {**other.architecture, **conditions(other)}
            for other, its_name in zip(configs, plain, strict=True)
            if its_name == name
        ]
        own = {**config.architecture, **conditions(config)}
        telling = [
            f"{key}={value}"
            for key, value in own.items()
            if any(other.get(key) != value for other in namesakes)
        ]
        names.append(f"{name} ({', '.join(telling)})" if telling else name)
    return names


def _variant(config: TrainConfig) -> str:
    """The variant that a config is, else the model.

    A record holds numbers and no variant's name. The numbers of one of the model's own presets are
    the plain model, whatever they are: the full preset of ``cnn`` has batch normalisation. A
    preset with one variant's numbers is that variant. Other numbers are a variant's if of all
    numbers that variants fix exactly its own differ from the defaults.
    """
    variants: dict[str, dict[str, Any]] = {
        name: fixed for name, (m, fixed) in VARIANTS.items() if m == config.model
    }
    own = [one.architecture for (model, _), one in PRESETS.items() if model == config.model]
    if config.architecture in own:
        return config.model
    for name, fixed in variants.items():
        if any(config.architecture == {**base, **fixed} for base in own):
            return name
    defaults = architecture_config(config.model, {}).model_dump()
    changed = {
        key: config.architecture[key]
        for fixed in variants.values()
        for key in fixed
        if config.architecture[key] != defaults[key]
    }
    return next((name for name, fixed in variants.items() if fixed == changed), config.model)


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
