"""Checkpoints: a safetensors file of weights, and a JSON record with its name and its hash.

The name of the weights file contains part of its hash. The record is replaced atomically, after
the weights are written. So after any interruption, either the record points to the weights that
it describes, or there is no record. No pickle is written or read.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from training.atomic import write_atomically
from training.config import TrainConfig
from training.data import Dataset, fingerprint, split_validation
from training.evaluation.classification import Evaluation
from training.evaluation.reconstruction import ImageEvaluation
from training.evaluation.two_input import PairEvaluation
from training.models import ARCHITECTURES, build_model

logger = logging.getLogger(__name__)

RECORD_NAME = "checkpoint.json"
# Version 2 added the held-out images' fingerprint, the Brier score and some config fields.
SCHEMA_VERSION = 2
SHOWN_HASH = 12  # characters that are enough to tell two data sets apart


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or not one that can be used here."""


class EpochRecord(BaseModel, frozen=True):
    """Metrics of one epoch; accuracies are in 0..1, losses in nats.

    For pairs, the accuracy is the share of pairs whose three answers are all correct.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float

    def summary(self) -> str:
        """The validation accuracy, for a terminal."""
        return f"validation {100 * self.validation_accuracy:.2f}%"


class ImageEpochRecord(BaseModel, frozen=True):
    """Metrics of one epoch of an autoencoder.

    Losses are mean squared errors of standardised pixels; ``validation_mse`` and
    ``validation_psnr_db`` are of ink in 0..1, as in ``ImageEvaluation``.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_mse: float
    validation_psnr_db: float | None
    learning_rate: float

    def summary(self) -> str:
        """The validation error and PSNR, for a terminal."""
        psnr = self.validation_psnr_db
        shown = "infinite" if psnr is None else f"{psnr:.2f} dB"
        return f"validation error {self.validation_mse:.5f}, PSNR {shown}"


AnyEpoch = EpochRecord | ImageEpochRecord
EpochT = TypeVar("EpochT", bound=AnyEpoch)
FiguresT = TypeVar("FiguresT", bound=BaseModel)


class DataRecord(BaseModel, frozen=True):
    """Which images the run used.

    ``split_sha256`` is the ``fingerprint`` of the images that were held out for validation; None
    in records of version 1.
    """

    name: str
    test_name: str
    source: str
    sha256: str
    split_sha256: str | None = None
    train_images: int
    validation_images: int
    test_images: int


class WeightsFile(BaseModel, frozen=True):
    """The weights file, relative to the record's folder; ``parameters`` counts trainable ones."""

    path: str
    sha256: str
    parameters: int


class TaskRecord(BaseModel, Generic[EpochT, FiguresT], frozen=True, extra="forbid"):
    """Everything that is known about a checkpoint besides its weights.

    ``epoch_kept`` is the epoch whose weights were saved: the last one. In records of version 1 it
    is the one with the best validation figure, so their ``validation`` is optimistically biased.
    """

    schema_version: int = SCHEMA_VERSION
    config: TrainConfig
    data: DataRecord
    weights: WeightsFile
    device: str
    epoch_kept: int
    history: list[EpochT]
    validation: FiguresT
    test: FiguresT
    versions: dict[str, str]
    commit: str


class CheckpointRecord(TaskRecord[EpochRecord, Evaluation]):
    """The record of a network that classifies one digit."""


class PairRecord(TaskRecord[EpochRecord, PairEvaluation]):
    """The record of a network that predicts two digits and their sum."""


class ImageRecord(TaskRecord[ImageEpochRecord, ImageEvaluation]):
    """The record of an autoencoder."""


AnyRecord = CheckpointRecord | PairRecord | ImageRecord
RECORDS: dict[str, type[AnyRecord]] = {
    "digit": CheckpointRecord,
    "pair": PairRecord,
    "image": ImageRecord,
}
_AnyObject = TypeAdapter(dict[str, Any])


def write_weights(folder: Path, module: nn.Module) -> WeightsFile:
    """Write a module's tensors into the folder, under a name derived from their hash."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
    content = save_tensors(tensors)
    sha256 = hashlib.sha256(content).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"weights-{sha256[:12]}.safetensors"
    write_atomically(folder / name, content)
    parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return WeightsFile(path=name, sha256=sha256, parameters=parameters)


def write_record(folder: Path, record: AnyRecord) -> None:
    """Complete a checkpoint: replace an older record, then delete older weights."""
    text = record.model_dump_json(indent=2) + "\n"
    write_atomically(folder / RECORD_NAME, text.encode())
    for old in folder.glob("weights-*.safetensors"):
        if old.name != record.weights.path:
            old.unlink()


def read_checkpoint(folder: Path) -> tuple[CheckpointRecord, nn.Module]:
    """Open a checkpoint of a digit classifier; see ``open_checkpoint``.

    Raises:
        CheckpointError: As ``open_checkpoint``, or the network is not a digit classifier.
    """
    record, module = open_checkpoint(folder)
    return require_digit_record(record, folder), module


def require_digit_record(record: AnyRecord, folder: Path) -> CheckpointRecord:
    """Return the record; raise ``CheckpointError`` unless its network is a digit classifier."""
    if not isinstance(record, CheckpointRecord):
        raise CheckpointError(
            f"{folder} contains the network {record.config.model}, which is not a digit "
            "classifier; expected a checkpoint of a digit classifier"
        )
    return record


def read_record(folder: Path) -> AnyRecord:
    """Read a checkpoint's record without its weights.

    Raises:
        CheckpointError: The record is missing or broken; names the file and what was expected.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint in {folder}: {RECORD_NAME} is missing (continue an unfinished "
            f"run with --resume); train one with: python -m training train --out {folder}"
        )
    try:
        content = _AnyObject.validate_json(path.read_bytes())
        _require_known_version(content, path)
        config = TrainConfig.model_validate(content.get("config"))
        return RECORDS[ARCHITECTURES[config.model].task].model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{path} is not a checkpoint record: {error}") from error


def _require_known_version(content: dict[str, Any], path: Path) -> None:
    """Check the version before any other field: a newer record may have any layout."""
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {version}, this code reads versions up to "
            f"{SCHEMA_VERSION}: the checkpoint is newer; update this repository"
        )


def require_same_images(record: AnyRecord, dataset: Dataset, folder: Path) -> None:
    """Check that a checkpoint was trained on these images and held out the ones held out now.

    Everything that uses held-out images (temperatures, ensembles, teachers, parity) calls this
    first: a network's results on its own training images do not carry over to other images.

    Args:
        record: The checkpoint's record.
        dataset: The images given now.
        folder: The checkpoint's folder, for the message.

    Raises:
        CheckpointError: The images differ; the message says how. A record of version 1 does not
            identify its held-out images: this logs a warning, and callers compare their number.
    """
    if record.data.sha256 != dataset.sha256:
        raise CheckpointError(
            f"{folder} was trained on {record.data.name} (sha256 "
            f"{record.data.sha256[:SHOWN_HASH]}), the images given are {dataset.name} "
            f"({dataset.sha256[:SHOWN_HASH]}); give the images that it was trained on with "
            "--data-dir, or train it again on these"
        )
    require_same_split(
        record.data.split_sha256, dataset, record.data.validation_images, str(folder)
    )


def require_same_split(
    split_sha256: str | None, dataset: Dataset, validation_images: int, name: str
) -> None:
    """Check that this code still holds out the images that a checkpoint held out.

    Args:
        split_sha256: Fingerprint of the held-out images in the checkpoint's record; None in old
            records, for which a warning is logged.
        dataset: The images that the checkpoint was trained on.
        validation_images: Number of images that it held out.
        name: The checkpoint's name, for the message.

    Raises:
        CheckpointError: The code would now hold out other images.
    """
    _, held_out = split_validation(dataset.train, validation_images)
    if split_sha256 is None:
        logger.warning("%s does not record which images it held out, only how many", name)
    elif split_sha256 != fingerprint(held_out):
        raise CheckpointError(
            f"{name} held out other images than this version of the code does, so it was trained "
            "on some that are held out now; train it again"
        )


def open_checkpoint(folder: Path) -> tuple[AnyRecord, nn.Module]:
    """Open a checkpoint: its record and its module, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: As ``read_record``; or the weights are missing, were altered, or do not
            fit the architecture.
    """
    record = read_record(folder)
    module = build_model(record.config.model, record.config.architecture)
    load_weights(module, folder / record.weights.path, record.weights.sha256)
    return record, module.eval()


def load_weights(module: nn.Module, path: Path, sha256: str) -> None:
    """Load safetensors weights into a module after checking the file's hash.

    Raises:
        CheckpointError: The file is missing, altered, or does not fit the module.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"weights {path} cannot be read: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise CheckpointError(f"{path} was altered: sha256 {found}, recorded {sha256}")
    try:
        module.load_state_dict(load_tensors(content))
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the architecture: {error}") from error
