"""Accuracy against the number of training images: small runs, cached as soon as each is done.

The rule that makes runs comparable: every run of a group makes the same number of updates and
sees the same number of images. An epoch has as many images as the largest size; a smaller part is
repeated as often as it takes, each copy distorted anew where the config says so. Parts are nested:
the first images of one fixed order, so that a larger part holds all of a smaller one. All else
(batch size, learning rate, validation images) is the group's config. One seed a group.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from training.atomic import write_atomically
from training.checkpoint import CheckpointError
from training.compare.groups import SubjectGroup
from training.compare.result import SizeRun
from training.compare.robustness import read_pixels
from training.config import TrainConfig
from training.data import Dataset, LabelledImages, split_validation, to_pixels
from training.loop.fit import fit

CACHE_NAME = "sizes.json"
ORDER_SEED = 20_133
RULE = 1  # counts up when the rule above changes: older cached runs are then not taken

_RUNS = TypeAdapter(list[SizeRun])


def part_of(train: LabelledImages, size: int, epoch_images: int) -> LabelledImages:
    """The first ``size`` images of the fixed order, repeated until there are ``epoch_images``.

    Raises:
        ValueError: More images are asked for than there are.
    """
    if size > len(train):
        raise ValueError(
            f"--sizes {size}, but only {len(train)} training images are left beside the "
            "validation images"
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(ORDER_SEED))
    return train.select(order[torch.arange(epoch_images) % size])


def run_sizes(
    groups: Sequence[SubjectGroup],
    dataset: Dataset,
    sizes: Sequence[int],
    epochs: int,
    *,
    folder: Path,
    device: torch.device,
    say: Callable[[str], None],
) -> list[SizeRun]:
    """Train each group's config on parts of the training images and measure on test images.

    Args:
        groups: Whose configs are trained, with their first seed.
        dataset: The images.
        sizes: Of the parts, images.
        epochs: Of each run.
        folder: Where runs are cached; those of the same config, data and rule are not made again.
        device: Where to train.
        say: Told about each run.

    Raises:
        ValueError: A size is larger than the training set, or no batch fits the largest one.
        CheckpointError: The cache is no such file.
    """
    cache = folder / CACHE_NAME
    known = {run.key: run for run in _read(cache)}
    largest = max(sizes)
    runs = []
    for group in groups:
        held_out = group.config.validation_images
        train, validation = split_validation(dataset.train, held_out)
        config = group.config.with_changes(epochs=epochs)
        for size in sorted(set(sizes)):
            key = _key(config, dataset.sha256, size, largest)
            if key not in known:
                say(f"training {group.name} on {size:,} images")
                part = part_of(train, size, largest)
                accuracy = _accuracy(config, part, validation, dataset, device, folder)
                known[key] = SizeRun(
                    group=group.name,
                    seed=config.seed,
                    size=size,
                    epochs=epochs,
                    epoch_images=largest,
                    accuracy=accuracy,
                    key=key,
                )
                write_atomically(cache, _RUNS.dump_json(list(known.values()), indent=2))
            # The cache may know it by the name that it had among other groups.
            runs.append(known[key].model_copy(update={"group": group.name}))
    return runs


def _accuracy(
    config: TrainConfig,
    part: LabelledImages,
    validation: LabelledImages,
    dataset: Dataset,
    device: torch.device,
    folder: Path,
) -> float:
    with tempfile.TemporaryDirectory(prefix="run-", dir=folder) as run_folder:
        fitted = fit(
            config,
            part,
            validation,
            device=device,
            folder=Path(run_folder),
            data_sha256=dataset.sha256,
        )
    read_as = read_pixels(fitted.module, to_pixels(dataset.test.images)).argmax(1)
    return float((read_as == dataset.test.labels).double().mean())


def _key(config: TrainConfig, data_sha256: str, size: int, epoch_images: int) -> str:
    told = [config.model_dump(mode="json"), data_sha256, size, epoch_images, RULE]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _read(cache: Path) -> list[SizeRun]:
    if not cache.exists():
        return []
    try:
        return _RUNS.validate_json(cache.read_bytes())
    except ValidationError as error:
        raise CheckpointError(
            f"{cache} is no list of runs on parts of the training images; delete it to train "
            f"them anew ({error.error_count()} problems)"
        ) from error
