"""The subcommand ``python -m training compare``."""

import argparse
import logging
from functools import partial
from pathlib import Path

from training.cli import Commands, add_command, add_data_dir
from training.compare.measure import compare
from training.compare.report import JSON_NAME, write_report
from training.compare.schema import ComparePlan, Comparison
from training.compare.sentences import over_seeds, p_text, points, points_interval, times
from training.data import load_dataset
from training.describe.table import aligned
from training.device import chosen_device

logger = logging.getLogger(__name__)

_DESCRIPTION = """\
Compare digit checkpoints: accuracy over seeds, McNemar's test, calibration, costs,
accuracy on distorted images, first layers, and images on which they differ.
Checkpoints that differ only in their seeds form a group. Writes comparison.html and
comparison.json."""
_EXAMPLE = """\
example: three seeds of each model, in one report
  for seed in 0 1 2; do for model in mlp cnn; do
    python -m training train --model $model --seed $seed --epochs 8 --out runs/$model-$seed
  done; done
  python -m training compare runs/mlp-* runs/cnn-* --out runs/comparison
"""


def add_compare(commands: Commands) -> None:
    """Add the subcommand to a parser's commands."""
    defaults = ComparePlan()
    parser = add_command(
        commands,
        "compare",
        _compare,
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
    )
    parser.add_argument(
        "checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="folders of checkpoints"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the report"
    )
    parser.add_argument(
        "--base",
        metavar="GROUP",
        help="the group that the others are compared with; default: the first",
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="number of test images to distort; default: all"
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="also train each group's config on N labelled images, for each N; default: do not",
    )
    parser.add_argument(
        "--size-epochs",
        type=int,
        default=defaults.size_epochs,
        help="epochs of these runs, each of as many images as the largest N; default: %(default)s",
    )
    parser.add_argument(
        "--picture",
        type=int,
        default=defaults.picture_index,
        metavar="INDEX",
        help="index of the test image whose feature maps are drawn; default: %(default)s",
    )
    add_data_dir(parser)
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="where to compute; default: %(default)s",
    )


def _compare(arguments: argparse.Namespace) -> int:
    plan = ComparePlan(
        images=arguments.images,
        base=arguments.base,
        sizes=tuple(arguments.sizes),
        size_epochs=arguments.size_epochs,
        picture_index=arguments.picture,
    )
    dataset = load_dataset(arguments.data_dir)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write = partial(write_report, dataset=dataset, folder=arguments.out)
    comparison = compare(
        arguments.checkpoints,
        dataset,
        plan,
        folder=arguments.out,
        device=chosen_device(arguments.device),
        say=logger.info,
        on_measured=write,
    )
    page = write(comparison)
    text = f"{summary(comparison)}\nreport: {page}\nfigures: {page.with_name(JSON_NAME)}"
    print(text)  # noqa: T201 - a command line prints
    return 0


def summary(comparison: Comparison) -> str:
    """Format a comparison as a short table for a terminal, followed by its warnings."""
    rows = [
        (
            "group",
            "seeds",
            "accuracy",
            "against base",
            "95% interval",
            "p (Holm)",
            "parameters",
            "time",
        )
    ]
    for one in comparison.alternatives:
        group = comparison.group(one.name)
        is_base = one.name == comparison.base
        rows.append(
            (
                *(one.name, str(len(group.networks)), over_seeds(group.accuracy)),
                "base" if is_base else points(one.difference),
                "" if is_base else points_interval(one.interval),
                "" if one.p_holm is None else p_text(one.p_holm),
                f"{group.cost.parameters:,}",
                times(group.cost.times[0].ratio),
            )
        )
    notes = [f"note: {line}" for line in comparison.warnings]
    return "\n".join([f"on {comparison.test_name}:", aligned(rows), *notes])
