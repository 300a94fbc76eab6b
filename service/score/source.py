"""Lists the input's files, on any fsspec file system: ``find_source``."""

import hashlib
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, Literal, cast, get_args

import fsspec
from fsspec.implementations.local import LocalFileSystem

from service.score.errors import ScoreError

Format = Literal["parquet", "images", "idx"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[Format, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq"),
    "images": (".png", ".jpg", ".jpeg"),
    "idx": ("-ubyte", ".idx", "-ubyte.gz", ".idx.gz"),
}
MAGIC_BYTES = 4
MAGIC: dict[bytes, Format] = {b"PAR1": "parquet", b"\x89PNG": "images"}
IDX_TYPES = (0x08, 0x09, 0x0B, 0x0C, 0x0D, 0x0E)
# Keys in which file systems give a file's last change or version, the most reliable first.
CHANGED = ("etag", "ETag", "mtime", "LastModified", "last_modified", "updated", "date_time")
NAMED = 5  # files in a message


@dataclass(frozen=True)
class SourceFile:
    """One file of the input.

    Attributes:
        name: Relative to the source's ``base``, with slashes.
        size_bytes: Its size; None if the file system does not provide it.
        changed: Its last change or its version, as a string from the file system.
    """

    name: str
    size_bytes: int | None
    changed: str


@dataclass(frozen=True)
class Location:
    """The folder of the input, which every actor opens by itself."""

    url: str
    base: str

    def filesystem(self) -> Any:
        """Return the file system; each process has its own."""
        return _open_filesystem(self.url)[0]

    def path(self, name: str) -> str:
        """Return the path of a file within its file system."""
        return posixpath.join(self.base, name) if self.base else name

    @property
    def is_local(self) -> bool:
        """Whether the files are on this machine's file system."""
        return isinstance(self.filesystem(), LocalFileSystem)

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; a gzip file (.gz) is decompressed while it is read."""
        return cast(
            "BinaryIO", self.filesystem().open(self.path(name), "rb", compression=_packing(name))
        )


@dataclass(frozen=True)
class Source:
    """The input: its files, sorted by name.

    Attributes:
        location: The location of the files.
        format: The format of the files.
        files: The files to score.
        skipped: The number of other files, which have other suffixes.
    """

    location: Location
    format: Format
    files: tuple[SourceFile, ...]
    skipped: int

    @property
    def sha256(self) -> str:
        """The fingerprint of the files' names, sizes and last changes."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.name}\0{file.size_bytes}\0{file.changed}\n".encode())
        return digest.hexdigest()


def find_source(url: str, wanted: Format | None) -> Source:
    """List the files of an input: a file, a folder and its subfolders, or a pattern with ``*``.

    Files and folders whose names begin with "." or "_" are omitted, as in other readers of Parquet.

    Args:
        url: A path or an fsspec URL.
        wanted: The format. None: detect it from the files' suffixes, or from a single file's first
            bytes.

    Raises:
        ScoreError: There are no such files, or files of several formats.
    """
    try:
        filesystem, root = _open_filesystem(url)
        base, found = _list(filesystem, root)
    except (OSError, ValueError, ImportError) as error:
        raise ScoreError(
            f"the input {url} cannot be listed: {error}; expected a file, a folder, a pattern or a "
            "URL of an installed fsspec file system"
        ) from error
    if not found:
        raise ScoreError(
            f"there is no file at the input {url}; expected a Parquet, PNG, JPEG or idx file, or a "
            "folder of them"
        )
    location = Location(url, base)
    chosen = wanted or _detect(url, location, list(found))
    one = len(found) == 1
    names = sorted(n for n in found if one or n.lower().endswith(SUFFIXES[chosen]))
    if not names:
        raise ScoreError(
            f"no file of the input {url} ends in {' or '.join(SUFFIXES[chosen])}; its files: "
            f"{_quote(found)}"
        )
    files = tuple(_describe(name, found[name]) for name in names)
    return Source(location, chosen, files, len(found) - len(files))


@lru_cache(maxsize=8)
def _open_filesystem(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path within it.

    File systems are cached: when an archive's is garbage-collected, it closes its open files.
    """
    filesystem, root = fsspec.core.url_to_fs(url)
    return filesystem, root


def _list(filesystem: Any, root: str) -> tuple[str, dict[str, Mapping[str, Any]]]:
    """Return the folder that names are relative to, and the information on each visible file."""
    if "*" in root or "?" in root:
        base = posixpath.dirname(root[: min(root.find(c) for c in "*?" if c in root)])
        infos = filesystem.glob(root, detail=True)
    elif filesystem.isdir(root):
        base, infos = root.rstrip("/"), filesystem.find(root, detail=True)
    elif filesystem.exists(root):
        base, infos = posixpath.dirname(root), {root: filesystem.info(root)}
        return base, {posixpath.basename(root): infos[root]}
    else:
        return root, {}
    files = {
        (posixpath.relpath(path, base) if base else path): info
        for path, info in infos.items()
        if info["type"] == "file"
    }
    return base, {name: info for name, info in files.items() if not _is_hidden(name)}


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/"))


def _detect(url: str, location: Location, names: list[str]) -> Format:
    kinds = {
        kind: sum(name.lower().endswith(suffixes) for name in names)
        for kind, suffixes in SUFFIXES.items()
    }
    present = [kind for kind, count in kinds.items() if count]
    if len(present) > 1:
        counts = ", ".join(f"{kinds[kind]} of {kind}" for kind in present)
        raise ScoreError(
            f"the input {url} contains files of several formats ({counts}); expected one: choose "
            f"it with --format {'|'.join(present)}"
        )
    if present:
        return present[0]
    if len(names) == 1:
        with location.open(names[0]) as file:
            head = file.read(MAGIC_BYTES)
        if head[:2] == b"\0\0" and head[2] in IDX_TYPES:
            return "idx"
        if head in MAGIC or head[:2] == b"\xff\xd8":
            return MAGIC.get(head, "images")
    raise ScoreError(
        f"the format of the input {url} cannot be determined from the names of its files: "
        f"{_quote(names)}; set it with --format {'|'.join(FORMATS)}"
    )


def _describe(name: str, info: Mapping[str, Any]) -> SourceFile:
    changed = next((str(info[key]) for key in CHANGED if info.get(key) is not None), "")
    return SourceFile(name, info.get("size"), changed)


def _packing(name: str) -> str | None:
    return "gzip" if name.lower().endswith(".gz") else None


def _quote(names: Iterable[str]) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    return ", ".join(shown[:NAMED]) + more
