"""Where a subject comes from: a checkpoint of ``training``, or the bundle that was made of it."""

import hashlib
from pathlib import Path

import numpy as np

from export.bundle import Bundle
from export.factory import from_factory
from export.manifest import BundleError, TrainingSummary
from export.servable import INPUTS, OUTPUTS, ServableModel
from export.subject import Samples, Subject
from training.checkpoint import CheckpointRecord, load_weights, read_checkpoint
from training.config import TrainConfig
from training.data import CLASSES, DataError, Dataset, LabelledImages
from training.models import build_model

# More images change the ranges that int8's scales are fitted to hardly.
CALIBRATION_SAMPLES = 512


def from_checkpoint(folder: Path, dataset: Dataset) -> Subject:
    """A checkpoint that ``training`` wrote, with the images that it was trained on.

    Raises:
        CheckpointError: The checkpoint cannot be opened.
        DataError: The data set is not the one that the checkpoint was trained on.
    """
    record, classifier = read_checkpoint(folder)
    return _digits(
        ServableModel(classifier), folder / record.weights.path, _summary(record), dataset
    )


def from_bundle(bundle: Bundle, dataset: Dataset | None, samples: Path | None) -> Subject:
    """What a bundle was built from, rebuilt from the weights in it.

    Args:
        bundle: An opened bundle.
        dataset: The images, for a bundle of a checkpoint.
        samples: The file of samples, for a bundle of a factory.

    Raises:
        BundleError: The weights or the samples are not those of the bundle, or it has no source.
        DataError: The images are not those of the bundle.
    """
    manifest = bundle.manifest
    weights = bundle.path("weights")
    if manifest.training is not None:
        if dataset is None:
            raise DataError("a bundle of digits is proven on MNIST: give --data-dir")
        config = TrainConfig.model_validate(manifest.training.config)
        module = build_model(config.model, config.architecture)
        load_weights(module, weights, next(f.sha256 for f in manifest.files if f.role == "weights"))
        return _digits(ServableModel(module), weights, manifest.training, dataset)
    if manifest.factory is None:
        raise BundleError(f"{bundle.folder} does not say what it was built from")
    if samples is None:
        raise DataError(
            f"a bundle of {manifest.factory.factory} is proven on {manifest.proof.name}: give that "
            "file with --inputs"
        )
    subject = from_factory(
        manifest.factory.factory,
        weights,
        samples,
        arguments=manifest.factory.arguments,
        declared=manifest.inputs,
        output_names=[spec.name for spec in manifest.outputs],
        logits=[spec.name for spec in manifest.outputs if spec.kind == "logits"],
    )
    if subject.samples.sha256 != manifest.proof.sha256:
        raise DataError(
            f"{samples} is not the file that the bundle was proven with: sha256 "
            f"{subject.samples.sha256[:12]}, expected {manifest.proof.sha256[:12]}"
        )
    return subject


def _digits(
    model: ServableModel, weights: Path, training: TrainingSummary, dataset: Dataset
) -> Subject:
    if dataset.sha256 != training.data_sha256:
        raise DataError(
            f"the checkpoint was trained on {training.data_name} ({training.data_sha256[:12]}), "
            f"these images are {dataset.name} ({dataset.sha256[:12]}): its test images would not "
            "be those of the proof; give the same data with --data-dir"
        )
    calibration = Samples(
        {INPUTS[0].name: dataset.train.images[:CALIBRATION_SAMPLES].numpy()},
        f"the first training images of {dataset.name}",
        hashlib.sha256(dataset.train.images[:CALIBRATION_SAMPLES].numpy().tobytes()).hexdigest(),
    )
    return Subject(
        name=str(training.config["model"]),
        module=model,
        inputs=INPUTS,
        outputs=OUTPUTS,
        labels=tuple(str(digit) for digit in range(CLASSES)),
        weights=weights,
        samples=_test_samples(dataset.test, dataset.test_name, dataset.sha256),
        calibration=calibration,
        training=training,
    )


def _test_samples(test: LabelledImages, name: str, sha256: str) -> Samples:
    arrays = {INPUTS[0].name: test.images.numpy()}
    return Samples(arrays, name, sha256, test.labels.numpy().astype(np.int64))


def _summary(record: CheckpointRecord) -> TrainingSummary:
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
