"""``python -m training describe``: describe a network by its name and hyperparameters alone."""

import argparse
import sys
from pathlib import Path

import torch

from training.cli import add_arch, model_name, named_values
from training.describe.layout import layout, memory_formats
from training.describe.steps import describe
from training.describe.table import as_text
from training.models import ARCHITECTURES, build_model, model_names, resolved


def add_describe(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command ``describe`` to those of ``python -m training``."""
    parser = commands.add_parser(
        "describe", help="print a network step by step: shapes, parameters, cost, receptive field"
    )
    parser.set_defaults(command=_describe)
    parser.add_argument(
        "name",
        type=model_name,
        choices=model_names(),
        metavar="NAME",
        help=", ".join(model_names()),
    )
    parser.add_argument(
        "--input-size",
        action="append",
        metavar="C,H,W",
        help="shape of one sample, instead of the network's own; repeat it for each input",
    )
    add_arch(parser)
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="also write this file, with the same as JSON; - prints only JSON",
    )
    parser.add_argument(
        "--memory-format",
        action="store_true",
        help="also print the strides of each step's output, channels first and channels last",
    )
    parser.add_argument(
        "--layout",
        action="store_true",
        help="also print how both layouts store a small tensor in memory, value by value",
    )


def _describe(arguments: argparse.Namespace) -> int:
    numbers = named_values("--arch", arguments.arch)
    architecture, _ = resolved(arguments.name, numbers)
    inputs = ARCHITECTURES[architecture].inputs
    if arguments.input_size:
        given = tuple(_size(text) for text in arguments.input_size)
        if len(given) != len(inputs):
            raise ValueError(
                f"{arguments.name} takes {len(inputs)} inputs, but --input-size was given "
                f"{len(given)} times; give it once for each input"
            )
        inputs = given
    with torch.device("meta"):  # no weight is allocated, however many there are
        module = build_model(arguments.name, numbers)
    description = describe(module, inputs, name=arguments.name)
    if arguments.memory_format:
        formats = memory_formats(description)
        description = description.model_copy(update={"memory_formats": formats})
    if arguments.layout:
        description = description.model_copy(update={"layout": layout()})
    as_json = description.model_dump_json(indent=2)
    if arguments.json == "-":
        sys.stdout.write(f"{as_json}\n")
        return 0
    if arguments.json is not None:
        Path(arguments.json).write_text(f"{as_json}\n")
    sys.stdout.write(f"{as_text(description)}\n")
    return 0


def _size(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"--input-size {text}: expected positive integers with commas between, e.g. 1,28,28"
        )
    return tuple(map(int, parts))
