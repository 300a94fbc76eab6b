"""A subject becomes a bundle, or nothing.

In this order: files, golden samples, gate, manifest; a failure of the fp32 ONNX file at any of them
leaves no bundle, one of another variant leaves that variant out.
"""

import contextlib
import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from export.bundle.golden import Golden
from export.bundle.manifest import (
    FileEntry,
    GuardSummary,
    Manifest,
    RepairSummary,
    SampleSet,
    SubjectError,
)
from export.bundle.metrics import Array, margins
from export.bundle.store import Bundle, file_entry, staged, write_bundle
from export.bundle.tolerances import (
    TOLERANCES,
    Tolerance,
    tolerance_for,
    violations,
    with_rows,
)
from export.convert.onnx_export import model_bytes, set_metadata
from export.convert.precision import convert_bytes
from export.convert.pt2 import save_pt2
from export.convert.repair import REPAIRABLE, Questions, Repair, failure_of, summary_of
from export.convert.torchscript import TracingError, exported_torchscript
from export.mnist.feature_maps import (
    FEATURES_NAME,
    GOLDEN_NAME,
    NoFirstLayerError,
    cut,
    golden_features,
)
from export.mnist.ood_detector import LEAST_HELD_OUT, UNUSUAL_BELOW, fit
from export.model.under_test import Learned, ModelUnderTest
from export.parity.candidates import QUICK_RUNS, Setting, Workers
from export.parity.judge import INCONCLUSIVE, Judgement, explain, first_wrong, judge
from export.parity.measure import torch_threads
from export.parity.reference import Reference, eager_predict, make_edge_cases
from export.parity.run import ParityRun
from export.parity.schema import ParityFigures, RepairFigures
from export.parity.structure import OPSET
from export.progress import Progress
from export.worker import CONVERSION_S
from training.provenance import commit, versions

GOLDEN_PER_LABEL = 6
GOLDEN_UNLABELLED = 60
VERSION_LENGTH = 12
QUICK_SAMPLES = 200
VARIANTS = ("onnx", "onnx-fp16", "onnx-int8", "torchscript", "torchscript-frozen", "pt2")
NO_CALIBRATION = "no calibration samples were given (--calibration)"


class ParityError(RuntimeError):
    """A variant does not compute what the checkpoint computes; no bundle was written.

    Attributes:
        figures: All that was measured.
    """

    def __init__(
        self, figures: ParityFigures, judgement: Judgement, bisection: str, lacking: list[str]
    ) -> None:
        """Say every failure, and where in the graph the first wrong value is."""
        self.figures, self.judgement = figures, judgement
        inconclusive = judgement.verdict == INCONCLUSIVE and not lacking
        outcome = "inconclusive" if inconclusive else "failed"
        lines = [f"parity {outcome}, no bundle written:", *judgement.failures]
        lines += [*lacking, bisection]
        super().__init__("\n  ".join(lines))


@dataclass(frozen=True)
class Wish:
    """What a build is asked for.

    Attributes:
        name: What the service calls the model; the subject's name if None.
        version: Its version; the first 12 digits of the weights' SHA-256 if None, so that an
            answer can be traced to the weights that gave it.
        variants: Those of ``VARIANTS`` to build; onnx always is.
        required: Those without which no bundle shall be written; onnx always is.
        tolerances: The table, or a changed one (``tolerances.changed``).
    """

    name: str | None = None
    version: str | None = None
    variants: Collection[str] = VARIANTS
    required: Collection[str] = ()
    tolerances: tuple[Tolerance, ...] = TOLERANCES


def build(
    subject: ModelUnderTest,
    target: Path,
    wish: Wish | None = None,
    progress: Progress | None = None,
) -> tuple[Bundle, ParityFigures]:
    """Export a subject in every format, prove each, and write the bundle.

    The same subject, code and versions give the same bytes in every file. A variant that cannot be
    made, or that fails the gate, is left out of the bundle and named with its reason in
    ``not_built``; the fp32 ONNX file and those required are not.

    Args:
        subject: From ``export.mnist.checkpoint`` or ``export.model.factory``.
        target: Where the bundle shall be; a bundle there is replaced, anything else is refused.
        wish: What is asked for.
        progress: Is told each step.

    Returns:
        The bundle and what the gate measured of all variants, those left out among them.

    Raises:
        SubjectError: The module cannot be exported.
        ExportError: The exporter gave something else than what was asked for.
        ParityError: The fp32 ONNX file, a required variant or the gate itself failed.
        BundleError: ``target`` is in the way.
    """
    wish, progress = wish or Wish(), progress or Progress()
    with staged(target) as staging, Workers() as workers, torch_threads(1):
        made = _make(subject, staging, wish, workers, progress)
        figures = made.proof.measure(
            Bundle(staging, made.manifest).variants,
            Setting(),
            wish.tolerances,
            workers=workers,
            features=staging / FEATURES_NAME if made.shown else None,
            progress=progress,
        )
        judgement = judge(figures, figures.tolerances)
        if not judgement.by_variant["onnx"] and not judgement.general:
            made, figures = _repair(made, staging, figures, wish, workers, progress)
            judgement = judge(figures, figures.tolerances)
        left_out = _left_out(made, staging, figures, judgement)
        _refuse(made, figures, judgement, wish, left_out)
        kept = _without(figures, left_out)
        files = [entry for entry in made.manifest.files if entry.variant not in left_out]
        for entry in set(made.manifest.files) - set(files):
            (staging / entry.path).unlink()
        parity = staging / "parity.json"
        parity.write_text(kept.model_dump_json(indent=1) + "\n")
        proven = {
            "files": (*files, *made.shown, file_entry(parity, role="parity")),
            "parity": tuple(verdict for verdict in judgement.verdicts if verdict.passed),
            "features": judgement.features,
            "not_built": made.manifest.not_built | left_out,
            "repaired": {v: r for v, r in made.manifest.repaired.items() if v not in left_out},
            "tolerances": with_rows(wish.tolerances, kept.tolerances),
            "calibration": made.manifest.calibration if "onnx-int8" not in left_out else None,
        }
        return write_bundle(staging, target, made.manifest.model_copy(update=proven)), figures


def look(
    subject: ModelUnderTest, wish: Wish | None = None, progress: Progress | None = None
) -> tuple[ParityFigures, dict[str, str]]:
    """A first look: the same with fewer samples and batch sizes, and no bundle.

    Returns:
        What was measured, and what was not made, each with the reason.
    """
    wish, progress = wish or Wish(), progress or Progress()
    subject = dataclasses.replace(subject, samples=subject.samples.first(QUICK_SAMPLES))
    with (
        tempfile.TemporaryDirectory() as folder,
        Workers() as workers,
        torch_threads(1),
    ):
        made = _make(subject, Path(folder), wish, workers, progress)
        figures = made.proof.measure(
            Bundle(Path(folder), made.manifest).variants,
            Setting(runs=QUICK_RUNS),
            wish.tolerances,
            workers=workers,
            progress=progress,
        )
        return figures, made.manifest.not_built


@dataclass(frozen=True)
class _Made:
    """Everything of a bundle before anything of it is proven."""

    proof: ParityRun
    manifest: Manifest
    shown: list[FileEntry]


def _make(
    subject: ModelUnderTest, folder: Path, wish: Wish, workers: Workers, progress: Progress
) -> _Made:
    weights = folder / "weights.safetensors"
    shutil.copyfile(subject.weights, weights)
    entry = file_entry(weights, role="weights")
    if subject.weights_sha256 not in (None, entry.sha256):
        raise SubjectError(
            f"{subject.weights} was changed while it was exported: sha256 {entry.sha256}, the "
            f"module was filled from {subject.weights_sha256}; build again"
        )
    version = wish.version or entry.sha256[:VERSION_LENGTH]
    subject = dataclasses.replace(subject, name=wish.name or subject.name, weights=weights)
    progress.expect(6)
    progress.step("export")
    proof = ParityRun.of(subject)
    entries, not_built = write_models(proof, folder, version, wish.variants, workers, progress)
    golden, path = choose_golden(proof.reference), folder / "golden.npz"
    golden.save(path)
    guard_entries, guard = write_guard(subject, folder)
    entries += [entry, file_entry(path, role="golden"), *guard_entries]
    shown = write_features(proof, folder, version, golden, not_built)
    return _Made(proof, _manifest(subject, entries, version, wish, guard, not_built), shown)


def _repair(
    made: _Made,
    folder: Path,
    figures: ParityFigures,
    wish: Wish,
    workers: Workers,
    progress: Progress,
) -> tuple[_Made, ParityFigures]:
    """Replace files of reduced precision that are too inexact by ones that are not, if possible.

    Returns:
        What is in the folder now, and the figures of that: the gate asks the new files once.
    """
    proof, manifest = made.proof, made.manifest
    repairs, repaired = dict[str, RepairFigures](), dict[str, RepairSummary]()
    files = {entry.variant: entry for entry in manifest.files}
    models = Bundle(folder, manifest).variants
    for variant in _repairable(proof.subject, figures, wish):
        content, repairs[variant] = _search(proof, models["onnx"], variant, wish, workers, progress)
        summary = summary_of(repairs[variant])
        if content is None or summary is None:
            continue
        model, repaired[variant] = onnx.ModelProto.FromString(content), summary
        set_metadata(model, proof.subject, manifest.version, variant)
        models[variant].write_bytes(model_bytes(model))
        files[variant] = _model_entry(variant, models[variant])
    if repaired:
        asked = {variant: models[variant] for variant in ("onnx", *repaired)}
        fresh = proof.measure(
            asked, Setting(), wish.tolerances, workers=workers, again=True, progress=progress
        )
        figures = _replaced(figures, fresh, repaired)
        entries = tuple(
            files[entry.variant] if entry.variant else entry for entry in manifest.files
        )
        manifest = manifest.model_copy(update={"files": entries, "repaired": repaired})
    return (
        dataclasses.replace(made, manifest=manifest),
        figures.model_copy(update={"repairs": repairs}),
    )


def _repairable(subject: ModelUnderTest, figures: ParityFigures, wish: Wish) -> list[str]:
    """The variants whose answers are beyond their tolerance; others fail for other reasons."""
    if subject.calibration is None:
        return []
    return [
        variant
        for variant in REPAIRABLE
        if any(
            any(violations(found, tolerance_for(variant, "cpu", wish.tolerances)))
            for row in figures.rows
            if row.variant == variant
            for found in row.outputs.values()
        )
    ]


def _search(
    proof: ParityRun,
    source: Path,
    variant: str,
    wish: Wish,
    workers: Workers,
    progress: Progress,
) -> tuple[bytes | None, RepairFigures]:
    """Look for a file that passes, on calibration samples alone."""
    subject, samples = proof.subject, proof.subject.calibration
    assert samples is not None  # noqa: S101 - see _repairable
    cases = make_edge_cases(dataclasses.replace(subject, samples=samples))
    edge_cases = {
        name: np.stack([case[name] for case in cases.values()]) for name in subject.names if cases
    }
    with tempfile.TemporaryDirectory() as folder:
        return Repair(
            source=source.read_bytes(),
            variant=variant,
            allowed=tolerance_for(variant, "cpu", wish.tolerances),
            outputs=subject.outputs,
            questions=Questions.of(
                variant, samples.arrays, samples.targets, edge_cases, len(subject.samples)
            ),
            worker=workers.onnx,
            folder=Path(folder),
            progress=progress,
        ).search()


def _left_out(
    made: _Made,
    folder: Path,
    figures: ParityFigures,
    judgement: Judgement,
) -> dict[str, str]:
    """The variants other than onnx that failed, each with what failed and where it begins."""
    reasons = {}
    for variant, failures in judgement.by_variant.items():
        if not failures or variant == "onnx":
            continue
        reason = f"failed its proof: {failures[0]}"
        if len(failures) > 1:
            reason += f" (and {len(failures) - 1} further failures)"
        if variant.startswith("onnx") and variant not in figures.broken:
            allowed = next(t for t in figures.tolerances if t.variant == variant)
            layers = made.proof.layers(Bundle(folder, made.manifest).model_path(variant)).layers
            if first_wrong(layers, allowed) is not None:
                reason += f"; {explain(layers, allowed)}"
        if variant in made.manifest.repaired:
            reason += f"; that is the repaired file, {made.manifest.repaired[variant].summary()}"
        elif variant in figures.repairs:
            reason += f"; {failure_of(figures.repairs[variant])}"
        elif variant in REPAIRABLE and made.proof.subject.calibration is None:
            reason += f"; not repaired: {NO_CALIBRATION}"
        reasons[variant] = reason
    return reasons


def _refuse(
    made: _Made,
    figures: ParityFigures,
    judgement: Judgement,
    wish: Wish,
    left_out: dict[str, str],
) -> None:
    """Raise ParityError if onnx, a required variant or the gate itself failed."""
    missing = made.manifest.not_built | left_out
    lacking = [f"{v} is required: {missing[v]}" for v in wish.required if v in missing]
    if judgement.by_variant["onnx"] or judgement.general or lacking:
        found = explain(
            figures.layers,
            tolerance_for("onnx", "cpu", figures.tolerances),
            len(figures.unmatched),
        )
        raise ParityError(figures, judgement, found, lacking)


def _without(figures: ParityFigures, left_out: Collection[str]) -> ParityFigures:
    """The figures of the other variants."""
    return figures.model_copy(
        update={
            "rows": tuple(row for row in figures.rows if row.variant not in left_out),
            "tolerances": tuple(t for t in figures.tolerances if t.variant not in left_out),
            "files": {v: found for v, found in figures.files.items() if v not in left_out},
            "neighbours": {v: n for v, n in figures.neighbours.items() if v not in left_out},
            "broken": {v: why for v, why in figures.broken.items() if v not in left_out},
            "reduced_faults": {
                v: f for v, f in figures.reduced_faults.items() if v not in left_out
            },
            "repairs": {v: found.without_times() for v, found in figures.repairs.items()},
        }
    )


def _replaced(
    figures: ParityFigures, fresh: ParityFigures, variants: Collection[str]
) -> ParityFigures:
    """The figures with those of some variants replaced, whose files are others now."""
    others = _without(figures, variants)
    mine = _without(fresh, [v for v in fresh.files if v not in variants])
    return figures.model_copy(
        update={
            "rows": (*others.rows, *mine.rows),
            "files": others.files | mine.files,
            "neighbours": others.neighbours | mine.neighbours,
            "broken": others.broken | mine.broken,
            "reduced_faults": others.reduced_faults | mine.reduced_faults,
        }
    )


def write_models(
    proof: ParityRun,
    folder: Path,
    version: str,
    variants: Collection[str],
    workers: Workers,
    progress: Progress,
) -> tuple[list[FileEntry], dict[str, str]]:
    """Write the model's files.

    Args:
        proof: ModelUnderTest and program.
        folder: Where to.
        version: Stands in the ONNX files' metadata.
        variants: Which to write.
        workers: Where conversions run.
        progress: Is told each step.

    Returns:
        The files, and the variants that could not be made, each with the reason.
    """
    subject, failed = proof.subject, dict[str, str]()
    wanted = ["onnx", *(v for v in ("onnx-fp16", "onnx-int8") if v in variants)]
    if "onnx-int8" in wanted and subject.calibration is None:
        wanted.remove("onnx-int8")
        failed["onnx-int8"] = NO_CALIBRATION
    paths: dict[str, Path] = {}
    script, frozen = folder / "model.ts", folder / "model.frozen.ts"
    scripted = {"torchscript", "torchscript-frozen"} & set(variants)
    tracing = exported_torchscript(subject, script, frozen, workers.torch)
    try:
        with tracing if scripted else contextlib.nullcontext(), ThreadPoolExecutor(1) as lane:
            converted = {v: lane.submit(_converted, proof, v, workers) for v in wanted}
            if "pt2" in variants:
                with _guarded("pt2", failed):
                    save_pt2(proof.program, folder / "model.pt2")
            progress.step("reference")
            proof.compute_reference()  # while the workers convert
            for variant, model in converted.items():
                progress.step(variant)
                with _guarded(variant, failed):
                    set_metadata(model.result(), subject, version, variant)
                    name = variant.replace("onnx", "model").replace("-", ".")
                    paths[variant] = folder / f"{name}.onnx"
                    paths[variant].write_bytes(model_bytes(model.result()))
            progress.step("torchscript")
    except TracingError as error:
        failed |= dict.fromkeys(sorted(scripted), f"cannot be made: {error}")
    written = {"torchscript": script, "torchscript-frozen": frozen, "pt2": folder / "model.pt2"}
    for variant, path in written.items():
        if variant in variants and variant not in failed:
            paths[variant] = path
        else:  # tracing gives both
            path.unlink(missing_ok=True)
    return [_model_entry(variant, path) for variant, path in paths.items()], failed


def _converted(proof: ParityRun, variant: str, workers: Workers) -> onnx.ModelProto:
    """The ONNX model in a variant's precision; converters are native code too."""
    honest = proof.translation.model
    if variant == "onnx":
        copied = onnx.ModelProto()
        copied.CopyFrom(honest)
        return copied
    calibration = proof.subject.calibration
    arrays = calibration.arrays if calibration and variant == "onnx-int8" else None
    content: bytes = workers.onnx.call(
        convert_bytes, model_bytes(honest), arrays, timeout_s=CONVERSION_S
    )
    model: onnx.ModelProto = onnx.ModelProto.FromString(content)
    return model


@contextlib.contextmanager
def _guarded(variant: str, failed: dict[str, str]) -> Iterator[None]:
    """Let a variant that cannot be made be left out, with the reason; onnx is not left out."""
    try:
        yield
    except Exception as error:
        if variant == "onnx":
            raise
        failed[variant] = f"cannot be made: {error}"


def _model_entry(variant: str, path: Path) -> FileEntry:
    if not variant.startswith("onnx"):
        return file_entry(path, role="model", format=variant, precision="fp32")
    precision = variant.partition("-")[2] or "fp32"
    return file_entry(path, role="model", format="onnx", precision=precision, opset=OPSET)


def write_features(
    proof: ParityRun, folder: Path, version: str, golden: Golden, not_built: dict[str, str]
) -> list[FileEntry]:
    """Write the file of the first layer and its golden samples, if the network has a first layer.

    Args:
        proof: ModelUnderTest and program.
        folder: Where to.
        version: Stands in the file's metadata.
        golden: Of these a few are asked again.
        not_built: Is told why, if the network has none.
    """
    try:
        first = proof.first_layer(proof.translation.model)
    except NoFirstLayerError as error:
        not_built["features"] = str(error)
        return []
    model = cut(proof.translation.model, first.output)
    shown = dataclasses.replace(proof.subject, outputs=(first.output,))
    set_metadata(model, shown, version, "features")
    path = folder / FEATURES_NAME
    path.write_bytes(model_bytes(model))
    golden_features(first, golden).save(folder / GOLDEN_NAME)
    return [
        file_entry(path, role="features", opset=OPSET),
        file_entry(folder / GOLDEN_NAME, role="features-golden"),
    ]


def choose_golden(reference: Reference) -> Golden:
    """A few of the subject's samples that the reference reads rightly, in order.

    With known labels the first few of each; else the first ones. Only right ones: a wrong reading
    sits near a decision's edge, where a device's rounding could flip the label and cry wolf. For
    the same reason those of the smallest margins are left out. If none is read rightly, the margin
    alone decides.
    """
    subject, truth, targets = reference.subject, reference.truth, reference.targets
    chosen = np.arange(min(GOLDEN_UNLABELLED, len(reference)))
    logits = [spec.name for spec in subject.outputs if spec.kind == "logits"]
    if logits:
        labels = truth[logits[0]].argmax(axis=1)
        margin = np.min([margins(truth[name]) for name in logits], axis=0)
        clear = margin >= np.median(margin) / 10
        right = clear & ((labels == targets) | (targets < 0))
        usable = right if right.any() else clear
        chosen = np.concatenate(
            [np.flatnonzero(usable & (labels == x))[:GOLDEN_PER_LABEL] for x in np.unique(labels)]
        )
        chosen.sort()
    asked = {name: array[chosen] for name, array in subject.samples.arrays.items()}
    return Golden(
        asked,
        eager_predict(subject)(asked),
        {name: array[chosen] for name, array in truth.items()},
        targets[chosen].astype(np.int64),
    )


def write_guard(
    subject: ModelUnderTest, folder: Path
) -> tuple[list[FileEntry], GuardSummary | None]:
    """Write what tells usual images from others, where enough is known to tell them.

    Args:
        subject: What is exported.
        folder: Where to.

    Returns:
        The file's entry, and what the manifest says of it; neither where ``_no_guard`` says why.
    """
    learned = subject.learned
    if learned is None or len(learned.held_out) < LEAST_HELD_OUT:
        return [], None
    path = folder / "guard.npz"
    fit(learned.images, learned.held_out).save(path)
    summary = GuardSummary(
        learned=_sample_set(f"training images of {learned.name}", learned.images),
        held_out=_sample_set(f"validation images of {learned.name}", learned.held_out),
        unusual_below=UNUSUAL_BELOW,
    )
    return [file_entry(path, role="guard")], summary


def _no_guard(learned: Learned | None) -> str:
    if learned is None:
        return "it is not known which images it learned from, or it reads something else"
    return f"{len(learned.held_out)} images were held out of training, too few to compare with"


def _sample_set(name: str, images: Array) -> SampleSet:
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    return SampleSet(name=name, samples=len(images), sha256=digest)


def _manifest(
    subject: ModelUnderTest,
    entries: list[FileEntry],
    version: str,
    wish: Wish,
    guard: GuardSummary | None,
    not_built: dict[str, str],
) -> Manifest:
    """What the bundle says of itself before anything is proven."""
    built = {entry.variant for entry in entries}
    for variant in VARIANTS:
        if variant not in built:
            not_built.setdefault(variant, "was not asked for (--variants)")
    if guard is None:
        not_built["guard"] = _no_guard(subject.learned)
    calibration = subject.calibration.summary() if subject.calibration else None
    return Manifest(
        name=subject.name,
        version=version,
        architecture=subject.architecture,
        task=subject.task,
        inputs=subject.inputs,
        outputs=subject.outputs,
        labels=subject.labels,
        preprocessing=subject.preprocessing,
        files=tuple(entries),
        parity=(),
        proof=subject.samples.summary(),
        calibration=calibration if "onnx-int8" in built else None,
        guard=guard,
        not_built=not_built,
        tolerances=wish.tolerances,
        training=subject.training,
        factory=subject.factory,
        commit=commit(),
        versions=versions(["torch", "onnx", "onnxscript", "numpy"])
        | {"onnxruntime": onnxruntime.__version__},  # its distribution may be -gpu or not
    )
