"""Accuracy over the number of training images: short runs, each of which is cached when done.

A size is a number of labelled images. A tenth of them (at most the config's number of validation
images) is used for validation, and the rest for training.

All runs of a group make the same number of updates. An epoch has as many images as the largest
size trains on. Smaller parts are repeated to reach that number, and each copy is augmented
independently if the config augments. Sizes are nested: each takes the first images of one fixed
order. All other settings (batch size, learning rate) and the seed are those of the group's first
checkpoint.
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
from training.compare.groups import CheckpointGroup
from training.compare.schema import SizeRun
from training.config import TrainConfig
from training.data import Dataset, LabelledImages, split_validation, validation_size
from training.evaluation.prediction import predict_logits
from training.loop.fit import DivergedError, fit

CACHE_NAME = "sizes.json"
ORDER_SEED = 20_133
LEAST_SIZE = 10  # images, so that a tenth of them is at least one
RULE = 2  # increased when the rules above change, so that older cached runs are not used

_RUNS = TypeAdapter(list[SizeRun])


def part_of(
    train: LabelledImages, size: int, held_out: int, epoch_images: int
) -> tuple[LabelledImages, LabelledImages]:
    """Split the first ``size`` images of the fixed order into (training, validation).

    Args:
        train: All training images.
        size: Number of images that the run may use.
        held_out: Number of these that are held out for validation.
        epoch_images: Number to which the training images are repeated.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(ORDER_SEED))
    learned, validation = split_validation(train.select(order[:size]), held_out)
    return learned.select(torch.arange(epoch_images) % len(learned)), validation


def check_learning_curve(
    groups: Sequence[CheckpointGroup], dataset: Dataset, sizes: Sequence[int], folder: Path
) -> None:
    """Check, before anything is measured, that ``run_learning_curve`` can train these runs.

    Raises:
        ValueError: A size is too small or larger than the training set; the largest leaves less
            than a batch to train on; or a group was distilled (only teachers' hashes are known).
        CheckpointError: The cache file in the folder is invalid.
    """
    least, most, there = min(sizes), max(sizes), len(dataset.train)
    if least < LEAST_SIZE or most > there:
        raise ValueError(
            f"--sizes {least} to {most}: there are {there:,} training images; "
            f"give numbers from {LEAST_SIZE} to {there}"
        )
    for group in groups:
        if group.config.distil is not None:
            raise ValueError(
                f"--sizes trains each group's config, but {group.name} was distilled and its "
                "teachers are not available; leave out these checkpoints, or --sizes"
            )
        trained = most - validation_size(group.config.validation_images, most)
        if trained < group.config.batch_size:
            raise ValueError(
                f"--sizes {most} leaves {trained} images to train on, fewer than batch_size "
                f"{group.config.batch_size} of {group.name}; add a larger size"
            )
    _read(folder / CACHE_NAME)


def run_learning_curve(
    groups: Sequence[CheckpointGroup],
    dataset: Dataset,
    sizes: Sequence[int],
    epochs: int,
    *,
    folder: Path,
    device: torch.device,
    say: Callable[[str], None],
) -> tuple[list[SizeRun], list[str]]:
    """Train each group's config on parts of the training images and measure on test images.

    Returns the runs, and a line for each run that diverged and is left out.

    Args:
        groups: Groups whose configs are trained, with their first seeds.
        dataset: The images.
        sizes: Sizes of the parts in images; see ``check_learning_curve``.
        epochs: Number of epochs of each run.
        folder: Folder of the cache; runs with the same config, data and rule are not repeated.
        device: Where to train.
        say: Called with a line about each run.

    Raises:
        CheckpointError: The cache file is invalid.
    """
    cache = folder / CACHE_NAME
    known = {run.key: run for run in _read(cache)}
    largest = max(sizes)
    runs, failures = [], []
    for group in groups:
        config = group.config.with_changes(epochs=epochs)
        epoch_images = largest - validation_size(config.validation_images, largest)
        for size in sorted(set(sizes)):
            key = _key(config, dataset.sha256, size, largest)
            if key not in known:
                say(f"training {group.name} on {size:,} images")
                held_out = validation_size(config.validation_images, size)
                part = part_of(dataset.train, size, held_out, epoch_images)
                try:
                    accuracy = _accuracy(config, *part, dataset, device, folder)
                except DivergedError as error:
                    failures.append(f"{group.name} on {size:,} images is left out: {error}")
                    continue
                known[key] = SizeRun(
                    group=group.name,
                    seed=config.seed,
                    size=size,
                    epochs=epochs,
                    epoch_images=epoch_images,
                    accuracy=accuracy,
                    key=key,
                )
                write_atomically(cache, _RUNS.dump_json(list(known.values()), indent=2))
            # The group may have had another name when the run was cached.
            runs.append(known[key].model_copy(update={"group": group.name}))
    return runs, failures


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
    read_as = predict_logits(fitted.module, dataset.test.images).argmax(1)
    return float((read_as == dataset.test.labels).double().mean())


def _key(config: TrainConfig, data_sha256: str, size: int, epoch_images: int) -> str:
    parts = [config.model_dump(mode="json"), data_sha256, size, epoch_images, RULE]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(cache: Path) -> list[SizeRun]:
    if not cache.exists():
        return []
    try:
        return _RUNS.validate_json(cache.read_bytes())
    except ValidationError as error:
        raise CheckpointError(
            f"{cache} is not a valid list of runs on parts of the training images "
            f"({error.error_count()} problems); delete it to train them again"
        ) from error
