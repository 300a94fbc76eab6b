"""Command line of the training stage: ``python -m training --help``."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# cuBLAS is deterministic with this alone, and reads it when torch first touches the GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

try:
    import torch
    import tqdm  # noqa: F401 - asked for here so that a missing extra is named once
except ModuleNotFoundError as missing:
    sys.exit(f"training needs {missing.name}: pip install -c constraints.txt -e '.[train]'")

from pydantic import ValidationError

from training.checkpoint import (
    CheckpointError,
    CheckpointRecord,
    DataRecord,
    read_checkpoint,
    write_record,
    write_weights,
)
from training.config import PRESETS, TrainConfig
from training.data import DataError, Dataset, load_dataset, split_validation
from training.evaluate import Evaluation, evaluate
from training.fit import DivergedError, fit
from training.models import ARCHITECTURES, explained
from training.plots import draw_all
from training.provenance import commit, versions
from training.resume import RESUME_NAME

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
    train = commands.add_parser("train", help="train a model and write a checkpoint")
    train.set_defaults(command=_train)
    train.add_argument("--model", choices=sorted(ARCHITECTURES), required=True)
    train.add_argument(
        "--preset", choices=["quick", "full"], default="quick", help="default: %(default)s"
    )
    train.add_argument("--epochs", type=int, help="in place of the preset's")
    train.add_argument("--seed", type=int, help="default: 0")
    train.add_argument(
        "--arch",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a number of the architecture, e.g. n1=32 or hidden=[256,128]; may be repeated",
    )
    train.add_argument("--batch-size", type=int, help="images")
    train.add_argument("--learning-rate", type=float, help="the schedule's peak")
    train.add_argument("--out", type=Path, help="default: artifacts/checkpoints/MODEL")
    train.add_argument("--resume", action="store_true", help="go on with an unfinished run")
    evaluate_ = commands.add_parser("evaluate", help="measure a checkpoint on test images again")
    evaluate_.set_defaults(command=_evaluate)
    evaluate_.add_argument("checkpoint", type=Path)
    for command in (train, evaluate_):
        command.add_argument(
            "--data-dir", type=Path, help="the four IDX files; default: $MNIST_DIR, else a download"
        )
        command.add_argument(
            "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: %(default)s"
        )
    return parser


def _train(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    device = _device(arguments.device)
    folder = arguments.out or Path("artifacts/checkpoints") / config.model
    dataset = load_dataset(arguments.data_dir)
    held_out = min(config.validation_images, len(dataset.train) // 10)
    config = config.with_changes(validation_images=held_out)
    train, validation = split_validation(dataset.train, held_out)
    print(f"training {config.model} on {device} with {len(train):,} images, seed {config.seed}")
    fitted = fit(
        config,
        train,
        validation,
        device=device,
        folder=folder,
        data_sha256=dataset.sha256,
        resume=arguments.resume,
        on_epoch=lambda entry: print(
            f"  epoch {entry.epoch + 1:2d}/{config.epochs}  loss {entry.train_loss:.4f}  "
            f"validation {100 * entry.validation_accuracy:.2f}%"
        ),
    )
    record = CheckpointRecord(
        config=config,
        data=_data_record(dataset, len(train), len(validation)),
        weights=write_weights(folder, fitted.module),
        device=_device_name(device),
        epoch_kept=fitted.epoch_kept,
        history=fitted.history,
        validation=evaluate(fitted.module, validation, f"{len(validation):,} validation images"),
        test=evaluate(fitted.module, dataset.test, dataset.test_name),
        versions=versions(["torch", "torchvision", "numpy", "safetensors"]),
        commit=commit(),
    )
    draw_all(record, dataset.test.images, folder)
    write_record(folder, record)  # last: who sees a record finds everything beside it
    (folder / RESUME_NAME).unlink(missing_ok=True)
    print(_summary(record.test))
    print(f"checkpoint: {folder} ({record.weights.parameters:,} parameters)")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    record, module = read_checkpoint(arguments.checkpoint)
    dataset = load_dataset(arguments.data_dir)
    device = _device(arguments.device)
    print(f"{record.config.model} ({record.weights.parameters:,} parameters) on {device}")
    print(_summary(evaluate(module.to(device), dataset.test, dataset.test_name)))
    return 0


def _config(arguments: argparse.Namespace) -> TrainConfig:
    preset = PRESETS[arguments.model, arguments.preset]
    numbers = dict(pair.split("=", 1) if "=" in pair else (pair, "") for pair in arguments.arch)
    parsed = {name: _number(name, text) for name, text in numbers.items()}
    return preset.with_changes(
        epochs=arguments.epochs,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        max_learning_rate=arguments.learning_rate,
        architecture={**preset.architecture, **parsed},
    )


def _number(name: str, text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"--arch {name}={text}: the value must be a number, true, false or a list"
        ) from error


def _device(asked: str) -> torch.device:
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise ValueError("--device cuda, but PyTorch sees no CUDA device; use cpu or auto")
    return torch.device("cuda" if there and asked != "cpu" else "cpu")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"


def _data_record(dataset: Dataset, train_images: int, validation_images: int) -> DataRecord:
    return DataRecord(
        name=dataset.name,
        test_name=dataset.test_name,
        source=dataset.source,
        sha256=dataset.sha256,
        train_images=train_images,
        validation_images=validation_images,
        test_images=len(dataset.test),
    )


def _summary(figures: Evaluation) -> str:
    per_digit = "  ".join(
        f"{digit}: {'none' if share is None else format(100 * share, '.2f')}"
        for digit, share in enumerate(figures.accuracy_per_digit)
    )
    return (
        f"on {figures.images_name}: accuracy {100 * figures.accuracy:.2f}%, "
        f"expected calibration error {100 * figures.expected_calibration_error:.2f}%\n"
        f"  per digit, %: {per_digit}"
    )


if __name__ == "__main__":
    sys.exit(main())
