"""Checkpoints: safetensors weights and a JSON record beside them that names and hashes them.

The weights' file bears a part of its own hash as its name, and the record is replaced in one
step after it. So at every moment, whatever is interrupted, the record points to the very weights
it speaks of, or there is no record. No pickle is written or read.
"""

import hashlib
import os
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from training.config import TrainConfig
from training.evaluate import Evaluation
from training.images import ImageEvaluation
from training.models import ARCHITECTURES, build_model
from training.pairs import PairEvaluation

RECORD_NAME = "checkpoint.json"
SCHEMA_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that is not there, not whole, or not what it says."""


class EpochRecord(BaseModel):
    """Figures of one epoch; accuracies in 0..1, losses in nats, on the images named.

    Of pairs, the accuracy is the share whose three answers are all right.
    """

    model_config = ConfigDict(frozen=True)

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float

    @property
    def score(self) -> float:
        """What the epoch to keep has the most of."""
        return self.validation_accuracy

    def summary(self) -> str:
        """The validation figure, for a terminal."""
        return f"validation {100 * self.validation_accuracy:.2f}%"


class ImageEpochRecord(BaseModel):
    """Figures of one epoch of a network that gives its input back.

    Losses are mean squared errors of standardised pixels; ``validation_mse`` and
    ``validation_psnr_db`` are of ink in 0..1, as in ``training.images.ImageEvaluation``.
    """

    model_config = ConfigDict(frozen=True)

    epoch: int
    train_loss: float
    validation_loss: float
    validation_mse: float
    validation_psnr_db: float | None
    learning_rate: float

    @property
    def score(self) -> float:
        """What the epoch to keep has the most of."""
        return -self.validation_mse

    def summary(self) -> str:
        """The validation figures, for a terminal."""
        psnr = self.validation_psnr_db
        shown = "infinite" if psnr is None else f"{psnr:.2f} dB"
        return f"validation error {self.validation_mse:.5f}, PSNR {shown}"


AnyEpoch = EpochRecord | ImageEpochRecord
EpochT = TypeVar("EpochT", bound=AnyEpoch)
FiguresT = TypeVar("FiguresT", bound=BaseModel)


class DataRecord(BaseModel):
    """Which images the run used."""

    model_config = ConfigDict(frozen=True)

    name: str
    test_name: str
    source: str
    sha256: str
    train_images: int
    validation_images: int
    test_images: int


class WeightsFile(BaseModel):
    """The weights' file, relative to the record's folder; ``parameters`` counts trainable ones."""

    model_config = ConfigDict(frozen=True)

    path: str
    sha256: str
    parameters: int


class TaskRecord(BaseModel, Generic[EpochT, FiguresT]):
    """Everything that is known of a checkpoint besides its weights.

    ``epoch_kept`` is the epoch whose weights these are: the best on the validation images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class _Header(BaseModel):
    """What tells how to read the rest."""

    config: TrainConfig
    schema_version: int


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


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
    if not isinstance(record, CheckpointRecord):
        raise CheckpointError(
            f"{folder} holds the network {record.config.model}, which does not read a single "
            "digit; expected one that does"
        )
    return record, module


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
        content = path.read_bytes()
        header = _Header.model_validate_json(content)
        record = RECORDS[ARCHITECTURES[header.config.model].task].model_validate_json(content)
    except ValidationError as error:
        raise CheckpointError(f"{path} is not a checkpoint record: {error}") from error
    if record.schema_version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {record.schema_version}; this code reads {SCHEMA_VERSION}"
        )
    return record


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
