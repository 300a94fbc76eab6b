"""Digit checkpoints that may be measured together, and names for those that differ in more.

Checkpoints of one config but for the seed are a group: they tell of the spread over seeds.
"""

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
class LoadedCheckpoint:
    """A checkpoint: its folder as given, its record and its module (CPU, evaluation mode)."""

    folder: Path
    record: CheckpointRecord
    module: nn.Module


def load_comparable(folders: Sequence[Path], dataset: Dataset) -> list[LoadedCheckpoint]:
    """Read checkpoints of digit networks that saw the same images and held out the same ones.

    Raises:
        CheckpointError: There is none; or one is broken, does not read digits, was trained on
            other images, holds out others, or has the config and seed of another one given.
    """
    loaded: list[LoadedCheckpoint] = []
    for folder in folders:
        record, module = read_checkpoint(folder)
        for other in loaded:
            _require_comparable(folder, record, other)
        require_same_images(record, dataset, folder)
        loaded.append(LoadedCheckpoint(folder, record, module))
    if not loaded:
        raise CheckpointError("no checkpoint to compare; give two folders or more")
    return loaded


def _require_comparable(folder: Path, record: CheckpointRecord, other: LoadedCheckpoint) -> None:
    held_out, other_held_out = (one.data.validation_images for one in (record, other.record))
    if held_out != other_held_out:
        raise CheckpointError(
            f"{folder} held out {held_out} validation images, {other.folder} {other_held_out}: "
            "one of them learned from images that the other is tuned on; train both with the same "
            "number"
        )
    if record.config == other.record.config:
        raise CheckpointError(
            f"{other.folder} and {folder} have the same config and seed {record.config.seed}: they "
            "tell nothing of the spread over seeds; leave one out"
        )


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
        differing = [
            f"{key}={value}"
            for key, value in own.items()
            if any(other.get(key) != value for other in namesakes)
        ]
        names.append(f"{name} ({', '.join(differing)})" if differing else name)
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
