"""Make the model under test from a checkpoint of ``training``, or from a bundle built from one."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from export.bundle.manifest import BundleError, Task, TensorSpec, TrainingSummary
from export.bundle.metrics import Arrays
from export.bundle.store import Bundle
from export.mnist.servable import (
    INK_OUTPUTS,
    INPUTS,
    OUTPUTS,
    PAIR_INPUTS,
    PAIR_OUTPUTS,
    ServableAutoencoder,
    ServableModel,
    ServablePair,
)
from export.model.under_test import Learned, ModelUnderTest, Samples
from training.checkpoint import (
    AnyRecord,
    load_weights,
    open_checkpoint,
    require_same_images,
    require_same_split,
)
from training.config import TrainConfig
from training.data import CLASSES, DataError, Dataset, LabelledImages, split_validation
from training.evaluation.classification import Evaluation
from training.evaluation.reconstruction import ImageEvaluation
from training.evaluation.two_input import SUMS, fixed_pairs
from training.models import ARCHITECTURES, build_model, resolved

# More images would hardly change the ranges that int8's scales are fitted to.
CALIBRATION_SAMPLES = 512


def from_checkpoint(folder: Path, dataset: Dataset) -> ModelUnderTest:
    """Make a subject from a checkpoint that ``training`` wrote, and the images it was trained on.

    Raises:
        CheckpointError: The checkpoint cannot be opened.
        DataError: The data set is not the one that the checkpoint was trained on.
    """
    record, network = open_checkpoint(folder)
    if record.data.sha256 == dataset.sha256:
        require_same_images(record, dataset, folder)
    weights = folder / record.weights.path
    return _subject(network, weights, record.weights.sha256, _summary(record), dataset)


def from_bundle(bundle: Bundle, dataset: Dataset) -> ModelUnderTest:
    """Rebuild the subject that a bundle of a checkpoint was built from, with the bundle's weights.

    The architecture that the manifest names is looked up among those of ``training``, so that the
    manifest cannot name any other code to call.

    Raises:
        BundleError: The bundle was not built from a checkpoint.
        DataError: The images are not those of the bundle.
        CheckpointError: The images held out now differ from those that the guard was fitted to.
    """
    training, weights = bundle.manifest.training, bundle.path("weights")
    if training is None:
        raise BundleError(f"{bundle.folder} was not built from a checkpoint")
    config = TrainConfig.model_validate(training.config)
    if dataset.sha256 == training.data_sha256:  # else _subject refuses the data set
        require_same_split(
            training.split_sha256, dataset, config.validation_images, str(bundle.folder)
        )
    module = build_model(config.model, config.architecture)
    digest = next(f.sha256 for f in bundle.manifest.files if f.role == "weights")
    load_weights(module, weights, digest)
    return _subject(module, weights, digest, training, dataset)


def _subject(
    network: nn.Module, weights: Path, digest: str, training: TrainingSummary, dataset: Dataset
) -> ModelUnderTest:
    if dataset.sha256 != training.data_sha256:
        raise DataError(
            f"the checkpoint was trained on {training.data_name} ({training.data_sha256[:12]}), "
            f"these images are {dataset.name} ({dataset.sha256[:12]}), so the test images are not "
            "those of the proof; give the same data with --data-dir"
        )
    name = str(training.config["model"])
    architecture, _ = resolved(name, {})  # older bundles use older names
    form = _FORMS[ARCHITECTURES[architecture].task]
    fitted_to = form.ask(
        LabelledImages(
            dataset.train.images[:CALIBRATION_SAMPLES], dataset.train.labels[:CALIBRATION_SAMPLES]
        )
    )
    what = form.samples_name
    calibration = Samples(
        fitted_to,
        f"{what}the first training images of {dataset.name}",
        hashlib.sha256(b"".join(array.tobytes() for array in fitted_to.values())).hexdigest(),
    )
    targets = dataset.test.labels.numpy().astype(np.int64) if form.has_targets else None
    return ModelUnderTest(
        name=name,
        module=form.servable(network),
        inputs=form.inputs,
        outputs=form.outputs,
        labels=tuple(str(label) for label in range(form.labels)),
        weights=weights,
        weights_sha256=digest,
        samples=Samples(
            form.ask(dataset.test), f"{what}{dataset.test_name}", dataset.sha256, targets
        ),
        calibration=calibration,
        learned=_learned(training, dataset) if form.inputs == INPUTS else None,
        task=form.task,
        training=training,
    )


def _learned(training: TrainingSummary, dataset: Dataset) -> Learned:
    """The training images and the held-out ones, split in the same way as in training."""
    config = TrainConfig.model_validate(training.config)
    kept, held_out = split_validation(dataset.train, config.validation_images)
    return Learned(kept.images.numpy(), held_out.images.numpy(), dataset.name)


@dataclass(frozen=True)
class _Form:
    """The interface of the networks of one task.

    Attributes:
        servable: Wraps the network.
        labels: The number of labels; 0 if the outputs are not labels.
        ask: Converts labelled images to inputs by name.
        samples_name: A prefix to the images' name, e.g. "pairs of ".
        has_targets: The images' digits are the ground-truth labels for every output of logits.
        task: What the service does with such a network.
    """

    servable: Callable[[nn.Module], nn.Module]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: int
    ask: Callable[[LabelledImages], Arrays]
    samples_name: str = ""
    has_targets: bool = False
    task: Task = "tensors"


def _images(images: LabelledImages) -> Arrays:
    return {INPUTS[0].name: images.images.numpy()}


def _pairs(images: LabelledImages) -> Arrays:
    pairs = fixed_pairs(images)
    parts = (pairs.first, pairs.second)
    return {spec.name: part.images.numpy() for spec, part in zip(PAIR_INPUTS, parts, strict=True)}


_FORMS = {
    "digit": _Form(
        ServableModel, INPUTS, OUTPUTS, CLASSES, _images, has_targets=True, task="digits"
    ),
    # A sum's label is the sum itself; a digit's label is one of the first ten.
    "pair": _Form(ServablePair, PAIR_INPUTS, PAIR_OUTPUTS, SUMS, _pairs, "pairs of "),
    "image": _Form(ServableAutoencoder, INPUTS, INK_OUTPUTS, 0, _images),
}


def _summary(record: AnyRecord) -> TrainingSummary:
    test = record.test
    return TrainingSummary(
        config=record.config.model_dump(mode="json"),
        parameters=record.weights.parameters,
        data_name=record.data.name,
        data_sha256=record.data.sha256,
        split_sha256=record.data.split_sha256,
        test_images=test.images_name,
        test_accuracy=None if isinstance(test, ImageEvaluation) else test.accuracy,
        expected_calibration_error=(
            test.expected_calibration_error if isinstance(test, Evaluation) else None
        ),
        device=record.device,
        commit=record.commit,
    )
