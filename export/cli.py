"""The command line of the export stage: its commands and their arguments."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, get_args

from pydantic import ValidationError

from export.bundle.manifest import Task, TensorSpec
from export.model.domains import parse_input

USAGE = 64  # sysexits.h: wrong command line
BATCH_SIZES = (1, 64)


class Parser(argparse.ArgumentParser):
    """Exit with 64 on a wrong command line: argparse's 2 means a broken bundle here."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with 64."""
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def parse(argv: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    """Parse a command line; the namespace's ``command`` is the name of the command."""
    parser = Parser(
        prog="python -m export",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    build = commands.add_parser("build", help="export a model, prove the files, write a bundle")
    check = commands.add_parser("check", help="prove a bundle again on this machine")
    bisect = commands.add_parser("bisect", help="name the first wrong value inside an ONNX file")
    judge = commands.add_parser("judge", help="judge a parity.json again, running no model")
    benchmark = commands.add_parser("benchmark", help="time the variants against each other")
    sign = commands.add_parser("sign", help="sign a bundle, or verify its signature")
    _add_build(build)
    _add_sign(sign)
    judge.add_argument("parity", type=Path, help="a parity.json")
    for command in (check, bisect, benchmark):
        command.add_argument("bundle", type=Path, help="the bundle's folder")
        command.add_argument(
            "--trust",
            action="store_true",
            help="also open TorchScript and .pt2 files, which can run code that they contain",
        )
    check.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    check.add_argument(
        "--quick", action="store_true", help="check only hashes and golden samples; needs no torch"
    )
    check.add_argument("--variant", default="onnx", help="the variant that --quick runs")
    check.add_argument("--tf32", action="store_true", help="on CUDA: run the fp32 file with TF32")
    check.add_argument("--cuda-graphs", action="store_true", help="on CUDA: use CUDA graphs")
    bisect.add_argument("--variant", default="onnx", help="an ONNX variant of the bundle")
    benchmark.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    benchmark.add_argument("--batch-sizes", type=int, nargs="+", default=list(BATCH_SIZES))
    benchmark.add_argument("--threads", type=int, nargs="+", default=[1])
    benchmark.add_argument(
        "--rounds", type=int, default=50, help="number of interleaved rounds; medians are shown"
    )
    for command in (build, judge):
        command.add_argument(
            "--tolerance",
            action="append",
            default=[],
            metavar="VARIANT.DEVICE.FIELD=NUMBER",
            help="change a tolerance (repeatable), e.g. onnx.cpu.scaled_error=1e-5",
        )
        command.add_argument("--because", help="why a tolerance may be looser; it is recorded")
    for command in (build, check, bisect):
        _add_samples(command)
    for command in (check, bisect):
        _add_module(command.add_argument_group("a bundle of your own module"))
    for command in (build, check):
        command.add_argument(
            "--report", type=Path, help="a folder for parity.html, .md, .json and JUnit's .xml"
        )
    for command in (check, judge, benchmark):
        command.add_argument("--json", type=Path, help="write every figure to this file")
    return parser.parse_args(argv)


def _add_build(build: argparse.ArgumentParser) -> None:
    build.add_argument(
        "checkpoint",
        type=Path,
        nargs="?",
        help="a folder that training wrote; for your own module see --model",
    )
    build.add_argument("--out", type=Path, help="the folder to write the bundle to")
    build.add_argument(
        "--quick",
        action="store_true",
        help="a first look in seconds: few samples and batch sizes, verdicts only, no bundle",
    )
    build.add_argument("--name", help="the model's name in the service; default: the architecture")
    build.add_argument("--version", help="default: the start of the weights' SHA-256")
    build.add_argument(
        "--variants",
        type=lambda text: text.split(","),
        help="which variants to build, e.g. onnx,onnx-int8; default: all",
    )
    build.add_argument(
        "--require",
        type=lambda text: text.split(","),
        action="extend",
        default=[],
        metavar="VARIANT,...",
        help="write no bundle without these variants (repeatable); onnx is always required",
    )
    _add_own_module(build)


def _add_own_module(build: argparse.ArgumentParser) -> None:
    other = build.add_argument_group("your own module")
    _add_module(other)
    other.add_argument("--checkpoint", dest="weights", type=Path, help="its weights (.safetensors)")
    other.add_argument(
        "--input",
        type=tensor_spec,
        action="append",
        default=[],
        metavar="NAME=DATATYPE[-1,...][:DOMAIN]",
        help="declares an input (repeatable), e.g. images=UINT8[-1,28,28] or, with a variable "
        "length, ids=INT64[-1,tokens=4..128]:tokens=30522; DOMAIN is the allowed values: "
        "range=LOW..HIGH, tokens=WORDS, mask (ones, then zeros) or length=LOW..HIGH",
    )
    other.add_argument(
        "--output", action="append", default=[], help="an output's name (repeatable)"
    )
    other.add_argument(
        "--logits", action="append", default=[], help="an output that contains logits (repeatable)"
    )
    other.add_argument(
        "--task",
        choices=get_args(Task),
        help="what the service offers for this model; default: derived from its tensors",
    )
    other.add_argument("--labels", type=Path, help="a text file with one label per line")
    other.add_argument(
        "--preprocessing",
        type=Path,
        help="for image-classification: a JSON file that says how an image becomes an input",
    )
    other.add_argument(
        "--calibration", type=Path, help="an .npz of other samples, to calibrate int8"
    )


def _add_sign(sign: argparse.ArgumentParser) -> None:
    sign.add_argument("bundle", type=Path, help="the bundle's folder")
    sign.add_argument(
        "--key",
        type=Path,
        required=True,
        help="a PEM file: the private key that signs or, with --verify, the public key",
    )
    sign.add_argument("--verify", action="store_true", help="verify the signature; write nothing")


def _add_samples(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data-dir",
        type=Path,
        help="a folder with MNIST's four IDX files; default: $MNIST_DIR, else they are downloaded",
    )
    command.add_argument(
        "--inputs",
        type=Path,
        nargs="+",
        help="with --model: an .npz of samples, one array per input; one file for each size",
    )


def _add_module(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model", metavar="PACKAGE.MODULE:FACTORY", help="a function that returns the nn.Module"
    )
    group.add_argument("--arguments", default="{}", help="the factory's arguments, a JSON object")


def tensor_spec(text: str) -> TensorSpec:
    """Parse the value of ``--input``; see ``export.model.domains.parse_input`` for the syntax.

    Raises:
        argparse.ArgumentTypeError: The text does not follow that syntax.
    """
    try:
        return parse_input(text)
    except (ValueError, ValidationError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected NAME=DATATYPE[-1,...] or NAME=DATATYPE[-1,...]:DOMAIN, e.g. "
            f"images=UINT8[-1,28,28] ({error})"
        ) from error
