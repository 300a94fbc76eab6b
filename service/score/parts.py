"""Divides the input into parts, the units of work: ``plan_parts``.

The same input always has the same parts, on every machine. The manifest of a run lists all parts.
"""

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import BinaryIO, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from export.bundle.manifest import Manifest, TensorSpec
from service.score.columns import InputColumns, check_columns, is_damage
from service.score.errors import ScoreError
from service.score.source import IDX_TYPES, Source, SourceFile

FOOTER_READERS = 8  # threads, since reading the footers of remote files is mostly waiting
# NumPy dtypes of the values in an idx file, by the third byte of the file.
IDX_DTYPES = dict(zip(IDX_TYPES, (">u1", ">i1", ">i2", ">i4", ">f4", ">f8"), strict=True))


class ParquetPart(msgspec.Struct, frozen=True, tag="parquet"):
    """Some adjacent row groups of one Parquet file; ``first_row`` counts within the file."""

    name: str
    file: str
    first_row: int
    rows: int
    first_group: int
    groups: int


class IdxPart(msgspec.Struct, frozen=True, tag="idx"):
    """Some adjacent rows of one idx file."""

    name: str
    file: str
    first_row: int
    rows: int


class ImagesPart(msgspec.Struct, frozen=True, tag="images", omit_defaults=True):
    """Some adjacent image files of the input: ``rows`` files from number ``first_file`` on.

    ``files`` are their names. The manifest omits them; they are filled in before the part is given
    to an actor.
    """

    name: str
    first_file: int
    rows: int
    files: tuple[str, ...] = ()


Part = ParquetPart | IdxPart | ImagesPart


class UnreadableFile(msgspec.Struct, frozen=True):
    """A file of the input that cannot be read at all, so that its rows cannot be counted."""

    file: str
    reason: str


class IdxHeader(msgspec.Struct, frozen=True):
    """The header of an idx file: the dtype of its values, its axes and the header's own size."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


class Plan(NamedTuple):
    """The parts of an input, the files in no part, and the key's column, if there is one."""

    parts: list[Part]
    unreadable: list[UnreadableFile]
    key: pa.Field | None = None


def plan_parts(
    source: Source, manifest: Manifest, mapping: InputColumns, key: str | None, part_rows: int
) -> Plan:
    """Divide an input into parts, and find the files that cannot be read.

    Args:
        source: The input.
        manifest: The model's manifest; the columns must fit its inputs.
        mapping: The columns of each input.
        key: The column that identifies a row, if any.
        part_rows: The number of rows in a part. A Parquet part has at least one whole row group.

    Raises:
        ScoreError: The columns, types or shapes do not fit the model, or no file can be read.
    """
    if source.format == "images":
        images: list[Part] = [
            ImagesPart(_name(number), first, min(part_rows, len(source.files) - first))
            for number, first in enumerate(range(0, len(source.files), part_rows))
        ]
        return Plan(images, [])
    parts, unreadable, numbers = list[Part](), list[UnreadableFile](), count()
    keys: list[pa.Field] = []
    read = _read_footer if source.format == "parquet" else _read_idx_file
    with ThreadPoolExecutor(FOOTER_READERS) as pool:
        heads = pool.map(lambda file: read(source, file), source.files)
        for file, head in zip(source.files, heads, strict=True):
            if isinstance(head, UnreadableFile):
                unreadable.append(head)
            elif isinstance(head, IdxHeader):
                _check_idx(file.name, head, manifest)
                parts += _divide_rows(file.name, head.shape[0], part_rows, numbers)
            else:
                schema, group_rows = head
                check_columns(file.name, schema, manifest, mapping, key)
                keys += [] if key is None else [schema.field(key)]
                _check_one_type(file.name, keys)
                parts += _divide_groups(file.name, group_rows, part_rows, numbers)
    if len(unreadable) == len(source.files):
        raise ScoreError(
            f"no file of the input {source.location.url} can be read: {unreadable[0].file}: "
            f"{unreadable[0].reason}"
        )
    return Plan(parts, unreadable, keys[0] if keys else None)


def read_idx_header(file: BinaryIO) -> IdxHeader:
    """Read the header of an idx file.

    Raises:
        ValueError: The file does not begin with such a header.
    """
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX_DTYPES or not head[3]:  # noqa: PLR2004
        raise ValueError(f"it begins with {head!r}; expected the four bytes 0, 0, type, axes")
    axes = file.read(4 * head[3])
    if len(axes) < 4 * head[3]:
        raise ValueError(f"it ends within its header, after {4 + len(axes)} bytes")
    shape = struct.unpack(f">{head[3]}I", axes)
    return IdxHeader(IDX_DTYPES[head[2]], shape, 4 + len(axes))


def _check_one_type(file: str, keys: list[pa.Field]) -> None:
    if keys and keys[-1].type != keys[0].type:
        raise ScoreError(
            f"{file} has a key of the type {keys[-1].type} and the files before it of "
            f"{keys[0].type}; expected one type"
        )


def _name(number: int) -> str:
    return f"part-{number:06d}"


def _read_footer(source: Source, file: SourceFile) -> tuple[pa.Schema, list[int]] | UnreadableFile:
    """Read the schema of a Parquet file and the number of rows in each of its row groups."""
    try:
        with source.location.open(file.name) as opened, pq.ParquetFile(opened) as parquet:
            metadata = parquet.metadata
            groups = range(metadata.num_row_groups)
            rows = [metadata.row_group(group).num_rows for group in groups]
            return parquet.schema_arrow, rows
    except Exception as error:
        if not is_damage(error):
            raise ScoreError(f"{file.name} of the input cannot be opened: {error}") from error
        return UnreadableFile(file.name, f"the file is not a complete Parquet file: {error}")


def _read_idx_file(source: Source, file: SourceFile) -> IdxHeader | UnreadableFile:
    try:
        with source.location.open(file.name) as opened:
            return read_idx_header(opened)
    except Exception as error:
        if isinstance(error, ValueError) or is_damage(error):
            return UnreadableFile(file.name, f"the file is not an idx file: {error}")
        raise ScoreError(f"{file.name} of the input cannot be opened: {error}") from error


def _check_idx(name: str, head: IdxHeader, manifest: Manifest) -> None:
    """Check that the dtype and the shape fit the model's only input."""
    if len(manifest.inputs) > 1:
        raise ScoreError(
            f"an idx file contains one input, but {manifest.name} takes "
            f"{', '.join(map(str, manifest.inputs))}; score Parquet files instead"
        )
    spec = manifest.inputs[0]
    shape_fits = len(head.shape) == len(spec.shape) and all(
        low <= size <= high
        for size, (low, high) in zip(head.shape[1:], spec.sample_bounds, strict=True)
    )
    if not shape_fits or not np.can_cast(np.dtype(head.dtype), spec.dtype, "safe"):
        raise ScoreError(
            f"{name} contains {np.dtype(head.dtype).name} {list(head.shape)}; {manifest.name} "
            f"takes {_in_words(spec)}; if the folder also has other files, select the right ones "
            "with a pattern"
        )


def _in_words(spec: TensorSpec) -> str:
    return f"{spec.name}, {spec.datatype} {list(spec.shape)}"


def _divide_rows(file: str, rows: int, part_rows: int, numbers: Iterator[int]) -> Iterator[Part]:
    for first in range(0, rows, part_rows):
        yield IdxPart(_name(next(numbers)), file, first, min(part_rows, rows - first))


def _divide_groups(
    file: str, group_rows: list[int], part_rows: int, numbers: Iterator[int]
) -> Iterator[Part]:
    """Combine adjacent row groups as long as they have at most ``part_rows`` rows together."""
    first_row, first_group, rows = 0, 0, 0
    for group, more in enumerate(group_rows):
        if rows and rows + more > part_rows:
            groups = group - first_group
            yield ParquetPart(_name(next(numbers)), file, first_row, rows, first_group, groups)
            first_row, first_group, rows = first_row + rows, group, 0
        rows += more
    if rows:
        groups = len(group_rows) - first_group
        yield ParquetPart(_name(next(numbers)), file, first_row, rows, first_group, groups)
