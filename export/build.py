"""A checkpoint becomes a bundle, or nothing.

In this order: files, golden samples, gate, manifest; a failure at any of them leaves no bundle.
"""

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from export.bundle import (
    Bundle,
    FileEntry,
    Manifest,
    TensorSpec,
    TrainingSummary,
    file_entry,
    staged,
    write_bundle,
)
from export.check import full_check
from export.golden import Golden, run_batched
from export.parity.gate import ParityReport
from export.parity.reference import eager_predict
from export.parity.tolerances import TOLERANCES
from export.servable import INPUT_NAME, OUTPUT_NAMES, ServableModel
from export.to_onnx import OPSET, export_onnx
from export.to_pt2 import export_program, save_pt2
from export.to_torchscript import exported_torchscript
from training.checkpoint import CheckpointRecord, read_checkpoint
from training.data import CLASSES, IMAGE_SHAPE, DataError, Dataset
from training.provenance import commit, versions

GOLDEN_PER_DIGIT = 6
VERSION_LENGTH = 12
CHOICE_BATCH = 500


class ParityError(RuntimeError):
    """A format does not compute what the checkpoint computes; no bundle was written."""

    def __init__(self, report: ParityReport) -> None:
        """Say every failure of the report."""
        self.report = report
        super().__init__("parity failed, no bundle written:\n  " + "\n  ".join(report.failures))


def build(
    checkpoint: Path,
    target: Path,
    dataset: Dataset,
    *,
    name: str | None = None,
    version: str | None = None,
) -> Bundle:
    """Export a checkpoint in every format, prove each, and write the bundle.

    The same checkpoint, data, code and versions give the same bytes in every file.

    Args:
        checkpoint: A folder that ``training`` wrote.
        target: Where the bundle shall be; a bundle there is replaced, anything else is refused.
        dataset: Its test images feed the gate and the golden samples.
        name: What the service calls the model; the architecture's name if None.
        version: Its version; the first 12 digits of the weights' SHA-256 if None, so that an
            answer can be traced to the weights that gave it.

    Raises:
        CheckpointError: The checkpoint cannot be opened.
        DataError: The data set is not the one that the checkpoint was trained on.
        ParityError: A format failed the gate.
        BundleError: ``target`` is in the way.
    """
    record, classifier = read_checkpoint(checkpoint)
    if dataset.sha256 != record.data.sha256:
        raise DataError(
            f"the checkpoint was trained on {record.data.name} ({record.data.sha256[:12]}), these "
            f"images are {dataset.name} ({dataset.sha256[:12]}): its test images would not be "
            "those of the proof; give the same data with --data-dir"
        )
    model = ServableModel(classifier)
    with staged(target) as staging:
        entries = _write_models(model, staging)
        weights = staging / "weights.safetensors"
        weights.write_bytes((checkpoint / record.weights.path).read_bytes())
        golden = staging / "golden.npz"
        choose_golden(model, dataset).save(golden)
        entries += [file_entry(weights, role="weights"), file_entry(golden, role="golden")]
        unproven = _manifest(record, entries, name, version)
        report = full_check(Bundle(staging, unproven), "cpu", dataset)
        if not report.passed:
            raise ParityError(report)
        parity = staging / "parity.json"
        parity.write_text(report.model_dump_json(indent=2) + "\n")
        entries.append(file_entry(parity, role="parity"))
        proven = unproven.model_copy(update={"files": tuple(entries), "parity": report.verdicts()})
        return write_bundle(staging, target, proven)


def _manifest(
    record: CheckpointRecord, entries: list[FileEntry], name: str | None, version: str | None
) -> Manifest:
    """What the bundle says of itself before anything is proven."""
    return Manifest(
        name=name or record.config.model,
        version=version or record.weights.sha256[:VERSION_LENGTH],
        architecture=record.config.model,
        inputs=(TensorSpec(name=INPUT_NAME, datatype="UINT8", shape=(-1, *IMAGE_SHAPE)),),
        outputs=tuple(
            TensorSpec(name=output, datatype="FP32", shape=(-1, CLASSES)) for output in OUTPUT_NAMES
        ),
        labels=tuple(str(digit) for digit in range(CLASSES)),
        files=tuple(entries),
        parity=(),
        tolerances=tuple(row for row in TOLERANCES if row.format == "onnx"),
        training=_training_summary(record),
        commit=commit(),
        versions=versions(["torch", "onnx", "onnxscript", "numpy"])
        | {"onnxruntime": onnxruntime.__version__},  # its distribution may be -gpu or not
    )


def choose_golden(model: ServableModel, dataset: Dataset) -> Golden:
    """The first few test images of each digit that the reference reads rightly, in order.

    Only right ones: a wrong reading sits near a decision's edge, where a device's rounding could
    flip the label and cry wolf.
    """
    images, digits = dataset.test.images.numpy(), dataset.test.labels.numpy()
    eager, in_float64 = eager_predict(model), eager_predict(copy.deepcopy(model).double())
    labels = run_batched(eager, images, CHOICE_BATCH)[0].argmax(axis=1)
    chosen = np.concatenate(
        [
            np.flatnonzero((digits == digit) & (labels == digit))[:GOLDEN_PER_DIGIT]
            for digit in range(CLASSES)
        ]
    )
    chosen.sort()
    logits, _ = eager(images[chosen])
    truth, _ = in_float64(images[chosen])
    return Golden(images[chosen], digits[chosen].astype(np.int64), logits, truth)


def _write_models(model: ServableModel, folder: Path) -> list[FileEntry]:
    with torch.no_grad(), exported_torchscript(model, folder / "model.ts"):
        program = export_program(model)
        export_onnx(program, folder / "model.onnx")
        save_pt2(program, folder / "model.pt2")
    shared = {"role": "model", "precision": "fp32"}
    return [
        file_entry(folder / "model.onnx", format="onnx", opset=OPSET, **shared),
        file_entry(folder / "model.ts", format="torchscript", **shared),
        file_entry(folder / "model.pt2", format="pt2", **shared),
    ]


def _training_summary(record: CheckpointRecord) -> TrainingSummary:
    return TrainingSummary(
        config=record.config.model_dump(mode="json"),
        parameters=record.weights.parameters,
        data_name=record.data.name,
        data_sha256=record.data.sha256,
        test_images=record.test.images_name,
        test_accuracy=record.test.accuracy,
        expected_calibration_error=record.test.expected_calibration_error,
        device=record.device,
        commit=record.commit,
    )
