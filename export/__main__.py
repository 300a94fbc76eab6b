"""Command line of the export stage: ``python -m export --help``.

Exit status of ``check``: 0 passed, 1 parity failed, 2 broken structure or hash, 3 the device or
its provider is not there; ``build`` has 0, 1 and 2 in the same sense. Nothing is said about the
bundle by 64 wrong command line, 66 no images to check with, 69 a package is missing, 70 a fault of
this program (the numbers of sysexits.h).
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from export.bundle import Bundle, BundleError
from export.check import full_check, quick_check
from export.session import DeviceUnavailableError, choose_device

logger = logging.getLogger(__name__)

PASSED, PARITY_FAILED, BROKEN, NO_DEVICE = 0, 1, 2, 3
USAGE, NO_INPUT, UNAVAILABLE, SOFTWARE = 64, 66, 69, 70
INSTALL = "pip install -c constraints.txt -e '.[train,export]'"


class _NoImagesError(ValueError):
    """The images to check with are not there, or are not those of the checkpoint."""


class _Parser(argparse.ArgumentParser):
    """argparse exits with 2 on a wrong command line, which here means a broken bundle."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status (see the module's docstring)."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except DeviceUnavailableError as error:
        return _refuse(NO_DEVICE, error)
    except BundleError as error:
        return _refuse(BROKEN, error)
    except ModuleNotFoundError as error:
        return _refuse(UNAVAILABLE, f"{error.name} is needed here: {INSTALL}")
    except _NoImagesError as error:
        return _refuse(NO_INPUT, error)
    except Exception:  # status 1, Python's own, would read as "parity failed"
        logger.exception("this is a fault of the program, not of the bundle")
        return SOFTWARE


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="export a checkpoint, prove it, write a bundle")
    build.set_defaults(command=_build)
    build.add_argument("checkpoint", type=Path, help="a folder that training wrote")
    build.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    build.add_argument("--name", help="the model's name in the service; default: architecture")
    build.add_argument("--version", help="default: the start of the weights' SHA-256")
    check = commands.add_parser("check", help="prove a bundle again, here")
    check.set_defaults(command=_check)
    check.add_argument("bundle", type=Path)
    check.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    check.add_argument(
        "--quick", action="store_true", help="hashes and golden samples: no torch, no data set"
    )
    check.add_argument("--json", type=Path, help="write every figure to this file")
    for command in (build, check):
        command.add_argument(
            "--data-dir", type=Path, help="the four IDX files; default: $MNIST_DIR, else a download"
        )
    return parser


@contextmanager
def _training_refusals() -> Iterator[None]:
    """Errors of training as this command's own; a quick check must get by without its import."""
    from training.checkpoint import CheckpointError  # noqa: PLC0415
    from training.data import DataError  # noqa: PLC0415

    try:
        yield
    except DataError as error:
        raise _NoImagesError(str(error)) from error
    except CheckpointError as error:
        raise BundleError(str(error)) from error


def _build(arguments: argparse.Namespace) -> int:
    from export.build import ParityError, build  # noqa: PLC0415 - torch is not always there
    from export.to_onnx import ExportError  # noqa: PLC0415
    from training.data import load_dataset  # noqa: PLC0415

    try:
        with _training_refusals():
            bundle = build(
                arguments.checkpoint,
                arguments.out,
                load_dataset(arguments.data_dir),
                name=arguments.name,
                version=arguments.version,
            )
    except (ParityError, ExportError) as error:
        return _refuse(PARITY_FAILED, error)
    print(f"bundle: {bundle.folder} ({bundle.manifest.name}, version {bundle.manifest.version})")
    for verdict in bundle.manifest.parity:
        print(f"  {verdict.summary()}")
    return PASSED


def _check(arguments: argparse.Namespace) -> int:
    bundle = Bundle.open(arguments.bundle)
    device = choose_device(arguments.device)
    if arguments.quick:
        golden = quick_check(bundle, device)
        lines = [
            f"golden samples on {device}: {golden.samples} images, scaled error "
            f"{golden.scaled_error:.1e} (<= {golden.scaled_error_bound:.0e}), "
            f"{golden.wrong_labels} labels differ"
        ]
        passed, failures = golden.passed, golden.failures
        figures = json.loads(golden.model_dump_json())  # null for infinite: JSON has no such number
    else:
        from training.data import load_dataset  # noqa: PLC0415

        with _training_refusals():
            report = full_check(bundle, device, load_dataset(arguments.data_dir))
        lines = [verdict.summary() for verdict in report.verdicts()]
        lines += [f"{format_}: NOT CHECKED: {why}" for format_, why in report.not_checked.items()]
        passed, failures = report.passed, tuple(report.failures)
        figures = json.loads(report.model_dump_json())
    if arguments.json:
        outcome = {"bundle": bundle.manifest.name, "version": bundle.manifest.version}
        outcome |= {"passed": passed, "quick": arguments.quick} | figures
        arguments.json.write_text(json.dumps(outcome, indent=2, allow_nan=False) + "\n")
    print("\n".join([f"{arguments.bundle}: {'PASSED' if passed else 'FAILED'}", *lines]))
    for failure in failures:
        print(f"  {failure}", file=sys.stderr)
    return PASSED if passed else PARITY_FAILED


def _refuse(status: int, error: object) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
