"""Scores parts one after the other with a verified model: ``PartScorer``, one in each actor."""

import io
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from export.bundle.manifest import BundleError
from export.bundle.metrics import Arrays
from export.bundle.session import DeviceUnavailableError
from service.models.loader import (
    VerificationError,
    VerifiedModel,
    load_model,
    verify_golden,
)
from service.score.answers import NOT_FINITE, AnswerColumns
from service.score.columns import InputColumns
from service.score.errors import ScoreError
from service.score.output import OutputFolder, PartRecord, is_full, quarantine_name
from service.score.parts import Part
from service.score.reader import BadRows, Chunk, PartReader
from service.score.source import Location
from service.settings import Settings

ROW_GROUP_ROWS = 65_536  # of the output
KIB = 1024


@dataclass(frozen=True)
class Job:
    """What an actor needs to score parts.

    Attributes:
        bundle: The bundle's folder.
        bundle_files: Its files by name, for actors on other machines; None: read the folder.
        settings: Device, variant and threads.
        proof: SHA-256 of the bundle's manifest.
        location: The location of the input.
        output: The output folder's URL.
        mapping: The columns of each input.
        key: The column that identifies a row, if any.
        key_type: The Arrow type of that column.
        batch_size: The number of rows in one batch of the model.
    """

    bundle: Path
    settings: Settings
    proof: str
    location: Location
    output: str
    mapping: InputColumns
    key: str | None
    key_type: pa.DataType | None
    batch_size: int
    bundle_files: dict[str, bytes] | None = field(default=None, repr=False)


class PartScorer:
    """Holds a verified model, and scores parts with it."""

    def __init__(self, job: Job) -> None:
        """Open the bundle and check its golden samples, as a worker of the service does.

        Raises:
            ScoreError: The model is missing, is not proven, or answers wrongly on this device.
        """
        pa.set_cpu_count(1)  # an actor has one core
        self._job = job
        self._model = _load(job)
        self._output = OutputFolder(job.output)
        self._reader = PartReader(
            job.location,
            job.mapping,
            job.key,
            job.key_type,
            job.batch_size,
            job.settings.max_image_pixels,
        )
        self._columns = AnswerColumns(self._model.manifest, job.proof, self._reader.id_schema)

    def score(self, part: Part) -> PartRecord:
        """Score a part, write its files, and record it as finished.

        Raises:
            ScoreError: The part cannot be read or written, or the engine fails.
        """
        started_s = time.perf_counter()
        rows, name = 0, f"{part.name}.parquet"
        try:
            with _Quarantine() as quarantine:
                with (
                    self._output.stage(name) as path,
                    self._open_writer(path) as writer,
                ):
                    for batch in self._answer(part, quarantine):
                        writer.write_batch(batch, row_group_size=ROW_GROUP_ROWS)
                        rows += len(batch)
                quarantine.write_to(self._output, part.name)
            if rows + quarantine.rows != part.rows:
                raise ScoreError(
                    f"{part.name} has {part.rows} rows but produced {rows} answers and "
                    f"{quarantine.rows} quarantined rows: the input changed, or this is a bug"
                )
            record = PartRecord(
                part.name,
                rows,
                quarantine.rows,
                self._output.size(name),
                self._model.engine.device,
                self._model.engine.provider,
                time.perf_counter() - started_s,
                peak_rss_bytes(),
            )
            self._output.finish_part(record)
        except OSError as error:
            full = "; free some space there, then run the same command" if is_full(error) else ""
            raise ScoreError(
                f"{part.name} cannot be written to {self._output.url}: {error}{full}"
            ) from error
        return record

    def _open_writer(self, path: Path) -> pq.ParquetWriter:
        # Dictionaries of floating-point numbers and of row numbers would only cost time and space.
        schema = self._columns.schema
        named = [
            field.name
            for field in schema
            if pa.types.is_dictionary(field.type) or field.name == "key"
        ]
        return pq.ParquetWriter(path, schema, use_dictionary=named)

    def _answer(self, part: Part, quarantine: "_Quarantine") -> Iterator[pa.RecordBatch]:
        """Yield the output columns of a part's rows, some batches at a time."""
        chunks = self._read_good(part, quarantine)
        for chunk in _fill_batches(chunks, self._job.batch_size):
            outputs, failed = self._run(chunk.inputs)
            ids = chunk.ids
            if failed:
                _quarantine_all(ids, failed, quarantine)
                kept = np.array([row for row in range(len(ids)) if row not in failed], np.int64)
                if not len(kept):
                    continue
                ids = ids.take(pa.array(kept))
            batch, finite = self._columns.encode(ids, outputs)
            if not finite.all():
                wrong = dict.fromkeys(np.flatnonzero(~finite).tolist(), NOT_FINITE)
                _quarantine_all(ids, wrong, quarantine)
            yield batch

    def _read_good(self, part: Part, quarantine: "_Quarantine") -> Iterator[Chunk]:
        model = self._model
        for found in self._reader.read(part, model.manifest, model.adapter):
            if isinstance(found, BadRows):
                quarantine.add(found)
            else:
                yield found

    def _run(self, inputs: Arrays) -> tuple[Arrays, dict[int, str]]:
        """Run samples of one shape in batches.

        Returns:
            The outputs of the samples that could be run, and the reasons by row for the others.
        """
        count, size = len(next(iter(inputs.values()))), self._job.batch_size
        parts, failed = list[Arrays](), dict[int, str]()
        for start in range(0, count, size):
            batch = {name: array[start : start + size] for name, array in inputs.items()}
            try:
                parts.append(self._model.engine(batch))
            except Exception as error:  # noqa: BLE001 - runtimes raise many kinds of exceptions
                found, wrong = self._run_one_by_one(batch, error)
                parts += found
                failed |= {start + row: reason for row, reason in wrong.items()}
        if not parts:
            return {}, failed
        if len(parts) == 1:
            return parts[0], failed
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}, failed

    def _run_one_by_one(
        self, batch: Arrays, error: Exception
    ) -> tuple[list[Arrays], dict[int, str]]:
        """Find the samples that make the engine fail, if the engine still works.

        Raises:
            ScoreError: The engine is broken, since its golden samples fail, too.
        """
        model = self._model
        try:
            verify_golden(
                model.manifest.name,
                model.engine,
                model.samples,
                model.manifest.outputs,
                model.tolerance,
            )
        except VerificationError as broken:
            raise ScoreError(f"the engine failed: {error}; then {broken}") from broken
        parts, failed = list[Arrays](), dict[int, str]()
        for row in range(len(next(iter(batch.values())))):
            try:
                parts.append(
                    model.engine({name: array[row : row + 1] for name, array in batch.items()})
                )
            except Exception as reason:  # noqa: BLE001 - as above
                failed[row] = f"the model cannot compute this row: {reason}"
        return parts, failed


class _Quarantine:
    """Collects the rows of a part that were not scored in a temporary file, to save memory."""

    def __init__(self) -> None:
        self.rows = 0
        self._file: io.BufferedRandom | tempfile._TemporaryFileWrapper[bytes] | None = None

    def __enter__(self) -> "_Quarantine":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, bad: BadRows) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self.rows += bad.rows
        self._file.write(msgspec.json.encode(bad) + b"\n")

    def write_to(self, output: OutputFolder, part: str) -> None:
        if self._file is None:
            return
        self._file.seek(0)
        with output.stage(quarantine_name(part)) as path, path.open("wb") as file:
            while content := self._file.read(2**20):
                file.write(content)


def _quarantine_all(ids: pa.RecordBatch, reasons: dict[int, str], quarantine: _Quarantine) -> None:
    for position, reason in reasons.items():
        row = ids.slice(position, 1).to_pylist()[0]
        key = str(row["key"]) if "key" in row else None
        quarantine.add(BadRows(row["file"], row["row"], 1, reason, key))


def _fill_batches(chunks: Iterator[Chunk], batch_size: int) -> Iterator[Chunk]:
    """Regroup rows of one shape across chunks, so that all batches but the last are full."""
    waiting: dict[tuple[tuple[int, ...], ...], Chunk] = {}
    for chunk in chunks:
        shapes = tuple(array.shape[1:] for array in chunk.inputs.values())
        whole = _join(waiting.pop(shapes), chunk) if shapes in waiting else chunk
        count = len(whole.ids)
        full = count // batch_size * batch_size
        if full:
            yield _slice(whole, 0, full)
        if full < count:
            waiting[shapes] = _slice(whole, full, count)
    yield from waiting.values()


def _join(first: Chunk, second: Chunk) -> Chunk:
    ids = pa.Table.from_batches([first.ids, second.ids]).unify_dictionaries().combine_chunks()
    inputs = {
        name: np.concatenate([array, second.inputs[name]]) for name, array in first.inputs.items()
    }
    return Chunk(ids.to_batches()[0], inputs)


def _slice(chunk: Chunk, start: int, stop: int) -> Chunk:
    if start == 0 and stop == len(chunk.ids):
        return chunk
    inputs = {name: array[start:stop] for name, array in chunk.inputs.items()}
    return Chunk(chunk.ids.slice(start, stop - start), inputs)


def _load(job: Job) -> VerifiedModel:
    """Open and verify the model, from the folder or from the files in the job."""
    try:
        if job.bundle_files is None:
            return load_model(job.bundle, job.settings)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in job.bundle_files.items():
                (Path(folder) / name).write_bytes(content)
            return load_model(Path(folder), job.settings)
    except (BundleError, DeviceUnavailableError, VerificationError) as error:
        raise ScoreError(str(error)) from error


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else peak * KIB
