"""Load digit checkpoints that can be compared, group them by config, and name the groups.

Checkpoints whose configs differ only in the seed are a group, which gives the spread over seeds.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from training.checkpoint import (
    SHOWN_HASH,
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
    """Load digit checkpoints that share their training and validation images.

    Raises:
        CheckpointError: No checkpoint is given; or one is broken, is not a digit classifier, was
            trained on other images, holds out others, or has the config and seed of another one.
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
            "one of them was trained on validation images of the other; train both with the same "
            "number"
        )
    if record.config == other.record.config:
        raise CheckpointError(
            f"{other.folder} and {folder} have the same config and seed {record.config.seed}, so "
            "they add nothing to the spread over seeds; leave one out"
        )


def without_seed(config: TrainConfig) -> str:
    """Serialise a config without its seed: the key that a group's members share."""
    return json.dumps(config.model_dump(mode="json", exclude={"seed"}), sort_keys=True)


def conditions(config: TrainConfig) -> dict[str, Any]:
    """Training settings by dotted name: all but the model, its hyperparameters and the seed."""
    left = config.model_dump(mode="json", exclude={"seed", "model", "architecture"})
    return dict(_flat(left))


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def group_names(configs: Sequence[TrainConfig]) -> list[str]:
    """Name each config by its variant or model, and by settings that differ among namesakes."""
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
            _setting(key, value)
            for key, value in own.items()
            if any(other.get(key) != value for other in namesakes)
        ]
        names.append(f"{name} ({', '.join(differing)})" if differing else name)
    return names


def _setting(name: str, value: Any) -> str:
    """A setting for a group's name; teachers are identified by the beginning of their hashes."""
    if name == "distil.teachers":
        return f"{name}=[{', '.join(sha256[:SHOWN_HASH] for sha256 in value)}]"
    return f"{name}={value}"


def _variant(config: TrainConfig) -> str:
    """The name of the variant that a config matches, or else of its model.

    A record holds hyperparameters, but no variant's name. The hyperparameters of one of the
    model's own presets are the plain model, even where they differ from the defaults: the full
    preset of ``cnn`` has batch normalisation. A preset changed by what one variant fixes is that
    variant. Otherwise, consider all hyperparameters that any variant fixes: a variant matches if
    exactly those that it fixes differ from the defaults, and have its values.
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
