"""Read and write bundles: folders whose manifest lists and hashes every file in them.

    manifest.json       the description; written last, so that a manifest means a complete bundle
    model.onnx          the model for the service; model.fp16.onnx and model.int8.onnx likewise
    model.ts            the same model as traced TorchScript (deprecated by PyTorch)
    model.frozen.ts     the same, frozen
    model.pt2           the same model as a program of torch.export
    weights.safetensors the checkpoint's own weights, so that parity can be proven again anywhere
    golden.npz          a few real samples with the reference's outputs (see ``golden``)
    guard.npz           statistics of the training images, if known (``mnist.ood_detector``)
    parity.json         every figure of the parity gate, with tolerances
    model.features.onnx  the part of model.onnx up to the first activation, for networks of one
                        image that have one; its samples are in golden.features.npz
    model.sig           a signature of all the above (see ``signature``), if the bundle is signed

This module does not import torch; the manifest's schema is in ``export.bundle.manifest``.
"""

import glob
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from export.bundle.manifest import SCHEMA_VERSION, BundleError, FileEntry, Manifest

MANIFEST_NAME = "manifest.json"
# The manifest cannot list this file, because the signature covers the manifest.
SIGNATURE_NAME = "model.sig"
TRACES = ("model.onnx", "golden.npz", "parity.json")
Role = Literal["weights", "golden", "parity", "guard", "features", "features-golden"]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose schema and hashes ``open`` has verified."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """Open a bundle after checking its manifest and the SHA-256 of every file.

        Raises:
            BundleError: There is no manifest, it has another schema, a file is missing or altered,
                or the manifest does not list a file.
        """
        manifest = _read_manifest(folder)
        for entry in manifest.files:
            path = folder / entry.path
            if not path.is_file():
                raise BundleError(f"{path} is missing; build the bundle again")
            _verified_content(path, entry)
        named = {f.path for f in manifest.files} | {MANIFEST_NAME, SIGNATURE_NAME}
        if strangers := {p.name for p in folder.iterdir()} - named:
            listed = ", ".join(sorted(strangers))
            raise BundleError(f"{folder} contains files that its manifest does not list: {listed}")
        return cls(folder, manifest)

    @property
    def variants(self) -> dict[str, Path]:
        """The model's files by variant: onnx, onnx-fp16, torchscript, ..."""
        return {e.variant: self.folder / e.path for e in self.manifest.files if e.variant}

    def model_path(self, variant: str) -> Path:
        """The path of a variant's model file.

        Raises:
            BundleError: The bundle has no such file; the message says why, if that is known.
        """
        if variant not in self.variants:
            why = self.manifest.not_built.get(variant, f"it has {', '.join(self.variants)}")
            raise BundleError(f"{self.folder} has no {variant} model: {why}")
        return self.variants[variant]

    def path(self, role: Role) -> Path:
        """The path of the file with a role that occurs once.

        Raises:
            BundleError: The bundle has no such file.
        """
        for entry in self.manifest.files:
            if entry.role == role:
                return self.folder / entry.path
        raise BundleError(f"{self.folder} has no {role} file")

    def read(self, path: Path) -> bytes:
        """Read a file of the bundle and verify its SHA-256 again.

        Run a model from these bytes: the file may have been replaced since ``open``.

        Args:
            path: A path from ``model_path`` or ``path``.

        Raises:
            BundleError: The file is missing, altered, or not in the manifest.
        """
        for entry in self.manifest.files:
            if self.folder / entry.path == path:
                return _verified_content(path, entry)
        raise BundleError(f"{path} is not listed in the manifest of {self.folder}")


def find_bundles(folder: Path) -> list[Path]:
    """The folders directly below this one that contain a manifest, sorted by name.

    Hidden folders are skipped: they are staged or being replaced, or left by an interrupted build.

    Raises:
        BundleError: A folder has files of a bundle, but no manifest.
    """
    found = []
    for path in sorted(folder.glob("[!.]*/")):
        if (path / MANIFEST_NAME).is_file():
            found.append(path)
        elif any((path / name).exists() for name in TRACES):
            raise BundleError(
                f"{path} contains a bundle's files, but no {MANIFEST_NAME}; build the bundle "
                "again, or remove the folder"
            )
    return found


def _verified_content(path: Path, entry: FileEntry) -> bytes:
    """Read a file; raise BundleError unless its SHA-256 is the manifest's."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise BundleError(
            f"{path} was altered: SHA-256 {found}, expected {entry.sha256} from the manifest; "
            "build the bundle again"
        )
    return content


def file_entry(path: Path, **fields: Any) -> FileEntry:
    """The manifest's entry for an existing file."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return FileEntry(path=path.name, sha256=digest, size_bytes=len(content), **fields)


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A temporary folder next to ``target``; it is removed unless ``write_bundle`` moved it.

    Folders left by killed builds of the same target are removed first.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    staging = _hidden_folder(target, "new")
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _hidden_folder(target: Path, purpose: str) -> Path:
    """Make a folder next to ``target``, named by this machine, this process and its start time."""
    prefix = f".{target.name}.{purpose}-{_machine()}-{os.getpid()}-{_start_of(os.getpid())}."
    return Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))


def _sweep(target: Path) -> None:
    """Remove folders left by builds of ``target`` on this machine whose processes have ended.

    A bundle that such a build was replacing is restored if ``target`` does not exist.
    """
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(new|old)-{_machine()}-(\d+)-(\d+)\.")
    for folder in target.parent.glob(f".{glob.escape(target.name)}.*"):
        found = pattern.match(folder.name)
        if found is None or _start_of(int(found[2])) == int(found[3]):
            continue
        replaced = folder / target.name
        if found[1] == "old" and replaced.is_dir() and not target.exists():
            replaced.rename(target)
        shutil.rmtree(folder, ignore_errors=True)


def _machine() -> str:
    """Eight digits for this machine or container, since several may share the folder."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _start_of(pid: int) -> int:
    """The start time of a process in clock ticks, since process ids are reused.

    The result is 0 if the process has ended; 1 if it runs and the system has no /proc.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if Path("/proc/self/stat").exists():
            return 0
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return 0
        except OSError:
            pass
        return 1
    return int(status.rpartition(")")[2].split()[19])


def write_bundle(staging: Path, target: Path, manifest: Manifest) -> Bundle:
    """Write the manifest to a staged folder and move it to ``target``, replacing a bundle there.

    Args:
        staging: A folder from ``staged`` that contains every file that the manifest lists.
        target: The bundle's folder, which must be a bundle or not exist.
        manifest: The bundle's manifest.

    Raises:
        BundleError: ``target`` exists and is not a bundle; it is not changed.
    """
    if target.exists() and not (target / MANIFEST_NAME).is_file():
        raise BundleError(f"{target} exists and is not a bundle: it is not overwritten")
    (staging / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n")
    staging.chmod(0o755)  # mkdtemp's 0700 would hide it from the service's user
    for path in staging.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if target.exists():
        old = _hidden_folder(target, "old")
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
            f"{folder} is not a bundle: {MANIFEST_NAME} is missing; "
            "make one with: python -m export build CHECKPOINT --out DIR"
        )
    try:
        content = json.loads(path.read_bytes())
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version not in (None, SCHEMA_VERSION):
            raise BundleError(
                f"{path} has schema version {version}, this code reads {SCHEMA_VERSION}; "
                "build the bundle again"
            )
        return Manifest.model_validate(content)
    except (OSError, ValidationError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not a manifest: {error}") from error
