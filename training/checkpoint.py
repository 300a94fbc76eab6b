"""Checkpoints: safetensors weights and a JSON record beside them that names and hashes them.

The weights' file bears a part of its own hash as its name, and the record is replaced in one
step after it. So at every moment, whatever is interrupted, the record points to the very weights
it speaks of, or there is no record. No pickle is written or read.
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
# 2: the held-out images' fingerprint, the Brier score, and config fields that version 1 lacks.
SCHEMA_VERSION = 2
SHOWN_HASH = 12  # characters that are enough to tell two data sets apart


class CheckpointError(ValueError):
    """A checkpoint that is not there, not whole, or not what it says."""


class EpochRecord(BaseModel, frozen=True):
    """Figures of one epoch; accuracies in 0..1, losses in nats, on the images named.

    Of pairs, the accuracy is the share whose three answers are all right.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float

    def summary(self) -> str:
        """The validation figure, for a terminal."""
        return f"validation {100 * self.validation_accuracy:.2f}%"


class ImageEpochRecord(BaseModel, frozen=True):
    """Figures of one epoch of a network that gives its input back.

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
        """The validation figures, for a terminal."""
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
    """The weights' file, relative to the record's folder; ``parameters`` counts trainable ones."""

    path: str
    sha256: str
    parameters: int


class TaskRecord(BaseModel, Generic[EpochT, FiguresT], frozen=True, extra="forbid"):
    """Everything that is known of a checkpoint besides its weights.

    ``epoch_kept`` is the epoch whose weights these are: the last one; in records of version 1
    the one with the best validation figure, so that there ``validation`` flatters the network.
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
    """Of a network that reads one digit."""


class PairRecord(TaskRecord[EpochRecord, PairEvaluation]):
    """Of a network that reads two digits and their sum."""


class ImageRecord(TaskRecord[ImageEpochRecord, ImageEvaluation]):
    """Of a network that gives its input back."""


AnyRecord = CheckpointRecord | PairRecord | ImageRecord
RECORDS: dict[str, type[AnyRecord]] = {
    "digit": CheckpointRecord,
    "pair": PairRecord,
    "image": ImageRecord,
}
_AnyObject = TypeAdapter(dict[str, Any])


def write_weights(folder: Path, module: nn.Module) -> WeightsFile:
    """Write a module's tensors into the folder, under a name made from their hash."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
    content = save_tensors(tensors)
    sha256 = hashlib.sha256(content).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"weights-{sha256[:12]}.safetensors"
    write_atomically(folder / name, content)
    parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return WeightsFile(path=name, sha256=sha256, parameters=parameters)


def write_record(folder: Path, record: AnyRecord) -> None:
    """Make the checkpoint complete: the record replaces an older one, older weights go."""
    text = record.model_dump_json(indent=2) + "\n"
    write_atomically(folder / RECORD_NAME, text.encode())
    for old in folder.glob("weights-*.safetensors"):
        if old.name != record.weights.path:
            old.unlink()


def read_checkpoint(folder: Path) -> tuple[CheckpointRecord, nn.Module]:
    """Open a checkpoint of a network that reads one digit; see ``open_checkpoint``.

    Raises:
        CheckpointError: As there, or the network does something else.
    """
    record, module = open_checkpoint(folder)
    return require_digit_record(record, folder), module


def require_digit_record(record: AnyRecord, folder: Path) -> CheckpointRecord:
    """The same record; raises ``CheckpointError`` for a network that does something else."""
    if not isinstance(record, CheckpointRecord):
        raise CheckpointError(
            f"{folder} holds the network {record.config.model}, which does not read a single "
            "digit; expected one that does"
        )
    return record


def read_record(folder: Path) -> AnyRecord:
    """Read a checkpoint's record without its weights.

    Raises:
        CheckpointError: Nothing there, or a broken record. Says which file and what was expected.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint in {folder}: {RECORD_NAME} is missing (an unfinished run is taken up "
            f"again with --resume); make one with: python -m training train --out {folder}"
        )
    try:
        content = _AnyObject.validate_json(path.read_bytes())
        _require_known_version(content, path)
        config = TrainConfig.model_validate(content.get("config"))
        return RECORDS[ARCHITECTURES[config.model].task].model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{path} is not a checkpoint record: {error}") from error


def _require_known_version(content: dict[str, Any], path: Path) -> None:
    """Look at the version before anything else: a newer record may be of any form."""
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {version}, this code reads versions up to "
            f"{SCHEMA_VERSION}: the checkpoint is newer; update this repository"
        )


def require_same_images(record: AnyRecord, dataset: Dataset, folder: Path) -> None:
    """Refuse a checkpoint of other images, or one whose held-out images are no longer held out.

    Everything that uses held-out images (temperatures, ensembles, teachers, parity) asks this
    first: an image that a network was trained on says nothing of how it reads others.

    Args:
        record: The checkpoint's.
        dataset: The images given now.
        folder: The checkpoint's, for the message.

    Raises:
        CheckpointError: Says what differs. A record of version 1 does not name its held-out
            images: a warning is logged, and their number alone is compared, by the caller.
    """
    if record.data.sha256 != dataset.sha256:
        raise CheckpointError(
            f"{folder} was trained on {record.data.name} (sha256 "
            f"{record.data.sha256[:SHOWN_HASH]}), the images given are {dataset.name} "
            f"({dataset.sha256[:SHOWN_HASH]}); give its own images with --data-dir, or train it "
            "anew on these"
        )
    require_same_split(
        record.data.split_sha256, dataset, record.data.validation_images, str(folder)
    )


def require_same_split(
    split_sha256: str | None, dataset: Dataset, validation_images: int, name: str
) -> None:
    """Check that this code still holds out the images that a checkpoint did.

    Args:
        split_sha256: Their fingerprint as the checkpoint recorded it; None in old records: a
            warning is logged.
        dataset: The images that it was trained on.
        validation_images: How many it held out.
        name: The checkpoint's, for the message.

    Raises:
        CheckpointError: Others would be held out now.
    """
    _, held_out = split_validation(dataset.train, validation_images)
    if split_sha256 is None:
        logger.warning("%s does not record which images it held out, only how many", name)
    elif split_sha256 != fingerprint(held_out):
        raise CheckpointError(
            f"{name} held out other images than this version of the code does: it was trained "
            "on some of those that would now be called held out; train it anew"
        )


def open_checkpoint(folder: Path) -> tuple[AnyRecord, nn.Module]:
    """Open a checkpoint: its record and its module, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: As ``read_record``, or altered weights, or weights that do not fit the
            architecture.
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
