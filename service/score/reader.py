"""Reads the rows of a part as inputs for the model: ``PartReader``."""

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from export.bundle.manifest import Manifest
from export.bundle.metrics import Array, Arrays
from service.adapters.tensors import TensorsAdapter
from service.protocol.errors import ServiceError
from service.protocol.tensors import sample_bytes
from service.score.answers import NAMES
from service.score.columns import InputColumns, find_refused, is_damage, read_rows
from service.score.errors import ScoreError
from service.score.parts import IdxPart, ImagesPart, ParquetPart, Part, read_idx_header
from service.score.source import Location

# The most rows, and the most bytes of values, that are converted at once.
CHUNK_ROWS, CHUNK_BYTES = 4096, 16 * 2**20
READ_BYTES = 2**20  # of a Parquet column at once


class BadRows(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the quarantine: one row that was not scored, or several that cannot be read.

    Attributes:
        file: The input's file.
        row: The number of the first row in the file, from 0.
        rows: The number of rows.
        reason: What came, what was expected, what to do.
        key: The row's key, if a column was named.
    """

    file: str
    row: int
    rows: int
    reason: str
    key: str | None = None


@dataclass(frozen=True)
class Chunk:
    """Rows of one shape: the columns that identify them, and the inputs by name, [N, ...]."""

    ids: pa.RecordBatch
    inputs: Arrays


class PartReader:
    """Reads parts of one input."""

    def __init__(
        self,
        location: Location,
        mapping: InputColumns,
        key: str | None,
        key_type: pa.DataType | None,
        batch_size: int,
        max_pixels: int,
    ) -> None:
        """Set the location of the input and how it is read.

        Args:
            location: The location of the input's files.
            mapping: The columns of each input.
            key: The column that identifies a row, if any.
            key_type: The Arrow type of that column.
            batch_size: The number of rows in one batch of the model; chunks are multiples of it.
            max_pixels: The largest width x height of a picture.
        """
        self._location, self._mapping, self._key = location, mapping, key
        self._batch_size, self._max_pixels = batch_size, max_pixels
        keys = [] if key_type is None else [pa.field("key", key_type)]
        self.id_schema = pa.schema([("file", NAMES), ("row", pa.int64()), *keys])

    def read(
        self, part: Part, manifest: Manifest, adapter: TensorsAdapter
    ) -> Iterator[Chunk | BadRows]:
        """Read a part in order; every row is in exactly one chunk or one ``BadRows``.

        Raises:
            ScoreError: The file cannot be opened or read, for reasons other than its content.
        """
        if isinstance(part, ParquetPart):
            found = self._read_parquet(part, manifest, adapter)
        elif isinstance(part, IdxPart):
            found = self._read_idx(part, manifest)
        else:
            found = self._read_images(part, manifest, adapter)
        file = part.files[0] if isinstance(part, ImagesPart) else part.file
        try:
            yield from found
        except (OSError, pa.ArrowException) as error:
            raise ScoreError(f"{file} of the input cannot be read: {error}") from error

    def _chunk_rows(self, manifest: Manifest) -> int:
        """Return the number of rows in a chunk, a multiple of the batch size."""
        row_bytes = sum(sample_bytes(spec) for spec in manifest.inputs)
        rows = min(CHUNK_ROWS, CHUNK_BYTES // row_bytes)
        return max(1, rows // self._batch_size) * self._batch_size

    def _ids(self, file: str, rows: Array, keys: pa.Array | None) -> pa.RecordBatch:
        indices = pa.array(np.zeros(len(rows), np.int32))
        names = pa.DictionaryArray.from_arrays(indices, pa.array([file]))
        columns = [names, pa.array(rows, pa.int64()), *([] if keys is None else [keys])]
        return pa.RecordBatch.from_arrays(columns, schema=self.id_schema)

    def _read_parquet(
        self, part: ParquetPart, manifest: Manifest, adapter: TensorsAdapter
    ) -> Iterator[Chunk | BadRows]:
        done, batches = 0, None
        with ExitStack() as stack:
            while True:
                try:
                    batches = batches or self._open_parquet(part, manifest, stack)
                    batch = next(batches, None)
                except Exception as error:
                    if not is_damage(error):
                        raise
                    reason = f"the file is damaged from about this row on: {error}"
                    yield BadRows(part.file, part.first_row + done, part.rows - done, reason)
                    return
                if batch is None:
                    break
                yield from self._convert(batch, part.first_row + done, part, manifest, adapter)
                done += len(batch)
        if done != part.rows:
            raise ScoreError(
                f"{part.file} has {done} rows in {part.name} and its footer says {part.rows}: the "
                "file was replaced; use --restart to start again"
            )

    def _open_parquet(
        self, part: ParquetPart, manifest: Manifest, stack: ExitStack
    ) -> Iterator[pa.RecordBatch]:
        name = part.file
        source = (
            self._location.path(name)
            if self._location.is_local
            else stack.enter_context(self._location.open(name))
        )
        # Without pre_buffer, columns are read in small steps even from large row groups.
        parquet = stack.enter_context(
            pq.ParquetFile(source, pre_buffer=False, buffer_size=READ_BYTES)
        )
        columns = [column for names in self._mapping.values() for column in names]
        columns += [] if self._key is None else [self._key]
        return iter(
            parquet.iter_batches(
                batch_size=self._chunk_rows(manifest),
                row_groups=range(part.first_group, part.first_group + part.groups),
                columns=columns,
                use_threads=False,
            )
        )

    def _convert(
        self,
        batch: pa.RecordBatch,
        first_row: int,
        part: ParquetPart,
        manifest: Manifest,
        adapter: TensorsAdapter,
    ) -> Iterator[Chunk | BadRows]:
        def decode(content: bytes) -> Arrays:
            return adapter.decode_image(content, self._max_pixels)

        groups, reasons = read_rows(batch, manifest, self._mapping, decode)
        keys = None if self._key is None else batch.column(self._key)
        for row in sorted(reasons):
            key = None if keys is None else str(keys[row].as_py())
            yield BadRows(part.file, first_row + row, 1, reasons[row], key)
        for group in groups:
            taken = None if keys is None else keys.take(pa.array(group.index))
            yield Chunk(self._ids(part.file, first_row + group.index, taken), group.inputs)

    def _read_idx(self, part: IdxPart, manifest: Manifest) -> Iterator[Chunk | BadRows]:
        spec, step = manifest.inputs[0], self._chunk_rows(manifest)
        with self._location.open(part.file) as file:
            head = read_idx_header(file)
            dtype, shape = np.dtype(head.dtype), head.shape[1:]
            row_bytes = math.prod(shape) * dtype.itemsize
            start = head.size_bytes + part.first_row * row_bytes
            _skip(file, start - file.tell())
            for done in range(0, part.rows, step):
                wanted = min(step, part.rows - done)
                content = _read_exactly(file, wanted * row_bytes)
                whole = len(content) // row_bytes
                first = part.first_row + done
                values = np.frombuffer(content[: whole * row_bytes], dtype)
                inputs = {spec.name: values.reshape(whole, *shape).astype(spec.dtype, copy=False)}
                if whole:
                    yield from self._check_idx(part.file, first, inputs, manifest)
                if whole < wanted:
                    rest = part.rows - done - whole
                    reason = f"the file ends before this row, its header says {head.shape[0]} rows"
                    yield BadRows(part.file, first + whole, rest, reason)
                    return

    def _check_idx(
        self, file: str, first: int, inputs: Arrays, manifest: Manifest
    ) -> Iterator[Chunk | BadRows]:
        refused = find_refused(inputs, manifest)
        for position in sorted(refused):
            yield BadRows(file, first + position, 1, refused[position])
        count = len(next(iter(inputs.values())))
        index = np.array([row for row in range(count) if row not in refused], np.int64)
        if len(index):
            kept = {name: array[index] for name, array in inputs.items()} if refused else inputs
            yield Chunk(self._ids(file, first + index, None), kept)

    def _read_images(
        self, part: ImagesPart, manifest: Manifest, adapter: TensorsAdapter
    ) -> Iterator[Chunk | BadRows]:
        name, step = manifest.inputs[0].name, self._chunk_rows(manifest)
        for start in range(0, len(part.files), step):
            files, samples = list[str](), list[Array]()
            for file in part.files[start : start + step]:
                with self._location.open(file) as opened:
                    content = opened.read()
                try:
                    samples.append(adapter.decode_image(content, self._max_pixels)[name])
                    files.append(file)
                except ServiceError as error:
                    yield BadRows(file, 0, 1, str(error))
            if files:
                names = pa.array(files).dictionary_encode().cast(NAMES)
                rows = pa.array(np.zeros(len(files), np.int64))
                ids = pa.RecordBatch.from_arrays([names, rows], schema=self.id_schema)
                yield Chunk(ids, {name: np.concatenate(samples)})


def _skip(file: BinaryIO, size: int) -> None:
    """Skip ``size`` bytes, or fewer if the compressed data are damaged before that point."""
    try:
        file.seek(size, os.SEEK_CUR)
    except Exception as error:
        if not is_damage(error):
            raise


def _read_exactly(file: BinaryIO, size: int) -> bytes:
    """Read ``size`` bytes, or fewer if the file ends or its compressed data are damaged."""
    content = bytearray()
    while len(content) < size:
        try:
            more = file.read(size - len(content))
        except Exception as error:
            if not is_damage(error):
                raise
            break
        if not more:
            break
        content += more
    return bytes(content)
