"""Options that several commands share: network, precision, images, device."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from training.models import RENAMED

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Group: TypeAlias = "argparse._ActionsContainer"


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    description: str,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    """Add a command whose help keeps the line breaks of its texts.

    Args:
        commands: From ``ArgumentParser.add_subparsers``.
        name: The command's name on the command line.
        run: Takes the parsed arguments and returns the exit status.
        description: The help text above the options.
        epilog: The help text below the options.
    """
    command = commands.add_parser(
        name,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=run)
    return command


def model_name(name: str) -> str:
    """Return the network's current name, with a note on an old one; for ``type=`` of an option."""
    if name in RENAMED:
        print(
            f"note: the network {name} is now called {RENAMED[name]}; the old name works for one "
            "more release",
            file=sys.stderr,
        )
    return RENAMED.get(name, name)


def add_arch(parser: Group) -> None:
    """Add ``--arch``; ``named_values`` parses its values."""
    parser.add_argument(
        "--arch",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a hyperparameter of the network, e.g. n1=32, hidden=[256,128] or down=average; may "
        "be repeated",
    )


def named_values(option: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Parse the values of an option such as ``--arch`` or ``--augment``.

    Args:
        option: The option's name, for error messages.
        pairs: NAME=VALUE each; a value is JSON or a bare word.

    Raises:
        ValueError: A pair is neither; the message quotes it.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError as error:
            if not text.isalpha():
                raise ValueError(
                    f"{option} {pair}: expected NAME=VALUE, where VALUE is a number, true, false, "
                    "a word or a list"
                ) from error
            values[name] = text
    return values


def add_precision(group: Group) -> None:
    """Add ``--precision`` and ``--compiled``: how a training step is computed."""
    group.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        help="precision of the matrix products in a training step; bfloat16 is fast on GPUs and on "
        "CPUs with AVX512-BF16 or AMX, and slow on other CPUs; weights and metrics stay float32 "
        "(default: float32)",
    )
    group.add_argument(
        "--compiled",
        action="store_true",
        default=None,
        help="compile the training step with torch.compile (needs a C++ compiler); on a GPU, "
        "replay it as a CUDA graph",
    )


def add_data_dir(group: Group) -> None:
    """Add ``--data-dir``, the folder of the images."""
    group.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="folder of the four IDX files (default: $MNIST_DIR, else MNIST is downloaded)",
    )


def add_common(group: Group) -> None:
    """Add ``--data-dir`` and ``--device``."""
    add_data_dir(group)
    group.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="auto: cuda if PyTorch finds a CUDA device, else cpu (default: %(default)s)",
    )
