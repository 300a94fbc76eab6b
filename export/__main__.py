"""Command line of the export stage: ``python -m export --help``.

Exit status of ``check``: 0 passed, 1 parity failed, 2 broken structure or hash, 3 the device or
its provider is not available; the other commands use the same numbers. Four numbers of sysexits.h
do not concern the bundle: 64 wrong command line, 66 no samples to check with, 69 a package is
missing, 70 a fault of this program.
"""

import json
import logging
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from export.bundle.manifest import NAME_PATTERN, BundleError, SubjectError
from export.bundle.metrics import SURE
from export.bundle.session import DeviceUnavailableError, choose_device
from export.bundle.signature import (
    SigningKeyError,
    SigningPackageError,
    open_signed,
    sign_bundle,
)
from export.bundle.store import Bundle
from export.bundle.tolerances import (
    DYNAMIC_INT8_REFUSED,
    ToleranceError,
    changed,
    tolerance_for,
)
from export.check import Origin, full_check, quick_check, rebuild
from export.cli import USAGE, parse
from export.parity.judge import (
    Judgement,
    bounds_values_inside,
    explain,
    first_wrong,
    inside_words,
    judge,
)
from export.parity.schema import INSIDE_SHARE, SCHEMA_VERSION, ParityFigures

if TYPE_CHECKING:
    from export.build import Wish
    from export.model.under_test import ModelUnderTest
    from export.parity.run import ParityRun

logger = logging.getLogger(__name__)

PASSED, PARITY_FAILED, BROKEN, NO_DEVICE = 0, 1, 2, 3
WORDS, STATUS = {True: "PASSED", False: "FAILED"}, {True: PASSED, False: PARITY_FAILED}
NO_INPUT, UNAVAILABLE, SOFTWARE = 66, 69, 70
ABOUT_SIGNING: dict[type[BundleError], int] = {
    SigningKeyError: USAGE,
    SigningPackageError: UNAVAILABLE,
}
INSTALL = "pip install -c constraints.txt -e '.[train,export]'"


class _UsageError(ValueError):
    """The command line requests something that cannot be done."""


class _NoSamplesError(ValueError):
    """The samples to check with are missing, or are not those of the bundle."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status (see the module's docstring)."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    arguments = parse(argv, __doc__)
    commands = {
        "build": _build,
        "check": _check,
        "bisect": _bisect,
        "judge": _judge,
        "benchmark": _benchmark,
        "sign": _sign,
    }
    try:
        return commands[arguments.command](arguments)
    except DeviceUnavailableError as error:
        return _refuse(NO_DEVICE, error)
    except BundleError as error:
        return _refuse(ABOUT_SIGNING.get(type(error), BROKEN), error)
    except (_UsageError, ToleranceError, SubjectError) as error:
        return _refuse(USAGE, error)
    except _NoSamplesError as error:
        return _refuse(NO_INPUT, error)
    except ModuleNotFoundError as error:
        return _refuse(UNAVAILABLE, f"the package {error.name} is missing: {INSTALL}")
    except Exception:  # Python's own status 1 would mean "parity failed"
        logger.exception("this is an internal error, not a fault of the bundle")
        return SOFTWARE


@contextmanager
def _refusals_of_training() -> Iterator[None]:
    """Raise training's errors as this module's own; imports are local, for the quick check."""
    from training.checkpoint import CheckpointError  # noqa: PLC0415
    from training.data import DataError  # noqa: PLC0415

    try:
        yield
    except DataError as error:
        raise _NoSamplesError(str(error)) from error
    except CheckpointError as error:
        raise BundleError(str(error)) from error


def _build(arguments: Namespace) -> int:
    from export.build import ParityError, build, look  # noqa: PLC0415 - torch may be absent
    from export.convert.onnx_export import ExportError  # noqa: PLC0415
    from export.progress import Progress  # noqa: PLC0415

    if (arguments.out is None) != arguments.quick:
        raise _UsageError(
            "expected either --out DIR, to write a bundle, or --quick, for verdicts without one"
        )
    wish = _wish(arguments)
    subject = _subject(arguments)
    try:
        with Progress(shown=True) as progress:
            if arguments.quick:
                figures, not_built = look(subject, wish, progress)
            else:
                bundle, figures = build(subject, arguments.out, wish, progress)
    except ParityError as error:
        _report(arguments.report, error.figures, error.judgement)
        return _refuse(PARITY_FAILED, error)
    except ExportError as error:
        return _refuse(PARITY_FAILED, error)
    judgement = judge(figures, figures.tolerances)
    if arguments.quick:
        return _say_first_look(arguments, figures, judgement, not_built)
    manifest = bundle.manifest
    print(f"bundle: {bundle.folder} ({manifest.name}, version {manifest.version})")
    _say(figures, judgement, manifest.not_built)
    for variant, repaired in manifest.repaired.items():
        print(f"  {variant}: passed with {repaired.summary()}")
    left_out = [v for v, failures in judgement.by_variant.items() if failures]
    if left_out:
        print(
            f"  {', '.join(left_out)}: left out of the bundle for the reasons above; the others "
            "are proven (--require makes this an error)"
        )
    _report(arguments.report, figures, judgement, bundle)
    return PASSED


def _wish(arguments: Namespace) -> "Wish":
    from export.build import Wish  # noqa: PLC0415 - torch may be absent
    from export.formats import VARIANTS  # noqa: PLC0415

    variants = [*(arguments.variants or VARIANTS), *arguments.require]
    if "onnx-int8-dynamic" in variants:
        raise _UsageError(f"onnx-int8-dynamic is refused: {DYNAMIC_INT8_REFUSED}")
    if unknown := set(variants) - set(VARIANTS):
        raise _UsageError(f"unknown variants {sorted(unknown)}; known: {', '.join(VARIANTS)}")
    for text in filter(None, (arguments.name, arguments.version)):
        if not re.fullmatch(NAME_PATTERN, text):
            raise _UsageError(
                f"{text!r} cannot be used in URLs and file names; expected at most 63 letters, "
                "digits, '.', '_' and '-', the first a letter or a digit"
            )
    tolerances = changed(arguments.tolerance, arguments.because)
    return Wish(arguments.name, arguments.version, variants, arguments.require, tolerances)


def _say_first_look(
    arguments: Namespace, figures: ParityFigures, judgement: Judgement, not_built: dict[str, str]
) -> int:
    passed = not judgement.by_variant["onnx"] and not judgement.general
    missing = not_built | {v: failed[0] for v, failed in judgement.by_variant.items() if failed}
    print(
        f"first look at {figures.proof.samples} samples: {'passed' if passed else 'FAILED'}; "
        "nothing is proven yet, and no bundle was written"
    )
    _say(figures, judgement, not_built)
    _complain(judgement.failures)
    _report(arguments.report, figures, judgement)
    return STATUS[passed and not missing.keys() & {*arguments.require}]


def _subject(arguments: Namespace) -> "ModelUnderTest":
    """The model under test that the command line names."""
    from export.mnist.checkpoint import from_checkpoint  # noqa: PLC0415
    from export.model.factory import from_factory, with_task  # noqa: PLC0415 - torch may be absent
    from training.data import load_dataset  # noqa: PLC0415

    if (arguments.checkpoint is None) == (arguments.model is None):
        raise _UsageError("give either a checkpoint folder or --model, --checkpoint and --inputs")
    task = (arguments.task, arguments.labels, arguments.preprocessing)
    if arguments.checkpoint is not None:
        if any(task):
            raise _UsageError("--task, --labels and --preprocessing need --model")
        with _refusals_of_training():
            return from_checkpoint(arguments.checkpoint, load_dataset(arguments.data_dir))
    if arguments.weights is None or arguments.inputs is None:
        raise _UsageError("--model needs --checkpoint FILE.safetensors and --inputs FILE.npz")
    subject = from_factory(
        arguments.model,
        arguments.weights,
        arguments.inputs,
        arguments=_factory_arguments(arguments.arguments),
        declared=arguments.input,
        output_names=arguments.output,
        logits=arguments.logits,
        calibration=arguments.calibration,
    )
    return with_task(subject, *task)


def _factory_arguments(text: str) -> dict[str, Any]:
    """The JSON object of --arguments."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise _UsageError(f"--arguments {text!r} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise _UsageError('--arguments: expected a JSON object, e.g. {"width": 8}')
    return found


def _check(arguments: Namespace) -> int:
    bundle = Bundle.open(arguments.bundle)
    device = choose_device(arguments.device)
    about = {"bundle": bundle.manifest.name, "version": bundle.manifest.version}
    if arguments.quick:
        golden = quick_check(bundle, device, arguments.variant)
        print(f"{arguments.bundle}: {WORDS[golden.passed]}")
        print(
            f"golden samples on {device}: {golden.samples}, scaled error "
            f"{golden.scaled_error:.1e}, {golden.wrong_labels} labels differ"
        )
        _complain(golden.failures)
        _write_json(arguments.json, golden, **about, passed=golden.passed, quick=True)
        return STATUS[golden.passed]
    from export.parity.candidates import Setting  # noqa: PLC0415 - the quick check needs no torch
    from export.progress import Progress  # noqa: PLC0415

    proof = _proof(bundle, arguments)
    setting = Setting(device, arguments.tf32, arguments.cuda_graphs, strict=True)
    with Progress(shown=True) as progress:
        figures, judgement = full_check(
            bundle, proof, setting, trusted=arguments.trust, progress=progress
        )
    print(f"{arguments.bundle}: {judgement.verdict}")
    _say(figures, judgement, bundle.manifest.not_built)
    _complain(judgement.failures)
    if any(failure.startswith("onnx") for failure in judgement.failures) and device == "cpu":
        tolerance = tolerance_for("onnx", "cpu", figures.tolerances)
        print(explain(figures.layers, tolerance, len(figures.unmatched)), file=sys.stderr)
    _write_json(arguments.json, figures, **about, passed=judgement.passed, quick=False)
    _report(arguments.report, figures, judgement, bundle)
    return STATUS[judgement.passed]


def _proof(bundle: Bundle, arguments: Namespace) -> "ParityRun":
    origin = Origin(
        data_dir=arguments.data_dir,
        samples=arguments.inputs,
        model=arguments.model,
        arguments=_factory_arguments(arguments.arguments),
        trusted=arguments.trust,
    )
    with _refusals_of_training():
        return rebuild(bundle, origin)


def _bisect(arguments: Namespace) -> int:
    bundle = Bundle.open(arguments.bundle)
    path = bundle.model_path(arguments.variant)
    if path.suffix != ".onnx":
        raise _UsageError(f"bisect needs an ONNX file; {arguments.variant} is not one")
    tolerance = bundle.manifest.tolerance("cpu", arguments.variant)
    if not bounds_values_inside(tolerance):
        raise _UsageError(
            f"bisect cannot examine {arguments.variant}: its tolerance bounds only the noise of "
            "the outputs, so no intermediate value would count as wrong; use onnx or onnx-fp16"
        )
    found = _proof(bundle, arguments).layers(path)
    print(explain(found.layers, tolerance, len(found.unmatched)))
    return PASSED if first_wrong(found.layers, tolerance) is None else PARITY_FAILED


def _judge(arguments: Namespace) -> int:
    try:
        content = json.loads(arguments.parity.read_bytes())
        figures = ParityFigures.model_validate(content, strict=False)
    except (OSError, ValueError, ValidationError) as error:
        raise BundleError(
            f"{arguments.parity} is not a parity.json of schema version {SCHEMA_VERSION}: {error}"
        ) from error
    table = changed(arguments.tolerance, arguments.because, figures.tolerances)
    judgement = judge(figures, table)
    print(f"{arguments.parity}: {judgement.verdict}")
    _say(figures, judgement, {})
    _complain(judgement.failures)
    _write_json(
        arguments.json,
        passed=judgement.passed,
        failures=judgement.failures,
        verdicts=[json.loads(verdict.model_dump_json()) for verdict in judgement.verdicts],
    )
    return STATUS[judgement.passed]


def _benchmark(arguments: Namespace) -> int:
    from export.perf.benchmark import measure, table  # noqa: PLC0415 - torch may be absent

    bundle = Bundle.open(arguments.bundle)
    safe = [variant for variant in bundle.variants if variant.startswith("onnx")]
    timings = measure(
        bundle,
        choose_device(arguments.device),
        list(bundle.variants) if arguments.trust else safe,
        batch_sizes=arguments.batch_sizes,
        threads=arguments.threads,
        rounds=arguments.rounds,
    )
    print(table(timings))
    if not arguments.trust and len(safe) < len(bundle.variants):
        left = ", ".join(variant for variant in bundle.variants if variant not in safe)
        print(
            f"not timed: {left}: such files can run code when they are opened; give --trust if you "
            "trust the author of the bundle"
        )
    _write_json(arguments.json, timings)
    return PASSED


def _sign(arguments: Namespace) -> int:
    if arguments.verify:
        bundle = open_signed(arguments.bundle, arguments.key)
        manifest = bundle.manifest
        print(f"{bundle.folder}: signed by {arguments.key} ({manifest.name} {manifest.version})")
    else:
        print(f"signature: {sign_bundle(arguments.bundle, arguments.key)}")
    return PASSED


def _say(figures: ParityFigures, judgement: Judgement, not_built: dict[str, str]) -> None:
    for line in judgement.summaries():
        print(f"  {line}")
    for title, reasons in (("NOT CHECKED", figures.not_checked), ("NOT BUILT", not_built)):
        for variant, why in reasons.items():
            print(f"  {variant:18} {title}: {why}")
    compared, unmatched = len(figures.layers), len(figures.unmatched)
    if figures.device == "cpu" and compared < INSIDE_SHARE * (compared + unmatched):
        print(f"  intermediate values: {inside_words(compared, unmatched)}")
    certificate = judgement.verdicts[0].certificate
    if certificate is not None:
        print(
            "  certificate: the margin of the closest decision is "
            f"{certificate:,.0f} x the largest error"
            + ("; no label of these samples can change" if certificate > SURE else "")
        )
    for case, why in figures.edge_cases_left_out.items():
        print(f"  edge case left out: {case}: {why}")
    killed, planted = judgement.killed
    if planted:
        print(f"  mutation test: {killed} of {planted} mutants killed")


def _report(
    folder: Path | None, figures: ParityFigures, judgement: Judgement, bundle: Bundle | None = None
) -> None:
    if folder is None:
        return
    from export.perf.benchmark import measure, per_sample  # noqa: PLC0415 - torch may be absent
    from export.report.report import write_report  # noqa: PLC0415 - plots only for a report

    timings = None
    if bundle is not None:  # what was measured just now was safe to open
        timings = per_sample(measure(bundle, figures.device, figures.variants))
    print(f"  report: {write_report(folder, figures, judgement, timings)}")


def _write_json(path: Path | None, found: BaseModel | None = None, **facts: Any) -> None:
    """Write facts and figures as JSON; their pydantic model converts infinite numbers."""
    if path is not None:
        content = facts | (json.loads(found.model_dump_json()) if found else {})
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def _complain(failures: Sequence[str]) -> None:
    for failure in failures:
        print(f"  {failure}", file=sys.stderr)


def _refuse(status: int, error: object) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
