"""The commands ``train`` and ``evaluate``, which train a network or measure it again."""

import argparse
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from training.checkpoint import (
    RECORDS,
    AnyEpoch,
    AnyRecord,
    DataRecord,
    open_checkpoint,
    write_record,
    write_weights,
)
from training.cli import (
    Commands,
    Group,
    add_arch,
    add_command,
    add_common,
    add_precision,
    model_name,
    named_values,
)
from training.config import PRESETS, DistilConfig, Preset, TrainConfig, preset
from training.data import (
    Dataset,
    LabelledImages,
    fingerprint,
    load_dataset,
    split_validation,
    validation_size,
)
from training.device import chosen_device, device_name
from training.evaluation.ensemble import read_teachers
from training.evaluation.plots import draw_all
from training.loop.distributed import DistributedContext, init_distributed
from training.loop.fit import fit
from training.loop.resume import RESUME_NAME, run_folder
from training.loop.tasks import task_of
from training.loop.tensorboard import TRACKERS, tracker
from training.models import ARCHITECTURES, model_names, resolved
from training.provenance import commit, versions

TASKS_IN_WORDS = {
    "digit": "classify one digit",
    "pair": "two digits and their sum",
    "image": "reconstruct the image",
}
EXAMPLES = """\
examples:
  python -m training train --model cnn
  python -m training train --model cnn --preset full --seed 1 --out artifacts/checkpoints/cnn-1
  python -m training train --model mlp --arch hidden=[256,128] --epochs 5
"""
WIDTH, INDENT = 100, 33  # columns


def add_evaluate(commands: Commands) -> None:
    """Add the command ``evaluate``; see ``add_train``."""
    evaluate = commands.add_parser("evaluate", help="measure a checkpoint again on the test images")
    evaluate.add_argument("checkpoint", type=Path, help="a folder that the command train wrote")
    add_common(evaluate)
    evaluate.set_defaults(command=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    record, module = open_checkpoint(arguments.checkpoint)
    dataset = load_dataset(arguments.data_dir)
    device = chosen_device(arguments.device)
    print(f"{record.config.model} ({record.weights.parameters:,} parameters) on {device}")
    figures = task_of(record.config).evaluate(module.to(device), dataset.test, dataset.test_name)
    print(figures.summary())
    return 0


def add_train(commands: Commands) -> None:
    """Add the command ``train``.

    Args:
        commands: From ``ArgumentParser.add_subparsers``.
    """
    train = add_command(
        commands,
        "train",
        _train,
        description=f"Train a network on MNIST and write a checkpoint.\n\n{_models()}",
        epilog=f"{_presets()}\n\n{EXAMPLES}",
    )
    _add_what(train.add_argument_group("what to train"))
    _add_how(train.add_argument_group("how to train it (defaults: the preset's)"))
    where = train.add_argument_group("where")
    add_common(where)
    where.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="the checkpoint's folder (default: artifacts/checkpoints/NAME)",
    )
    meanwhile = train.add_argument_group("while it runs")
    unfinished = meanwhile.add_mutually_exclusive_group()
    unfinished.add_argument(
        "--resume", action="store_true", help="continue an unfinished run; give the same options"
    )
    unfinished.add_argument(
        "--restart", action="store_true", help="discard an unfinished run in the folder"
    )
    meanwhile.add_argument(
        "--track",
        choices=TRACKERS,
        help="also write each epoch's metrics for this viewer (default: off)",
    )


def _add_what(what: Group) -> None:
    what.add_argument(
        "--model", required=True, type=model_name, metavar="NAME", help="one of the names above"
    )
    what.add_argument(
        "--preset",
        choices=get_args(Preset),
        default="quick",
        help="quick takes minutes, best is the most accurate; see below (default: %(default)s)",
    )
    add_arch(what)


def _add_how(how: Group) -> None:
    how.add_argument("--epochs", type=int, metavar="N", help="passes through the training images")
    how.add_argument("--batch-size", type=int, metavar="N", help="images per step (default: 256)")
    how.add_argument(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help="peak of the one-cycle schedule (default: 0.005)",
    )
    how.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="seed of the initial weights, the order of the images and their distortions; the "
        "same seed gives the same weights (default: 0)",
    )
    how.add_argument(
        "--ema",
        type=float,
        metavar="DECAY",
        help="save a moving average of the weights; a decay of 0.998 spans about 500 steps",
    )
    how.add_argument(
        "--spare-biases",
        action="store_true",
        help="no weight decay on biases and on the scales and shifts of normalisations",
    )
    how.add_argument(
        "--clean-share",
        type=float,
        metavar="SHARE",
        help="share of the images that are not distorted, 0 to 1",
    )
    how.add_argument(
        "--augment",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a limit of the distortions, e.g. elastic_px=0.8, stroke=0.5 or coarse_share=0.3 (see "
        "AugmentConfig in training/config.py); may be repeated",
    )
    add_precision(how)
    how.add_argument(
        "--teachers",
        type=Path,
        nargs="+",
        default=[],
        metavar="CHECKPOINT",
        help="also learn from the mean prediction of these networks (see: python -m training "
        "ensemble --help)",
    )


def _models() -> str:
    """The help's list of network names, grouped by task."""
    lines = ["models:"]
    for task, words in TASKS_IN_WORDS.items():
        names = [
            name for name in model_names() if ARCHITECTURES[resolved(name, {})[0]].task == task
        ]
        start = f"  {words + ':':{INDENT - 2}}"
        lines += textwrap.wrap(
            ", ".join(names),
            WIDTH,
            initial_indent=start,
            subsequent_indent=" " * INDENT,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _presets() -> str:
    """The help's table of presets."""
    rows = [
        f"  {model:16}{which:8}{config.epochs:3} epochs, "
        f"{'undistorted' if config.augment.is_off else 'distorted'} images"
        for (model, which), config in PRESETS.items()
    ]
    return "\n".join(
        [
            "presets:",
            *rows,
            "  A variant has its architecture's preset, with its own hyperparameters. Any other",
            "  network has the CNN's epochs and distortions, so that the two can be compared.",
        ]
    )


def _config(arguments: argparse.Namespace) -> TrainConfig:
    chosen = preset(arguments.model, arguments.preset)
    # Refuses to change a number that the variant fixes.
    _, own = resolved(arguments.model, named_values("--arch", arguments.arch))
    augment = chosen.augment.model_dump() | named_values("--augment", arguments.augment)
    if arguments.clean_share is not None:
        augment["clean_share"] = arguments.clean_share
    return chosen.with_changes(
        epochs=arguments.epochs,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        max_learning_rate=arguments.learning_rate,
        precision=arguments.precision,
        compiled=arguments.compiled,
        ema_decay=arguments.ema,
        decay_norms_and_biases=False if arguments.spare_biases else None,
        augment=augment,
        architecture=chosen.architecture | own,
    )


@dataclass(frozen=True)
class _Images:
    """The data set, and its training images split into training and validation."""

    dataset: Dataset
    train: LabelledImages
    validation: LabelledImages


def _train(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    with init_distributed(chosen_device(arguments.device)) as (context, device):
        return _train_in(context, arguments, config, device)


def _train_in(
    context: DistributedContext,
    arguments: argparse.Namespace,
    config: TrainConfig,
    device: torch.device,
) -> int:
    folder = arguments.out or Path("artifacts/checkpoints") / arguments.model
    dataset = load_dataset(arguments.data_dir)
    held_out = validation_size(config.validation_images, len(dataset.train))
    images = _Images(dataset, *split_validation(dataset.train, held_out))
    teachers = read_teachers(arguments.teachers, dataset, held_out)
    named = tuple(teacher.record.weights.sha256 for teacher in teachers)
    config = config.with_changes(
        validation_images=held_out, distil=DistilConfig(teachers=named) if named else None
    )
    say: Callable[[str], None] = print if context.is_first else lambda _: None
    together = f", {context.size} processes" if context.size > 1 else ""
    say(
        f"training {config.model} on {device} with {len(images.train):,} images, "
        f"seed {config.seed}{together}"
    )
    clock = _Clock(config, len(images.train))
    with ExitStack() as held:
        viewer = held.enter_context(
            tracker(arguments.track if context.is_first else None, folder, config)
        )
        if context.is_first:
            held.enter_context(
                run_folder(folder, resume=arguments.resume, restart=arguments.restart)
            )

        def tell(entry: AnyEpoch) -> None:
            say(
                f"  epoch {entry.epoch + 1:2d}/{config.epochs}  loss {entry.train_loss:.4f}  "
                f"{entry.summary()}  {clock.after(entry.epoch)}"
            )
            viewer.epoch(entry.epoch + 1, entry)

        fitted = fit(
            config,
            images.train,
            images.validation,
            device=device,
            folder=folder,
            data_sha256=dataset.sha256,
            resume=arguments.resume,
            teachers=[teacher.module for teacher in teachers],
            on_epoch=tell,
        )
        if not context.is_first:
            return 0
        record = _write_checkpoint(folder, config, fitted.module, fitted.history, images)
        viewer.final("test", record.test)
    say(record.test.summary())
    say(f"checkpoint: {folder} ({record.weights.parameters:,} parameters)")
    return 0


def _write_checkpoint(
    folder: Path,
    config: TrainConfig,
    module: torch.nn.Module,
    history: Sequence[AnyEpoch],
    images: _Images,
) -> AnyRecord:
    task, dataset, validation = task_of(config), images.dataset, images.validation
    record = RECORDS[ARCHITECTURES[config.model].task].model_validate(
        {
            "config": config,
            "data": DataRecord(
                name=dataset.name,
                test_name=dataset.test_name,
                source=dataset.source,
                sha256=dataset.sha256,
                split_sha256=fingerprint(validation),
                train_images=len(images.train),
                validation_images=len(validation),
                test_images=len(dataset.test),
            ),
            "weights": write_weights(folder, module),
            "device": device_name(next(module.parameters()).device),
            "epoch_kept": config.epochs - 1,
            "history": history,
            "validation": task.evaluate(
                module, validation, f"{len(validation):,} validation images"
            ),
            "test": task.evaluate(module, dataset.test, dataset.test_name),
            "versions": versions(["torch", "torchvision", "numpy", "safetensors"]),
            "commit": commit(),
        }
    )
    draw_all(record, module, dataset.test.images, folder)
    write_record(folder, record)  # last: once a record exists, all other files do too
    (folder / RESUME_NAME).unlink(missing_ok=True)
    return record


class _Clock:
    """Speed and remaining time of a run, measured since this process started or resumed it."""

    def __init__(self, config: TrainConfig, train_images: int) -> None:
        self._epochs = config.epochs
        self._images = train_images // config.batch_size * config.batch_size
        self._images *= task_of(config).inputs
        self._started_s = self._last_s = time.monotonic()
        self._done = 0

    def after(self, epoch: int) -> str:
        """Text after an epoch (from 0): images per second, validation included, and time left."""
        now_s = time.monotonic()
        rate = self._images / (now_s - self._last_s)
        self._done, self._last_s = self._done + 1, now_s
        left = self._epochs - epoch - 1
        left_s = round(left * (now_s - self._started_s) / self._done)
        remaining = f", {left_s // 60}:{left_s % 60:02d} left" if left else ""
        return f"{rate:,.0f} images/s{remaining}"
