"""A subject becomes a bundle, or nothing.

In this order: files, golden samples, gate, manifest; a failure at any of them leaves no bundle.
"""

import contextlib
import dataclasses
import hashlib
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnxruntime

from export.bundle.golden import Golden, run_batched
from export.bundle.manifest import FileEntry, GuardSummary, Manifest, SampleSet
from export.bundle.metrics import Array, margins
from export.bundle.store import Bundle, file_entry, staged, write_bundle
from export.bundle.tolerances import TOLERANCES, Tolerance, tolerance_for
from export.convert.onnx_export import model_bytes, set_metadata
from export.convert.precision import to_fp16, to_int8
from export.convert.pt2 import save_pt2
from export.convert.torchscript import exported_torchscript
from export.mnist.feature_maps import (
    FEATURES_NAME,
    GOLDEN_NAME,
    NoFirstLayerError,
    cut,
    golden_features,
)
from export.mnist.ood_detector import LEAST_HELD_OUT, UNUSUAL_BELOW, fit
from export.model.under_test import Learned, ModelUnderTest
from export.parity.judge import Judgement, explain, judge
from export.parity.reference import eager_predict, float64_predict
from export.parity.run import ParityRun
from export.parity.schema import ParityFigures
from export.parity.structure import OPSET
from training.provenance import commit, versions

GOLDEN_PER_LABEL = 6
GOLDEN_UNLABELLED = 60
VERSION_LENGTH = 12
CHOICE_BATCH = 500
VARIANTS = ("onnx", "onnx-fp16", "onnx-int8", "torchscript", "torchscript-frozen", "pt2")
NO_CALIBRATION = "no calibration samples were given (--calibration)"


class ParityError(RuntimeError):
    """A variant does not compute what the checkpoint computes; no bundle was written.

    Attributes:
        figures: All that was measured.
    """

    def __init__(self, figures: ParityFigures, judgement: Judgement, bisection: str) -> None:
        """Say every failure, and where in the graph the first wrong value is."""
        self.figures, self.judgement = figures, judgement
        lines = ["parity failed, no bundle written:", *judgement.failures, bisection]
        passed = [v.variant for v in judgement.verdicts if v.passed]
        if "onnx" in passed and len(passed) < len(judgement.verdicts):
            lines.append(f"what passed can be built alone: --variants {','.join(passed)}")
        super().__init__("\n  ".join(lines))


def build(
    subject: ModelUnderTest,
    target: Path,
    *,
    name: str | None = None,
    version: str | None = None,
    variants: Collection[str] = VARIANTS,
    tolerances: tuple[Tolerance, ...] = TOLERANCES,
) -> tuple[Bundle, ParityFigures]:
    """Export a subject in every format, prove each, and write the bundle.

    The same subject, code and versions give the same bytes in every file.

    Args:
        subject: From ``export.mnist.checkpoint`` or ``export.model.factory``.
        target: Where the bundle shall be; a bundle there is replaced, anything else is refused.
        name: What the service calls the model; the subject's name if None.
        version: Its version; the first 12 digits of the weights' SHA-256 if None, so that an
            answer can be traced to the weights that gave it.
        variants: Those of ``VARIANTS`` to build; onnx always is.
        tolerances: The table, or a changed one (``tolerances.changed``).

    Returns:
        The bundle and what the gate measured.

    Raises:
        SubjectError: The module cannot be exported.
        ExportError: The exporter gave something else than what was asked for.
        ParityError: A variant failed the gate.
        BundleError: ``target`` is in the way.
    """
    with staged(target) as staging:
        weights = staging / "weights.safetensors"
        shutil.copyfile(subject.weights, weights)
        entry = file_entry(weights, role="weights")
        version = version or entry.sha256[:VERSION_LENGTH]
        subject = dataclasses.replace(subject, name=name or subject.name, weights=weights)
        proof = ParityRun.of(subject)
        entries = write_models(proof, staging, version, variants)
        golden, path = choose_golden(subject), staging / "golden.npz"
        golden.save(path)
        guard_entries, guard = write_guard(subject, staging)
        entries += [entry, file_entry(path, role="golden"), *guard_entries]
        unproven = _manifest(subject, entries, version, variants, tolerances, guard)
        shown = write_features(proof, staging, version, golden, unproven.not_built)
        models, part = Bundle(staging, unproven).variants, staging / FEATURES_NAME
        figures = proof.measure(models, "cpu", tolerances, features=part if shown else None)
        judgement = judge(figures, tolerances)
        if not judgement.passed:
            found = explain(figures.layers, tolerance_for("onnx", "cpu", tolerances))
            raise ParityError(figures, judgement, found)
        parity = staging / "parity.json"
        parity.write_text(figures.model_dump_json(indent=1) + "\n")
        proven = {
            "files": (*entries, *shown, file_entry(parity, role="parity")),
            "parity": judgement.verdicts,
            "features": judgement.features,
        }
        return write_bundle(staging, target, unproven.model_copy(update=proven)), figures


def write_models(
    proof: ParityRun, folder: Path, version: str, variants: Collection[str]
) -> list[FileEntry]:
    """Write the model's files.

    Args:
        proof: ModelUnderTest and program.
        folder: Where to.
        version: Stands in the ONNX files' metadata.
        variants: Which to write.
    """
    subject = proof.subject
    script, frozen = folder / "model.ts", folder / "model.frozen.ts"
    scripted = {"torchscript", "torchscript-frozen"} & set(variants)
    with exported_torchscript(subject, script, frozen) if scripted else contextlib.nullcontext():
        honest = proof.translation.model
        models = {"onnx": ("fp32", honest)}
        if "onnx-fp16" in variants:
            models["onnx-fp16"] = ("fp16", to_fp16(honest))
        if "onnx-int8" in variants and subject.calibration is not None:
            models["onnx-int8"] = ("int8", to_int8(honest, subject.calibration.arrays))
        entries = []
        for variant, (precision, model) in models.items():
            path = folder / f"{variant.replace('onnx', 'model').replace('-', '.')}.onnx"
            set_metadata(model, subject, version, variant)
            path.write_bytes(model_bytes(model))
            fields = {"format": "onnx", "precision": precision, "opset": OPSET}
            entries.append(file_entry(path, role="model", **fields))
        if "pt2" in variants:
            save_pt2(proof.program, folder / "model.pt2")
    written = {"torchscript": script, "torchscript-frozen": frozen, "pt2": folder / "model.pt2"}
    for variant, path in written.items():
        if variant in variants:
            entries.append(file_entry(path, role="model", format=variant, precision="fp32"))
        else:  # tracing gives both
            path.unlink(missing_ok=True)
    return entries


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


def choose_golden(subject: ModelUnderTest) -> Golden:
    """A few of the subject's samples that the reference reads rightly, in order.

    With known labels the first few of each; else the first ones. Only right ones: a wrong reading
    sits near a decision's edge, where a device's rounding could flip the label and cry wolf. For
    the same reason, without known labels, those of the smallest margins are left out.
    """
    samples = subject.samples
    targets = np.full(len(samples), -1) if samples.targets is None else samples.targets
    logits = [spec.name for spec in subject.outputs if spec.kind == "logits"]
    eager, truth = eager_predict(subject), float64_predict(subject)
    chosen = np.arange(min(GOLDEN_UNLABELLED, len(samples)))
    if logits:
        answers = run_batched(eager, samples.arrays, CHOICE_BATCH)
        labels = answers[logits[0]].argmax(axis=1)
        right = labels == targets if samples.targets is not None else np.ones(len(samples), bool)
        margin = np.min([margins(answers[name]) for name in logits], axis=0)
        right &= margin >= np.median(margin) / 10
        chosen = np.concatenate(
            [np.flatnonzero(right & (labels == x))[:GOLDEN_PER_LABEL] for x in np.unique(labels)]
        )
        chosen.sort()
    asked = {name: array[chosen] for name, array in samples.arrays.items()}
    return Golden(asked, eager(asked), truth(asked), targets[chosen].astype(np.int64))


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
    variants: Collection[str],
    tolerances: tuple[Tolerance, ...],
    guard: GuardSummary | None,
) -> Manifest:
    """What the bundle says of itself before anything is proven."""
    built = {entry.variant for entry in entries}
    reasons = {v: "was not asked for (--variants)" for v in VARIANTS if v not in built}
    if "onnx-int8" in reasons and "onnx-int8" in variants:
        reasons["onnx-int8"] = NO_CALIBRATION
    if guard is None:
        reasons["guard"] = _no_guard(subject.learned)
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
        not_built=reasons,
        tolerances=tolerances,
        training=subject.training,
        factory=subject.factory,
        commit=commit(),
        versions=versions(["torch", "onnx", "onnxscript", "numpy"])
        | {"onnxruntime": onnxruntime.__version__},  # its distribution may be -gpu or not
    )
