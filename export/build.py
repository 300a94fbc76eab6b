"""Build a bundle from a model under test.

The steps are: files, golden samples, gate, manifest. If the fp32 ONNX file fails at any of them, no
bundle is written; if another variant fails, that variant is left out.
"""

import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from export.bundle.manifest import (
    FileEntry,
    GuardSummary,
    Manifest,
    RepairSummary,
    SampleSet,
    SubjectError,
)
from export.bundle.metrics import Array
from export.bundle.store import Bundle, file_entry, staged, write_bundle
from export.bundle.tolerances import (
    TOLERANCES,
    Tolerance,
    tolerance_for,
    with_rows,
)
from export.convert.onnx_export import model_bytes, set_metadata
from export.convert.repair import (
    REPAIRABLE,
    Questions,
    Repair,
    failure_of,
    refusal_of,
    summary_of,
)
from export.formats import NO_CALIBRATION, VARIANTS, model_entry, write_models
from export.mnist.feature_maps import FEATURES_NAME, NoFirstLayerError, write_features
from export.mnist.ood_detector import LEAST_HELD_OUT, UNUSUAL_BELOW, fit
from export.model.under_test import Learned, ModelUnderTest
from export.parity.candidates import QUICK_RUNS, Setting, Workers
from export.parity.judge import (
    INCONCLUSIVE,
    Judgement,
    explain,
    first_wrong,
    is_inexact,
    judge,
)
from export.parity.measure import torch_threads
from export.parity.reference import choose_golden, make_edge_cases
from export.parity.run import ParityRun
from export.parity.schema import ParityFigures, RepairFigures
from export.progress import Progress
from training.provenance import commit, versions

VERSION_LENGTH = 12
QUICK_SAMPLES = 200


class ParityError(RuntimeError):
    """A variant does not compute what the checkpoint computes; no bundle was written.

    Attributes:
        figures: Everything that the gate measured.
        judgement: The verdicts on those figures.
    """

    def __init__(
        self, figures: ParityFigures, judgement: Judgement, bisection: str, lacking: list[str]
    ) -> None:
        """List every failure, and where in the graph the first wrong value is."""
        self.figures, self.judgement = figures, judgement
        inconclusive = judgement.verdict == INCONCLUSIVE and not lacking
        outcome = "inconclusive" if inconclusive else "failed"
        lines = [f"parity {outcome}, no bundle written:", *judgement.failures, *lacking, bisection]
        super().__init__("\n  ".join(lines))


@dataclass(frozen=True)
class Wish:
    """The options of a build.

    Attributes:
        name: The model's name in the service; the subject's name if None.
        version: The model's version; the first 12 digits of the weights' SHA-256 if None, so that
            a prediction can be traced to the weights that made it.
        variants: Which of ``VARIANTS`` to build; onnx is always built.
        required: If one of these variants fails, no bundle is written; onnx is always required.
        tolerances: The tolerance table, or a changed one (``tolerances.changed``).
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
    """Export a subject in every format, prove each file, and write the bundle.

    The same subject, code and versions give the same bytes in every file. A variant that cannot be
    made, or that fails the gate, is left out of the bundle and listed with the reason in
    ``not_built``. If it is the fp32 ONNX file or a required variant, no bundle is written.

    Args:
        subject: From ``export.mnist.checkpoint`` or ``export.model.factory``.
        target: The bundle's folder; a bundle there is replaced, anything else is refused.
        wish: The options of the build.
        progress: Shows each step.

    Returns:
        The bundle, and what the gate measured for all variants, including those left out.

    Raises:
        SubjectError: The module cannot be exported.
        ExportError: The exporter's model has another structure than requested.
        ParityError: The fp32 ONNX file, a required variant or the gate itself failed.
        BundleError: ``target`` exists and is not a bundle.
    """
    wish, progress = wish or Wish(), progress or Progress()
    with staged(target) as folder, Workers() as workers, torch_threads(1):
        draft, figures = _measured(subject, folder, Setting(), wish, workers, progress)
        judgement = judge(figures, figures.tolerances)
        if not judgement.by_variant["onnx"] and not judgement.general:
            draft, figures = _repair(draft, figures, wish, workers, progress)
            judgement = judge(figures, figures.tolerances)
        left_out = _left_out(draft, figures, judgement)
        missing = draft.manifest.not_built | left_out
        lacking = [f"{v} is required: {missing[v]}" for v in wish.required if v in missing]
        if judgement.by_variant["onnx"] or judgement.general or lacking:
            allowed = tolerance_for("onnx", "cpu", figures.tolerances)
            bisection = explain(figures.layers, allowed, len(figures.unmatched))
            raise ParityError(figures, judgement, bisection, lacking)
        files = [entry for entry in draft.manifest.files if entry.variant not in left_out]
        for entry in set(draft.manifest.files) - set(files):
            (folder / entry.path).unlink()
        kept, parity = figures.without(left_out), folder / "parity.json"
        parity.write_text(kept.model_dump_json(indent=1) + "\n")
        proven = {
            "files": (*files, *draft.features, file_entry(parity, role="parity")),
            "parity": tuple(verdict for verdict in judgement.verdicts if verdict.passed),
            "features": judgement.features,
            "not_built": missing,
            "repaired": {v: r for v, r in draft.manifest.repaired.items() if v not in left_out},
            "tolerances": with_rows(wish.tolerances, kept.tolerances),
            "calibration": draft.manifest.calibration if "onnx-int8" not in left_out else None,
        }
        return write_bundle(folder, target, draft.manifest.model_copy(update=proven)), figures


def look(
    subject: ModelUnderTest, wish: Wish | None = None, progress: Progress | None = None
) -> tuple[ParityFigures, dict[str, str]]:
    """Do what ``build`` does with fewer samples and batch sizes, without writing a bundle.

    Returns:
        What was measured, and the variants that were not made, each with the reason.
    """
    subject = dataclasses.replace(subject, samples=subject.samples.first(QUICK_SAMPLES))
    wish, setting = wish or Wish(), Setting(runs=QUICK_RUNS)
    progress = progress or Progress()
    with tempfile.TemporaryDirectory() as folder, Workers() as workers, torch_threads(1):
        draft, figures = _measured(subject, Path(folder), setting, wish, workers, progress)
    return figures, draft.manifest.not_built


@dataclass(frozen=True)
class _Draft:
    """A bundle that is not proven yet; ``features`` are the first layer's files."""

    proof: ParityRun
    bundle: Bundle
    features: tuple[FileEntry, ...]

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest


def _measured(
    subject: ModelUnderTest,
    folder: Path,
    setting: Setting,
    wish: Wish,
    workers: Workers,
    progress: Progress,
) -> tuple[_Draft, ParityFigures]:
    """The draft with all files of the bundle, and what the gate measures for them."""
    draft = _draft(subject, folder, wish, workers, progress)
    return draft, draft.proof.measure(
        draft.bundle.variants,
        setting,
        wish.tolerances,
        workers=workers,
        features=folder / FEATURES_NAME if draft.features else None,
        progress=progress,
    )


def _draft(
    subject: ModelUnderTest, folder: Path, wish: Wish, workers: Workers, progress: Progress
) -> _Draft:
    weights = folder / "weights.safetensors"
    shutil.copyfile(subject.weights, weights)
    entry = file_entry(weights, role="weights")
    if subject.weights_sha256 not in (None, entry.sha256):
        raise SubjectError(
            f"{subject.weights} was changed while it was exported: its SHA-256 is {entry.sha256}, "
            f"the module was loaded from {subject.weights_sha256}; build again"
        )
    version = wish.version or entry.sha256[:VERSION_LENGTH]
    subject = dataclasses.replace(subject, name=wish.name or subject.name, weights=weights)
    progress.expect(6)
    progress.step("export")
    with ThreadPoolExecutor(1) as lane:  # fits the guard while this thread exports
        fitted = lane.submit(_write_guard, subject.learned, folder / "guard.npz")
        proof = ParityRun.of(subject)
        entries, not_built = write_models(proof, folder, version, wish.variants, workers, progress)
        guard, why = fitted.result()
    golden, path = choose_golden(proof.reference), folder / "golden.npz"
    golden.save(path)
    entries += [entry, file_entry(path, role="golden")]
    if guard is None:
        not_built["guard"] = why
    else:
        entries.append(file_entry(folder / "guard.npz", role="guard"))
    features: list[FileEntry] = []
    try:
        features = write_features(proof.translation, proof.subject, golden, folder, version)
    except NoFirstLayerError as error:
        not_built["features"] = str(error)
    calibration = subject.calibration if "onnx-int8" not in not_built else None
    manifest = Manifest(
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
        calibration=calibration.summary() if calibration else None,
        guard=guard,
        not_built=not_built,
        tolerances=wish.tolerances,
        training=subject.training,
        factory=subject.factory,
        commit=commit(),
        versions=versions(["torch", "onnx", "onnxscript", "numpy"])
        | {"onnxruntime": onnxruntime.__version__},  # its distribution may be -gpu or not
    )
    return _Draft(proof, Bundle(folder, manifest), tuple(features))


def _write_guard(learned: Learned | None, path: Path) -> tuple[GuardSummary | None, str]:
    """Write the guard's file, which separates usual images from out-of-distribution ones.

    Returns:
        The guard's summary and ""; or None, and why no guard can be made.
    """
    if learned is None:
        return None, "its training images are not known, or its input is not one image"
    if len(learned.held_out) < LEAST_HELD_OUT:
        held_out = f"{len(learned.held_out)} images were held out of training"
        return None, f"{held_out}, expected at least {LEAST_HELD_OUT}"
    fit(learned.images, learned.held_out).save(path)
    summary = GuardSummary(
        learned=_sample_set(f"training images of {learned.name}", learned.images),
        held_out=_sample_set(f"validation images of {learned.name}", learned.held_out),
        unusual_below=UNUSUAL_BELOW,
    )
    return summary, ""


def _sample_set(name: str, images: Array) -> SampleSet:
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    return SampleSet(name=name, samples=len(images), sha256=digest)


def _repair(
    draft: _Draft, figures: ParityFigures, wish: Wish, workers: Workers, progress: Progress
) -> tuple[_Draft, ParityFigures]:
    """Replace reduced-precision files that exceed their tolerance by ones that do not, if possible.

    Returns:
        The draft as it is in the folder now, and its figures: the gate runs the new files once.
    """
    proof, bundle, models = draft.proof, draft.bundle, draft.bundle.variants
    repairs, repaired = dict[str, RepairFigures](), dict[str, RepairSummary]()
    for variant in _repairable(proof.subject, figures, wish):
        content, repairs[variant] = _search(proof, models["onnx"], variant, wish, workers, progress)
        summary = summary_of(repairs[variant])
        if content is None or summary is None:
            continue
        model, repaired[variant] = onnx.ModelProto.FromString(content), summary
        set_metadata(model, proof.subject, bundle.manifest.version, variant)
        models[variant].write_bytes(model_bytes(model))
    if repaired:
        asked = {variant: models[variant] for variant in ("onnx", *repaired)}
        fresh = proof.measure(
            asked, Setting(), wish.tolerances, workers=workers, again=True, progress=progress
        )
        figures = figures.replaced(fresh, repaired)
        files = {v: model_entry(v, models[v]) for v in repaired}
        entries = tuple(files.get(e.variant or "", e) for e in bundle.manifest.files)
        changed = {"files": entries, "repaired": repaired}
        bundle = Bundle(bundle.folder, bundle.manifest.model_copy(update=changed))
    figures = figures.model_copy(update={"repairs": repairs})
    return dataclasses.replace(draft, bundle=bundle), figures


def _repairable(subject: ModelUnderTest, figures: ParityFigures, wish: Wish) -> list[str]:
    """The variants whose outputs exceed their tolerance; a repair cannot help any other failure."""
    if subject.calibration is None:
        return []
    return [
        variant
        for variant in REPAIRABLE
        if any(
            is_inexact(row, tolerance_for(variant, "cpu", wish.tolerances))
            for row in figures.rows
            if row.variant == variant
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
    """Search for a file that passes, with calibration samples only."""
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
            helper=workers.torch,
            folder=Path(folder),
            progress=progress,
        ).search()


def _left_out(draft: _Draft, figures: ParityFigures, judgement: Judgement) -> dict[str, str]:
    """The failed variants other than onnx, each with its failure and the first wrong value."""
    reasons = {}
    for variant, failures in judgement.by_variant.items():
        if not failures or variant == "onnx":
            continue
        reason = f"failed its proof: {failures[0]}"
        if len(failures) > 1:
            reason += f" (and {len(failures) - 1} further failures)"
        if variant.startswith("onnx") and variant not in figures.broken:
            allowed = next(t for t in figures.tolerances if t.variant == variant)
            layers = draft.proof.layers(draft.bundle.model_path(variant)).layers
            if first_wrong(layers, allowed) is not None:
                reason += f"; {explain(layers, allowed)}"
        if variant in draft.manifest.repaired:
            reason += f"; this is the repaired file, {draft.manifest.repaired[variant].summary()}"
            judged = draft.manifest.proof.samples
            reason += f"; {refusal_of(figures.repairs[variant], judged)}"
        elif variant in figures.repairs:
            reason += f"; {failure_of(figures.repairs[variant])}"
        elif variant in REPAIRABLE and draft.proof.subject.calibration is None:
            reason += f"; not repaired: {NO_CALIBRATION}"
        reasons[variant] = reason
    return reasons
