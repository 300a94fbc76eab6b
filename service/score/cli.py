"""The command line of offline scoring; ``main`` documents the exit codes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from service.score.errors import ScoreError
from service.score.run import Options, score
from service.score.source import FORMATS

ALL_SCORED, QUARANTINED, NOT_RUN, INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = """exit codes: 0 every row has an answer; 1 the run is finished, and the rows or files
without an answer are in OUTPUT/_quarantine.jsonl; 2 wrong use, or the run could not start or go on
(the same command goes on); 130 interrupted (the same command goes on)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Score an input; print the summary as JSON on stdout, and errors on stderr.

    Returns:
        0: every row has an answer. 1: the run finished, but some rows are quarantined. 2: wrong
        use, or the run could not start or continue. 130: interrupted.
    """
    parser = _make_parser()
    given = parser.parse_args(argv)
    try:
        options = _read_options(given)
        summary = score(options)
    except ScoreError as error:
        sys.stderr.write(f"score: {error}\n")
        return NOT_RUN
    except KeyboardInterrupt:
        sys.stderr.write("score: interrupted; run the same command to resume\n")
        return INTERRUPTED
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(summary)).decode() + "\n")
    if summary.is_complete:
        return ALL_SCORED
    sys.stderr.write(
        f"score: {summary.quarantined_rows:,} rows and {summary.unreadable_files:,} files have no "
        f"answer; {given.output.rstrip('/')}/_quarantine.jsonl lists the reasons\n"
    )
    return QUARANTINED


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.score",
        description="Score Parquet files, images or idx files with a proven bundle, on Ray Data.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("input", metavar="INPUT", help="a file, folder, pattern or fsspec URL")
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        help="a new folder, or the folder of an interrupted run, which is resumed",
    )
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle's folder")
    parser.add_argument(
        "--format", choices=FORMATS, help="format of the input (default: determined from its files)"
    )
    parser.add_argument(
        "--inputs",
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="the Parquet column of an input, or several columns of one value each: NAME=A,B,C; "
        "may be repeated for further inputs (default: the column with the input's name)",
    )
    parser.add_argument(
        "--key", metavar="COLUMN", help="a column that is copied to the output as `key`"
    )
    _add_resources(parser)
    parser.add_argument(
        "--restart",
        action="store_true",
        help="remove what an earlier run wrote to OUTPUT and start again",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
    return parser


def _add_resources(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how and where rows are computed."""
    parser.add_argument(
        "--batch-size", type=_count, default=64, metavar="N", help="rows per batch (default: 64)"
    )
    parser.add_argument(
        "--part-rows",
        type=_count,
        metavar="N",
        help="rows per part, the most that is recomputed if an actor is killed; parts of a "
        "Parquet file are whole row groups (default: 32 MiB of input values)",
    )
    parser.add_argument(
        "--actors",
        type=_count,
        metavar="N",
        help="number of processes (default: one per core, or per GPU)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="INFERENCE_DEVICE")
    parser.add_argument(
        "--variant", help="model file of the bundle; overrides INFERENCE_VARIANT (default: onnx)"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads per actor; overrides INFERENCE_THREADS"
    )
    parser.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="address of a Ray cluster (default: only this machine)",
    )


def _read_options(given: argparse.Namespace) -> Options:
    return Options(
        input=given.input,
        output=given.output,
        bundle=given.bundle,
        format=given.format,
        inputs=dict(_read_mapping(text) for text in given.inputs),
        key=given.key,
        batch_size=given.batch_size,
        part_rows=given.part_rows,
        actors=given.actors,
        device=given.device,
        variant=given.variant,
        threads=given.threads,
        ray_address=given.ray_address,
        restart=given.restart,
        show_progress=not given.quiet,
    )


def _read_mapping(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, columns = text.partition("=")
    if not equals or not name or not all(columns.split(",")):
        raise ScoreError(f"--inputs {text}: expected NAME=COLUMN or NAME=A,B,C")
    return name, tuple(columns.split(","))


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number of at least 1")
    return value
