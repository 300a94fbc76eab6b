"""The output folder: parts that are written atomically, and the records of the finished parts.

    part-000000.parquet           the answers; readers of Parquet find nothing else here
    _quarantine.jsonl             rows that could not be scored, with the reason, if there are any
    _summary.json                 the summary of the finished run
    _score/manifest.json          the input, the model and the options of the run, and all parts
    _score/finished/NAME.json     the record of a finished part
    _score/quarantine/NAME.jsonl  its rows that could not be scored
    _score/tmp/                   files that are being written

On this machine's file system a file is written to ``tmp``, flushed to disk and renamed. For other
file systems it is written on this machine and uploaded as a whole; object stores show it once it is
complete. A part is finished if its record exists and its file has the recorded size. A part that is
computed again, because its actor died, replaces the file with an equal one.
"""

import errno
import fcntl
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import fsspec
import msgspec
from fsspec.implementations.local import LocalFileSystem

from service.score.errors import ScoreError
from service.score.parts import Part, UnreadableFile

MANIFEST, SUMMARY, QUARANTINE = "_score/manifest.json", "_summary.json", "_quarantine.jsonl"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
COPY_BYTES = 2**20
T = TypeVar("T")


class PartRecord(msgspec.Struct, frozen=True):
    """The record of a finished part.

    Attributes:
        name: The part's name.
        rows: The number of rows with an answer.
        quarantined: The number of rows without an answer.
        size_bytes: The size of the part's file.
        device: The device that computed it.
        provider: The runtime's name for the device.
        seconds: Time from the first byte read to the last byte written.
        peak_rss_bytes: The largest resident memory of the actor's process so far.
    """

    name: str
    rows: int
    quarantined: int
    size_bytes: int
    device: str
    provider: str
    seconds: float
    peak_rss_bytes: int


class RunManifest(msgspec.Struct, frozen=True):
    """What is scored with which model; a run can resume only if all of ``identity`` is the same.

    Attributes:
        identity: What the answers depend on, in words.
        part_rows: The intended number of rows in a part.
        key_schema: The Arrow schema of the key's column, serialized; empty without a key.
        parts: All parts, in order.
        unreadable: Files of the input that are in no part.
    """

    identity: dict[str, str]
    part_rows: int
    key_schema: bytes
    parts: tuple[Part, ...]
    unreadable: tuple[UnreadableFile, ...]


class OutputFolder:
    """The output folder, on any fsspec file system; every process creates its own instance."""

    def __init__(self, url: str) -> None:
        """Open a folder, which need not exist yet."""
        self.url = url
        try:
            self._filesystem, self._root = fsspec.core.url_to_fs(url)
        except (OSError, ValueError, ImportError) as error:
            raise ScoreError(
                f"the output {url} cannot be opened: {error}; expected a folder or a URL of an "
                "installed fsspec file system"
            ) from error
        self._is_local = isinstance(self._filesystem, LocalFileSystem)

    def path(self, name: str) -> str:
        """Return the path of a file within its file system."""
        return posixpath.join(self._root, name)

    def read_manifest(self) -> RunManifest | None:
        """Read the manifest of the run that wrote to this folder; None if there was no run.

        Raises:
            ScoreError: The folder contains other files, or is a file.
        """
        manifest = self.read(MANIFEST, RunManifest)
        if manifest is None and self._filesystem.exists(self._root):
            if not self._filesystem.isdir(self._root):
                raise ScoreError(f"the output {self.url} is a file; expected a folder to write to")
            names = [posixpath.basename(path.rstrip("/")) for path in self._list("")]
            if strangers := sorted(set(names) - {"_score"}):
                raise ScoreError(
                    f"the output {self.url} contains {', '.join(strangers[:5])} but no "
                    f"{MANIFEST}: it is not the output of a run and is not overwritten; name an "
                    "empty or new folder"
                )
        return manifest

    def write_manifest(self, manifest: RunManifest) -> None:
        """Write the manifest, which begins a run."""
        self.write(MANIFEST, msgspec.json.encode(manifest))

    def read_records(self, parts: tuple[Part, ...]) -> dict[str, PartRecord]:
        """Read the records of the finished parts, by name."""
        sizes = {posixpath.basename(path): size for path, size in self._sizes("").items()}
        found = {}
        recorded = {posixpath.basename(path) for path in self._sizes("_score/finished")}
        for part in parts:
            if f"{part.name}.json" not in recorded:
                continue
            record = self.read(_record_name(part.name), PartRecord)
            if record is not None and sizes.get(_file_name(part.name)) == record.size_bytes:
                found[part.name] = record
        return found

    def remove_run(self) -> None:
        """Remove the files that a run wrote, and no others; the manifest is removed last."""
        for path in self._sizes(""):
            name = posixpath.basename(path)
            is_part = name.startswith("part-") and name.endswith(".parquet")
            if is_part or name in (SUMMARY, QUARANTINE):
                self._filesystem.rm(path)
        for folder in ("finished", "quarantine", "tmp"):
            if self._filesystem.exists(self.path(f"_score/{folder}")):
                self._filesystem.rm(self.path(f"_score/{folder}"), recursive=True)
        self._filesystem.rm(self.path(MANIFEST))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock out other runs, but only on this machine's file system.

        Raises:
            ScoreError: Another run is writing here, or the folder cannot be created.
        """
        try:
            self._filesystem.makedirs(self.path("_score"), exist_ok=True)
        except OSError as error:
            raise ScoreError(f"the output {self.url} cannot be created: {error}") from error
        if not self._is_local:
            yield
            return
        with Path(self.path("_score/lock")).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ScoreError(
                    f"another run is writing to {self.url}; wait until it ends, or name "
                    "another output"
                ) from error
            # Remove files left unfinished by killed runs and, at the end, by killed actors.
            shutil.rmtree(self.path("_score/tmp"), ignore_errors=True)
            yield
            shutil.rmtree(self.path("_score/tmp"), ignore_errors=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[Path]:
        """Yield a path to write a file to; at the end the file is put in place under its name."""
        if not self._is_local:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / posixpath.basename(name)
                yield path
                self._filesystem.makedirs(posixpath.dirname(self.path(name)), exist_ok=True)
                self._filesystem.put_file(str(path), self.path(name))
            return
        target = Path(self.path(name))
        staging = Path(self.path("_score/tmp")) / uuid.uuid4().hex
        staging.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield staging
            with staging.open("rb") as file:
                os.fsync(file.fileno())
            staging.replace(target)
        finally:
            staging.unlink(missing_ok=True)

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically."""
        with self.stage(name) as path:
            path.write_bytes(content)

    def finish_part(self, record: PartRecord) -> None:
        """Record that a part's file is written, so that the part is not computed again."""
        self.write(_record_name(record.name), msgspec.json.encode(record))

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return int(self._filesystem.info(self.path(name))["size"])

    def collect_quarantine(self, manifest: RunManifest) -> None:
        """Write the quarantined rows of all parts, if there are any, to one file, in order."""
        names = {posixpath.basename(path) for path in self._sizes("_score/quarantine")}
        lines = [
            msgspec.json.encode({"file": file.file, "reason": file.reason}) + b"\n"
            for file in manifest.unreadable
        ]
        if not names and not lines:
            return
        with self.stage(QUARANTINE) as path, path.open("wb") as collected:
            collected.writelines(lines)
            for part in manifest.parts:
                if f"{part.name}.jsonl" in names:
                    source = self.path(quarantine_name(part.name))
                    with self._filesystem.open(source, "rb") as file:
                        shutil.copyfileobj(file, collected, COPY_BYTES)

    def _list(self, folder: str) -> list[str]:
        return [str(path) for path in self._filesystem.ls(self.path(folder), detail=False)]

    def _sizes(self, folder: str) -> dict[str, int]:
        """Return the size of each file in a folder by its path; empty if the folder is missing."""
        try:
            infos = self._filesystem.ls(self.path(folder), detail=True)
        except FileNotFoundError:
            return {}
        return {str(info["name"]): info["size"] for info in infos if info["type"] == "file"}

    def read(self, name: str, type_: type[T]) -> T | None:
        """Read a JSON file; return None if it does not exist.

        Raises:
            ScoreError: The file is damaged.
        """
        path = self.path(name)
        try:
            content = self._filesystem.cat_file(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return msgspec.json.decode(content, type=type_)
        except msgspec.DecodeError as error:
            raise ScoreError(
                f"{path} is damaged: {error}; start again with --restart, or use another folder"
            ) from error


def _file_name(part: str) -> str:
    return f"{part}.parquet"


def _record_name(part: str) -> str:
    return f"_score/finished/{part}.json"


def quarantine_name(part: str) -> str:
    """Return the name of the file for a part's quarantined rows."""
    return f"_score/quarantine/{part}.jsonl"


def is_full(error: BaseException) -> bool:
    """Whether an exception means that a disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in FULL
