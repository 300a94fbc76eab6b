"""The contract between the stages: a folder whose manifest says, and hashes, all that is in it.

    manifest.json       what this is; written last, so that a manifest means a complete bundle
    model.onnx          what the service runs
    model.ts  model.pt2 the same function as TorchScript (deprecated by PyTorch) and torch.export
    weights.safetensors the checkpoint's own weights, so that parity can be proven again anywhere
    golden.npz          a few real images with the reference's answers (see ``golden``)
    parity.json         every figure of the parity gate, with tolerances

Tensors speak the words of the Open Inference Protocol: ``name``, ``datatype``, ``shape``, with -1
for the batch axis. This module knows no torch.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from export.parity.tolerances import Tolerance, tolerance_for

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
# The name and the version stand in URLs, metric labels and file paths.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"

Format = Literal["onnx", "torchscript", "pt2"]


class BundleError(ValueError):
    """A bundle that is not there, not whole, altered, or of another schema; names the file."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Strict):
    """One input or output, e.g. images UINT8 [-1, 28, 28]."""

    name: str
    datatype: Literal["UINT8", "FP16", "FP32", "FP64", "INT64"]
    shape: tuple[int, ...]


class FileEntry(_Strict):
    """One file of the bundle; the last three fields are for models alone."""

    path: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="a name inside the bundle's folder")
    role: Literal["model", "weights", "golden", "parity"]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)
    format: Format | None = None
    precision: Literal["fp32"] | None = None
    opset: int | None = None


class ParityVerdict(_Strict):
    """What the gate said of one format: the worst figures over all batch sizes.

    ``images`` is how many the largest batch size ran over; the others run over the first 1,000.
    """

    format: Format
    device: Literal["cpu", "cuda"]
    passed: bool
    scaled_error: float
    rms_ratio: float
    label_flips: int
    images: int
    batch_sizes: tuple[int, ...]
    tolerance: Tolerance

    @model_validator(mode="after")
    def _passed_means_within_the_tolerance(self) -> Self:
        within = (
            self.scaled_error <= self.tolerance.scaled_error
            and self.rms_ratio <= self.tolerance.rms_ratio
        )
        if self.passed and not within:
            raise ValueError("the verdict says passed, its own figures say not")
        return self

    def summary(self) -> str:
        """One line for a terminal."""
        bound = self.tolerance.scaled_error
        return (
            f"{self.format:11} {self.device}: {'passed' if self.passed else 'FAILED'}  "
            f"scaled error {self.scaled_error:.1e} ({f'<= {bound:.0e}' if bound else 'bit-equal'})"
            f"  RMS {self.rms_ratio:.1f} x eager's (<= {self.tolerance.rms_ratio:.0f})  "
            f"{self.label_flips} label flips in {self.images:,} images"
        )


class TrainingSummary(_Strict):
    """Where the weights come from; the whole record stays with the checkpoint."""

    config: dict[str, Any]
    parameters: int
    data_name: str
    data_sha256: str
    test_images: str = Field(description="what the accuracy was measured on, in words")
    test_accuracy: float = Field(ge=0, le=1)
    expected_calibration_error: float = Field(ge=0, le=1)
    device: str
    commit: str


class Manifest(_Strict):
    """All that is known of a bundle; field order is reading order."""

    schema_version: int = SCHEMA_VERSION
    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=NAME_PATTERN)
    architecture: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    files: tuple[FileEntry, ...]
    parity: tuple[ParityVerdict, ...]
    tolerances: tuple[Tolerance, ...] = Field(
        description="what the served format may differ by, for each device that could serve it"
    )
    training: TrainingSummary
    commit: str
    versions: dict[str, str]

    def tolerance(self, device: str) -> Tolerance:
        """What the served format (ONNX) may differ by on a device.

        Raises:
            BundleError: The bundle gives none, or a looser one than this code's table does.
        """
        for row in self.tolerances:
            if row.device == device:
                known = tolerance_for(row.format, row.device, row.precision)
                if row.scaled_error > known.scaled_error or row.rms_ratio > known.rms_ratio:
                    raise BundleError(
                        f"{self.name} allows itself a scaled error of {row.scaled_error:g} and "
                        f"{row.rms_ratio:g} x eager's RMS on {device}; the table allows "
                        f"{known.scaled_error:g} and {known.rms_ratio:g}"
                    )
                return row
        raise BundleError(f"{self.name} carries no tolerance for {device}")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose schema and hashes were verified by ``open``."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """Open a bundle after checking its manifest and the SHA-256 of every file.

        Raises:
            BundleError: No manifest, a manifest of another schema, a file that is missing or
                altered, or one that the manifest does not name.
        """
        manifest = _read_manifest(folder)
        for entry in manifest.files:
            path = folder / entry.path
            if not path.is_file():
                raise BundleError(f"{path} is missing; build the bundle again")
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != entry.sha256:
                raise BundleError(
                    f"{path} was altered: sha256 {found}, the manifest says {entry.sha256}; "
                    "build the bundle again"
                )
        strangers = {p.name for p in folder.iterdir()} - {f.path for f in manifest.files}
        if strangers != {MANIFEST_NAME}:
            listed = ", ".join(sorted(strangers - {MANIFEST_NAME}))
            raise BundleError(f"{folder} holds files that its manifest does not name: {listed}")
        return cls(folder, manifest)

    def model_path(self, format_: Format) -> Path:
        """The model's file in a format.

        Raises:
            BundleError: The bundle has no such file.
        """
        for entry in self.manifest.files:
            if entry.role == "model" and entry.format == format_:
                return self.folder / entry.path
        raise BundleError(f"{self.folder} holds no model in the format {format_}")

    def path(self, role: Literal["weights", "golden", "parity"]) -> Path:
        """The file of a role that occurs once.

        Raises:
            BundleError: The bundle has no such file.
        """
        for entry in self.manifest.files:
            if entry.role == role:
                return self.folder / entry.path
        raise BundleError(f"{self.folder} holds no {role} file")


def find_bundles(folder: Path) -> list[Path]:
    """The folders directly below this one that hold a manifest, by name.

    Hidden ones are staged or just being replaced: an interrupted build may have left some.
    """
    found = (path.parent for path in folder.glob(f"*/{MANIFEST_NAME}"))
    return sorted(path for path in found if not path.name.startswith("."))


def file_entry(path: Path, **fields: Any) -> FileEntry:
    """The manifest's entry for an existing file."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return FileEntry(path=path.name, sha256=digest, size_bytes=len(content), **fields)


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target``; it goes away unless ``write_bundle`` moved it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_bundle(staging: Path, target: Path, manifest: Manifest) -> Bundle:
    """Seal a staged folder with its manifest and move it to ``target``, replacing a bundle there.

    Args:
        staging: A folder from ``staged`` that holds every file that the manifest names.
        target: Where the bundle shall be. What lies there must be a bundle or nothing.
        manifest: What the bundle says of itself.

    Raises:
        BundleError: ``target`` is something else than a bundle; it is left as it is.
    """
    if target.exists() and not (target / MANIFEST_NAME).is_file():
        raise BundleError(f"{target} exists and is no bundle: it is not overwritten")
    (staging / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n")
    staging.chmod(0o755)  # mkdtemp's 0700 would hide it from the service's user
    for path in staging.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        target.rename(old / target.name)
        try:
            staging.rename(target)
        except BaseException:
            (old / target.name).rename(target)
            raise
        finally:
            shutil.rmtree(old)
    else:
        staging.rename(target)
    return Bundle.open(target)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise BundleError(
            f"{folder} is no bundle: {MANIFEST_NAME} is missing; "
            "make one with: python -m export build CHECKPOINT --out DIR"
        )
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BundleError(f"{path} is not a manifest: {error}") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {manifest.schema_version}, this code reads "
            f"{SCHEMA_VERSION}; build the bundle again"
        )
    return manifest
