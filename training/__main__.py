"""Command line of the training stage: ``python -m training --help``."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

# cuBLAS is deterministic with this alone, and reads it when torch first touches the GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

try:
    import torch
    import tqdm  # noqa: F401 - asked for here so that a missing extra is named once
except ModuleNotFoundError as missing:
    sys.exit(f"training needs {missing.name}: pip install -c constraints.txt -e '.[train]'")

from pydantic import ValidationError

from training.arguments import add_evaluate, add_train, architecture_numbers
from training.checkpoint import (
    RECORDS,
    AnyEpoch,
    AnyRecord,
    CheckpointError,
    DataRecord,
    open_checkpoint,
    write_record,
    write_weights,
)
from training.compare.command import add_compare
from training.config import DistilConfig, TrainConfig, preset
from training.data import (
    DataError,
    Dataset,
    LabelledImages,
    fingerprint,
    load_dataset,
    split_validation,
    validation_size,
)
from training.describe.command import add_describe
from training.device import chosen_device, device_name
from training.ensemble import add_ensemble, read_teachers
from training.fit import DivergedError, Fitted, fit
from training.models import ARCHITECTURES, explained, resolved
from training.parallel import World, joined
from training.plots import draw_all
from training.provenance import commit, versions
from training.resume import RESUME_NAME, run_folder
from training.speed import add_speed
from training.summary import add_summary
from training.tasks import task_of
from training.track import tracker

INTERRUPTED = 130  # the shell's code for a program ended by Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 refused, 130 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except ValidationError as error:
        print(f"error: {explained(error)}", file=sys.stderr)
        return 1
    except (CheckpointError, DataError, DivergedError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; go on with the same command and --resume", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_train(commands).set_defaults(command=_train)
    add_evaluate(commands).set_defaults(command=_evaluate)
    add_compare(commands)
    add_describe(commands)
    add_ensemble(commands)
    add_speed(commands)
    add_summary(commands)
    return parser


def _train(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    with joined(chosen_device(arguments.device)) as (world, device):
        return _train_in(world, arguments, config, device)


def _train_in(
    world: World, arguments: argparse.Namespace, config: TrainConfig, device: torch.device
) -> int:
    folder = arguments.out or Path("artifacts/checkpoints") / arguments.model
    dataset = load_dataset(arguments.data_dir)
    held_out = validation_size(config.validation_images, len(dataset.train))
    config = config.with_changes(validation_images=held_out)
    train, validation = split_validation(dataset.train, held_out)
    teachers = read_teachers(arguments.teachers, dataset, held_out)
    if teachers:
        named = tuple(teacher.record.weights.sha256 for teacher in teachers)
        config = config.with_changes(distil=DistilConfig(teachers=named))
    say: Callable[[str], None] = print if world.first else lambda _: None
    together = f", {world.size} processes" if world.size > 1 else ""
    say(
        f"training {config.model} on {device} with {len(train):,} images, seed {config.seed}"
        f"{together}"
    )
    clock = _Clock(config, len(train))
    owned = (
        run_folder(folder, resume=arguments.resume, restart=arguments.restart)
        if world.first
        else nullcontext()
    )
    viewing = tracker(arguments.track if world.first else None, folder, config)
    with viewing as viewer, owned:

        def tell(entry: AnyEpoch) -> None:
            say(
                f"  epoch {entry.epoch + 1:2d}/{config.epochs}  loss {entry.train_loss:.4f}  "
                f"{entry.summary()}  {clock.after(entry.epoch)}"
            )
            viewer.epoch(entry.epoch + 1, entry)

        fitted = fit(
            config,
            train,
            validation,
            device=device,
            folder=folder,
            data_sha256=dataset.sha256,
            resume=arguments.resume,
            teachers=[teacher.module for teacher in teachers],
            on_epoch=tell,
        )
        if not world.first:
            return 0
        record = _write_checkpoint(folder, config, fitted, dataset, train, validation)
        viewer.final("test", record.test)
    say(record.test.summary())
    say(f"checkpoint: {folder} ({record.weights.parameters:,} parameters)")
    return 0


def _write_checkpoint(
    folder: Path,
    config: TrainConfig,
    fitted: Fitted,
    dataset: Dataset,
    train: LabelledImages,
    validation: LabelledImages,
) -> AnyRecord:
    task, module = task_of(config), fitted.module
    device = next(module.parameters()).device
    figures = {
        "validation": task.evaluate(module, validation, f"{len(validation):,} validation images"),
        "test": task.evaluate(module, dataset.test, dataset.test_name),
    }
    record = RECORDS[ARCHITECTURES[config.model].task].model_validate(
        {
            "config": config,
            "data": _data_record(dataset, len(train), validation),
            "weights": write_weights(folder, module),
            "device": device_name(device),
            "epoch_kept": config.epochs - 1,
            "history": fitted.history,
            **figures,
            "versions": versions(["torch", "torchvision", "numpy", "safetensors"]),
            "commit": commit(),
        }
    )
    draw_all(record, module, dataset.test.images, folder)
    write_record(folder, record)  # last: who sees a record finds everything beside it
    (folder / RESUME_NAME).unlink(missing_ok=True)
    return record


class _Clock:
    """How fast a run is and how long it will last still; of this start alone, if resumed."""

    def __init__(self, config: TrainConfig, train_images: int) -> None:
        self._epochs = config.epochs
        self._images = train_images // config.batch_size * config.batch_size
        self._images *= task_of(config).inputs
        self._started_s = self._last_s = time.monotonic()
        self._done = 0

    def after(self, epoch: int) -> str:
        """In words, after an epoch, counted from 0: images of it a second, validation included."""
        now_s = time.monotonic()
        rate = self._images / (now_s - self._last_s)
        self._done, self._last_s = self._done + 1, now_s
        left = self._epochs - epoch - 1
        left_s = round(left * (now_s - self._started_s) / self._done)
        remaining = f", {left_s // 60}:{left_s % 60:02d} left" if left else ""
        return f"{rate:,.0f} images/s{remaining}"


def _evaluate(arguments: argparse.Namespace) -> int:
    record, module = open_checkpoint(arguments.checkpoint)
    dataset = load_dataset(arguments.data_dir)
    device = chosen_device(arguments.device)
    print(f"{record.config.model} ({record.weights.parameters:,} parameters) on {device}")
    figures = task_of(record.config).evaluate(module.to(device), dataset.test, dataset.test_name)
    print(figures.summary())
    return 0


def _config(arguments: argparse.Namespace) -> TrainConfig:
    chosen = preset(arguments.model, arguments.preset)
    _, own = resolved(
        arguments.model, architecture_numbers(arguments.arch)
    )  # refuses what a variant fixes
    augment = chosen.augment
    if arguments.clean_share is not None:
        augment = augment.model_copy(update={"clean_share": arguments.clean_share})
    return chosen.with_changes(
        epochs=arguments.epochs,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        max_learning_rate=arguments.learning_rate,
        precision=arguments.precision,
        compiled=arguments.compiled,
        ema_decay=arguments.ema,
        decay_norms_and_biases=False if arguments.spare_biases else None,
        augment=augment.model_dump(),
        architecture={**chosen.architecture, **own},
    )


def _data_record(dataset: Dataset, train_images: int, validation: LabelledImages) -> DataRecord:
    return DataRecord(
        name=dataset.name,
        test_name=dataset.test_name,
        source=dataset.source,
        sha256=dataset.sha256,
        split_sha256=fingerprint(validation),
        train_images=train_images,
        validation_images=len(validation),
        test_images=len(dataset.test),
    )


if __name__ == "__main__":
    sys.exit(main())
