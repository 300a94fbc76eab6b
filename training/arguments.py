"""The command line of training: what ``train`` and ``evaluate`` take, grouped and explained."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias, get_args

from training.config import PRESETS, Preset, TrainConfig
from training.models import ARCHITECTURES, VARIANTS, model_names
from training.track import TRACKERS

WIDTH, INDENT = 100, 33  # columns
TAUGHT = {
    "digit": "read one digit",
    "pair": "read two digits and their sum",
    "image": "give the image back",
}
EXAMPLES = """\
examples:
  python -m training train --model cnn
  python -m training train --model cnn --preset full --seed 1 --out artifacts/checkpoints/cnn-1
  python -m training train --model mlp --arch hidden=[256,128] --epochs 5
"""


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Group: TypeAlias = "argparse._ActionsContainer"


def add_train(commands: Commands) -> argparse.ArgumentParser:
    """Add the command ``train`` and return its parser; what it runs is for the caller to set.

    Args:
        commands: From ``ArgumentParser.add_subparsers``.
    """
    train = commands.add_parser(
        "train",
        help="train a network and write a checkpoint",
        description=f"Train a network on MNIST and write a checkpoint.\n\n{_models()}",
        epilog=f"{_presets()}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
        "--resume", action="store_true", help="go on with an unfinished run; it must be the same"
    )
    unfinished.add_argument(
        "--restart", action="store_true", help="discard an unfinished run that is in DIR"
    )
    meanwhile.add_argument(
        "--track",
        choices=TRACKERS,
        help="write each epoch's figures for this viewer too (default: off)",
    )
    return train


def _add_what(what: Group) -> None:
    what.add_argument("--model", required=True, metavar="NAME", help="one of the names above")
    what.add_argument(
        "--preset",
        choices=get_args(Preset),
        default="quick",
        help="minutes, good, or as good as it gets; see below (default: %(default)s)",
    )
    add_arch(what)


def add_arch(parser: Group) -> None:
    """Add ``--arch``; ``architecture_numbers`` reads what it collects.

    Args:
        parser: Of a command that builds a network.
    """
    parser.add_argument(
        "--arch",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a number of the network, e.g. n1=32, hidden=[256,128] or down=average; may be "
        "repeated",
    )


def architecture_numbers(pairs: Sequence[str]) -> dict[str, Any]:
    """The numbers of an architecture as ``--arch`` has them.

    Args:
        pairs: NAME=VALUE each; a value is JSON, or a word alone.

    Raises:
        ValueError: Something else; says which.
    """
    numbers: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            numbers[name] = json.loads(text)
        except json.JSONDecodeError as error:
            if not text.isalpha():
                raise ValueError(
                    f"--arch {pair}: NAME=VALUE is expected, the value a number, true, false, a "
                    "word or a list"
                ) from error
            numbers[name] = text
    return numbers


def _add_how(how: Group) -> None:
    how.add_argument("--epochs", type=int, metavar="N", help="times through the training images")
    how.add_argument(
        "--batch-size", type=int, metavar="N", help=f"images a step{_default('batch_size')}"
    )
    how.add_argument(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help=f"the one-cycle schedule's peak{_default('max_learning_rate')}",
    )
    how.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of weights, order and distortions; the same seed gives the same weights (default: 0)",
    )
    how.add_argument(
        "--ema",
        type=float,
        metavar="DECAY",
        help="keep a moving average of the weights, e.g. 0.998: over some 500 steps",
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
        help="of the images that are left undistorted, 0 to 1 (default: 0)",
    )
    add_precision(how)
    how.add_argument(
        "--teachers",
        type=Path,
        nargs="+",
        default=[],
        metavar="CHECKPOINT",
        help="learn from these networks' mean answer, too (see: python -m training ensemble)",
    )


def add_precision(group: Group) -> None:
    """Add how a step is computed."""
    group.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        help="of a step's matrix products; bfloat16 is fast on GPUs and on CPUs with AVX512-BF16 "
        "or AMX, and slow on others; weights and figures stay float32 (default: float32)",
    )
    group.add_argument(
        "--compiled",
        action="store_true",
        default=None,
        help="compile the step by torch.compile (needs a C++ compiler); on a GPU replay it as a "
        "CUDA graph",
    )


def add_evaluate(commands: Commands) -> argparse.ArgumentParser:
    """Add the command ``evaluate``; see ``add_train``."""
    evaluate = commands.add_parser("evaluate", help="measure a checkpoint on test images again")
    evaluate.add_argument("checkpoint", type=Path, help="a folder that train wrote")
    add_common(evaluate)
    return evaluate


def add_common(group: Group) -> None:
    """Add where the images lie and where to compute."""
    group.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="the four IDX files (default: $MNIST_DIR, else a download)",
    )
    group.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="auto is cuda where there is one (default: %(default)s)",
    )


def _default(field: str) -> str:
    """The default in words, where all presets have the same."""
    values = {getattr(config, field) for config in PRESETS.values()}
    return f" (default: {values.pop():g})" if len(values) == 1 else ""


def _models() -> str:
    """The names by what the networks learn."""
    lines = []
    for task, words in TAUGHT.items():
        names = [name for name in model_names() if _task(name) == task]
        if names:
            lines.append(f"  {words + ':':31}{', '.join(names)}")
    return "\n".join(["models:", *_wrapped(lines)])


def _wrapped(lines: list[str]) -> list[str]:
    """Long lists of names go on below each other."""
    wrapped = []
    for line in lines:
        while len(line) > WIDTH and (cut := line.rfind(", ", 0, WIDTH)) > INDENT:
            wrapped.append(line[: cut + 1])
            line = " " * INDENT + line[cut + 2 :]
        wrapped.append(line)
    return wrapped


def _task(name: str) -> str:
    return ARCHITECTURES[VARIANTS[name][0] if name in VARIANTS else name].task


def _presets() -> str:
    """What the presets are, in a table."""
    rows = [f"  {model:16}{which:8}{_conditions(c)}" for (model, which), c in PRESETS.items()]
    return "\n".join(
        [
            "presets:",
            *rows,
            "  A variant has its architecture's preset, with its own numbers. Any other network",
            "  has the CNN's epochs and distortions: so the two can be compared.",
        ]
    )


def _conditions(config: TrainConfig) -> str:
    distorted = "plain images" if config.augment.is_off else "distorted images"
    return f"{config.epochs:3} epochs, {distorted}"
