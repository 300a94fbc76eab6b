"""Table of the accuracies in checkpoints' records, over seeds; nothing is measured again.

    python -m training summary runs/*

Each row is a group of checkpoints that differ only in their seeds. Rows of one network that differ
in the number of epochs show how the accuracy grows with training time. Below the table, the
teachers of each distilled network are named: by the hash of their weights, and by network and seed
if they are among the checkpoints given.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from training.checkpoint import (
    SHOWN_HASH,
    CheckpointError,
    CheckpointRecord,
    read_record,
    require_digit_record,
)
from training.cli import Commands, add_command
from training.evaluation.grouping import group_names, without_seed
from training.evaluation.statistics import Spread, spread

HEAD = ("network", "parameters", "epochs", "seeds", "validation", "test")


def add_summary(commands: Commands) -> None:
    """Add the command ``summary``.

    Args:
        commands: From ``ArgumentParser.add_subparsers``.
    """
    summary = add_command(
        commands,
        "summary",
        _summary,
        description=__doc__,
    )
    summary.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="folders")


def _summary(arguments: argparse.Namespace) -> int:
    records = [
        require_digit_record(read_record(folder), folder) for folder in arguments.checkpoints
    ]
    for line in table(records):
        sys.stdout.write(f"{line}\n")
    return 0


def table(records: Sequence[CheckpointRecord]) -> Iterator[str]:
    """Lines of Markdown: for each set of test images a heading, a row per group, and teachers.

    Args:
        records: The records, in any order; rows follow the first appearance of their groups.
    """
    for name in dict.fromkeys(record.data.test_name for record in records):
        yield from ("", f"On {name}, mean (least to greatest) over seeds:", "")
        yield f"| {' | '.join(HEAD)} |"
        yield f"|{'---|' * len(HEAD)}"
        groups: dict[str, list[CheckpointRecord]] = {}
        for record in records:
            if record.data.test_name == name:
                groups.setdefault(without_seed(record.config), []).append(record)
        names = group_names([group[0].config for group in groups.values()])
        for group_name, group in zip(names, groups.values(), strict=True):
            yield f"| {' | '.join(_cells(group_name, group))} |"
        for group_name, group in zip(names, groups.values(), strict=True):
            if distil := group[0].config.distil:
                teachers = "; ".join(_teacher(sha256, records) for sha256 in distil.teachers)
                yield from ("", f"{group_name} was distilled from: {teachers}")


def _cells(name: str, group: Sequence[CheckpointRecord]) -> list[str]:
    seeds = {record.config.seed for record in group}
    if len(seeds) < len(group):
        raise CheckpointError(
            f"two checkpoints of {name} have the same seed, so they add nothing to the spread over "
            "seeds; leave one out"
        )
    return [
        name,
        f"{group[0].weights.parameters:,}",
        str(group[0].config.epochs),
        str(len(group)),
        *(
            _percent(spread([getattr(record, part).accuracy for record in group]))
            for part in ("validation", "test")
        ),
    ]


def _teacher(sha256: str, records: Sequence[CheckpointRecord]) -> str:
    """A teacher's weights, after its network and seed if its record is one of the given ones."""
    names = [
        f"{record.config.model}, seed {record.config.seed}, "
        for record in records
        if record.weights.sha256 == sha256
    ]
    return f"{''.join(names[:1])}weights {sha256[:SHOWN_HASH]}"


def _percent(figure: Spread) -> str:
    if figure.deviation is None:
        return f"{100 * figure.mean:.2f}%"
    return f"{100 * figure.mean:.3f}% ({100 * figure.low:.2f} to {100 * figure.high:.2f})"
