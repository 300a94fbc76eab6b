"""Command line of the training stage: ``python -m training --help``.

A command's module is imported only when the command is called: ``describe`` needs no matplotlib.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

# cuBLAS is deterministic only with this setting, and reads it when torch first uses the GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

INTERRUPTED = 130  # the shell's exit status for a program that Ctrl-C ended


class Command(NamedTuple):
    """A command: the function that adds its parser, as "module:function", and its help text."""

    adds: str
    help: str


COMMANDS = {
    "train": Command("training.train:add_train", "train a network and write a checkpoint"),
    "evaluate": Command(
        "training.train:add_evaluate", "measure a checkpoint again on the test images"
    ),
    "compare": Command(
        "training.compare.command:add_compare",
        "compare checkpoints on the same images and write a report",
    ),
    "describe": Command(
        "training.describe.command:add_describe",
        "show a network step by step: shapes, parameters, multiply-adds, receptive field",
    ),
    "ensemble": Command(
        "training.evaluation.ensemble:add_ensemble", "measure an ensemble of checkpoints"
    ),
    "speed": Command(
        "training.speed:add_speed",
        "measure the time to reach an accuracy, compared with PyTorch's example",
    ),
    "summary": Command(
        "training.evaluation.summary:add_summary",
        "print a table of checkpoints' accuracies over seeds",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0 success, 1 failure, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = _parser(argv[0] if argv else None).parse_args(argv)
    try:
        return int(arguments.command(arguments))
    # The stage's own errors are ValueErrors, as pydantic's are.
    except (ValueError, OSError) as error:
        print(f"error: {_in_words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "interrupted; continue a training run by the same command with --resume",
            file=sys.stderr,
        )
        return INTERRUPTED


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """Build a parser with the names of all commands and the options of the chosen one."""
    parser = argparse.ArgumentParser(
        prog="python -m training", description="Train, measure and compare networks for MNIST."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        if name == chosen:  # the list of commands is not printed then
            module, function = command.adds.split(":")
            try:
                getattr(import_module(module), function)(commands)
            except ModuleNotFoundError as missing:
                sys.exit(
                    f"training needs {missing.name}: pip install -c constraints.txt -e '.[train]'"
                )
        else:
            commands.add_parser(name, help=command.help)
    return parser


def _in_words(error: Exception) -> str:
    from pydantic import ValidationError  # noqa: PLC0415 - missing without the extra "train"

    from training.models import explained  # noqa: PLC0415

    return explained(error) if isinstance(error, ValidationError) else str(error)


if __name__ == "__main__":
    sys.exit(main())
