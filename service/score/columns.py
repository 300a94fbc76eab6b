"""Converts Arrow columns to a model's inputs: ``check_columns`` and ``read_rows``.

The meaning of a column, by its Arrow type:

    list, fixed-size list or tensor    the values of a sample, flat or nested like its shape
    number                             one value; several columns are the values of one sample
    fixed-size binary                  the sample's little-endian values in row-major order
    binary                             a PNG or JPEG file if the model takes pictures, else values

Types are converted only if no value can change. Rows are checked like the service's requests
(``service.protocol.tensors.read_inputs``); rows that fail are returned with the reason. The first
axis of every array is the row (N).
"""

import gzip
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from export.bundle.manifest import Manifest, TensorSpec
from export.bundle.metrics import Array, Arrays
from service.adapters.digits import has_digits_form
from service.protocol.errors import ServiceError
from service.protocol.tensors import InputTensor, read_inputs, sample_bytes
from service.score.errors import ScoreError

InputColumns = Mapping[str, tuple[str, ...]]
"""The columns that each input is read from."""
DecodePicture = Callable[[bytes], Arrays]
PICTURE_TASKS = ("digits", "image-classification")


@dataclass(frozen=True)
class Rows:
    """Valid rows of one shape.

    Attributes:
        index: int64 [N], the rows' positions in the batch.
        inputs: The model's inputs by name, [N, ...].
    """

    index: Array
    inputs: Arrays


def is_damage(error: BaseException) -> bool:
    """Whether an exception means that the content is damaged, not that reading it failed.

    For content that cannot be decoded, Arrow raises OSError without an error number.
    """
    if isinstance(error, MemoryError):
        return False
    if isinstance(error, pa.ArrowException | EOFError | zlib.error | gzip.BadGzipFile):
        return True
    return type(error) is OSError and error.errno is None


def takes_pictures(manifest: Manifest) -> bool:
    """Whether the model's adapter decodes PNG and JPEG files."""
    return manifest.task in PICTURE_TASKS or (manifest.task is None and has_digits_form(manifest))


def check_columns(
    file: str, schema: pa.Schema, manifest: Manifest, mapping: InputColumns, key: str | None
) -> None:
    """Check that a file has the columns of every input, with types that fit.

    Raises:
        ScoreError: It does not; says what it has, what is expected and what to do.
    """
    for spec in manifest.inputs:
        columns = mapping[spec.name]
        types = [_find_type(schema, column) for column in columns]
        for column, found in zip(columns, types, strict=True):
            if found is None:
                raise ScoreError(
                    f"{file} has no column {column} for the input {spec}; its columns are "
                    f"{_list_columns(schema)}; name the right one with --inputs {spec.name}=COLUMN"
                )
        problem = _find_problem([found for found in types if found is not None], spec, manifest)
        if problem is not None:
            raise ScoreError(f"{file}: the column {', '.join(columns)} {problem}")
    if key is not None and key not in schema.names:
        raise ScoreError(
            f"{file} has no column {key}, which --key names; its columns are "
            f"{_list_columns(schema)}"
        )


def _list_columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _find_type(schema: pa.Schema, column: str) -> pa.DataType | None:
    """Return the type of a column, or of a field in nested structs, named by a dotted path."""
    if column in schema.names:
        return schema.field(column).type
    first, *fields = column.split(".")
    if first not in schema.names or not fields:
        return None
    found = schema.field(first).type
    for field in fields:
        if not pa.types.is_struct(found) or found.get_field_index(field) < 0:
            return None
        found = found.field(field).type
    return found


def _is_list(found: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)
    )


def _is_binary(found: pa.DataType) -> bool:
    return bool(pa.types.is_binary(found) or pa.types.is_large_binary(found))


def _unwrap(found: pa.DataType) -> tuple[pa.DataType, list[int]]:
    """Return the type of the values in nested lists, and each level's length, -1 if it varies."""
    sizes = []
    while True:
        if isinstance(found, pa.BaseExtensionType):
            found = found.storage_type
        elif _is_list(found):
            sizes.append(found.list_size if pa.types.is_fixed_size_list(found) else -1)
            found = found.value_type
        else:
            return found, sizes


def _find_problem(types: list[pa.DataType], spec: TensorSpec, manifest: Manifest) -> str | None:
    """Describe what is wrong with the types of an input's columns; return None if they fit."""
    first = types[0]
    if len(types) == 1 and pa.types.is_fixed_size_binary(first):
        size = sample_bytes(spec)
        if spec.bounds or first.byte_width != size:
            return (
                f"has values of {first.byte_width} bytes; expected {size} for a sample of {spec}"
                f"{', whose variable axes need lists' if spec.bounds else ''}"
            )
        return None
    if len(types) == 1 and _is_binary(first):
        if spec.bounds and not takes_pictures(manifest):
            return f"is {first}; the variable axes of {spec} need lists"
        return None
    return _find_list_problem(types, spec)


def _find_list_problem(types: list[pa.DataType], spec: TensorSpec) -> str | None:
    rank, size = len(spec.shape) - 1, math.prod(spec.shape[1:])
    for found in types:
        leaf, sizes = _unwrap(found)
        if not (
            pa.types.is_floating(leaf) or pa.types.is_integer(leaf) or pa.types.is_boolean(leaf)
        ):
            return f"has the type {found}; expected {spec.dtype.name} values for {spec}"
        if not np.can_cast(leaf.to_pandas_dtype(), spec.dtype, "safe"):
            return (
                f"has values of the type {leaf}, not all of which fit {spec.datatype} of {spec}; "
                f"write the column as {spec.dtype.name}"
            )
        if len(types) > 1 and sizes:
            return f"has the type {found}; expected numbers if an input has several columns"
    if not sizes:
        count = len(types)
        return (
            None
            if not spec.bounds and size == count
            else (
                f"has {count} values per row; expected {list(spec.shape[1:])} for {spec}, as a "
                f"list or as that many columns (--inputs {spec.name}=A,B,...)"
            )
        )
    if len(sizes) not in (1, rank) or (spec.bounds and len(sizes) != rank):
        return f"has lists nested {len(sizes)} deep; expected {rank} levels, the shape of {spec}"
    if not spec.bounds and -1 not in sizes:
        expected = [size] if len(sizes) == 1 else list(spec.shape[1:])
        if sizes != expected:
            return f"has lists of lengths {sizes}; expected {expected} for {spec}"
    return None


def read_rows(
    batch: pa.RecordBatch, manifest: Manifest, mapping: InputColumns, decode: DecodePicture
) -> tuple[list[Rows], dict[int, str]]:
    """Convert the columns of some rows to the model's inputs.

    Args:
        batch: Columns that passed ``check_columns``.
        manifest: The model's manifest.
        mapping: The columns of each input.
        decode: Decodes a PNG or JPEG file to one sample.

    Returns:
        The rows that can be scored, in one group per shape, and the reasons by row for the others.
    """
    reasons: dict[int, str] = {}
    samples: dict[str, Array | list[Array | None]] = {}
    for spec in manifest.inputs:
        columns = [_take(batch, column) for column in mapping[spec.name]]
        read: Array | list[Array | None]
        if _is_binary(columns[0].type) and takes_pictures(manifest):
            read = _decode_pictures(columns[0], spec, decode, reasons)
        elif spec.bounds:
            read = _read_ragged(columns[0], spec, reasons)
        else:
            read = _read_dense(columns, spec, reasons)
        samples[spec.name] = read
    good = np.array([row for row in range(len(batch)) if row not in reasons], np.int64)
    groups = []
    for group in _group_by_shape(samples, good):
        refused = find_refused(group.inputs, manifest)
        for position, reason in refused.items():
            reasons[int(group.index[position])] = reason
        if refused:
            group = _without(group, refused)
        if len(group.index):
            groups.append(group)
    return groups, reasons


def find_refused(inputs: Arrays, manifest: Manifest, first: int = 0) -> dict[int, str]:
    """Return by position why the service would refuse samples, all of which have one shape."""
    count = len(next(iter(inputs.values())))
    arrays = [np.ascontiguousarray(inputs[spec.name]) for spec in manifest.inputs]
    tensors = [
        InputTensor(spec.name, list(array.shape), spec.datatype, {"binary_data_size": array.nbytes})
        for spec, array in zip(manifest.inputs, arrays, strict=True)
    ]
    views = [array.reshape(-1).view(np.uint8).data for array in arrays]
    blobs = views[0] if len(views) == 1 else memoryview(b"".join(views))
    try:
        read_inputs(tensors, blobs, manifest, count)
    except ServiceError as error:
        if count == 1:
            return {first: str(error)}
        half = count // 2
        halves = (slice(0, half), slice(half, None))
        low, high = ({name: array[part] for name, array in inputs.items()} for part in halves)
        return find_refused(low, manifest, first) | find_refused(high, manifest, first + half)
    return {}


def _without(rows: Rows, positions: dict[int, str]) -> Rows:
    kept = np.ones(len(rows.index), np.bool_)
    kept[list(positions)] = False
    return Rows(rows.index[kept], {name: array[kept] for name, array in rows.inputs.items()})


def _group_by_shape(samples: dict[str, Array | list[Array | None]], good: Array) -> list[Rows]:
    """Stack the samples of the good rows, one group per shape; arrays already have one shape."""
    ragged = {name: found for name, found in samples.items() if isinstance(found, list)}
    dense = {name: found for name, found in samples.items() if not isinstance(found, list)}
    if not ragged:
        count = len(next(iter(dense.values())))
        every = len(good) == count
        return [Rows(good, dense if every else {name: a[good] for name, a in dense.items()})]
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for row in good.tolist():
        shapes = tuple(np.shape(found[row]) for found in ragged.values())
        groups.setdefault(shapes, []).append(row)
    return [
        Rows(
            np.array(rows, np.int64),
            {
                name: np.stack([samples[name][row] for row in rows])  # type: ignore[misc]
                for name in samples
            },
        )
        for rows in groups.values()
    ]


def _take(batch: pa.RecordBatch, column: str) -> pa.Array:
    if column in batch.schema.names:
        return batch.column(column)
    first, *fields = column.split(".")
    found = batch.column(first)
    return pc.struct_field(found, fields)


def _drop_nulls(columns: list[pa.Array], reasons: dict[int, str], spec: TensorSpec) -> Array:
    """Return the rows where no column is null, bool [N]; the others get a reason."""
    known = np.ones(len(columns[0]), np.bool_)
    for column in columns:
        if column.null_count:
            known &= column.is_valid().to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(~known).tolist():
        reasons.setdefault(row, f"{spec.name} is null; expected {spec.dtype.name} values")
    return known


def _read_dense(columns: list[pa.Array], spec: TensorSpec, reasons: dict[int, str]) -> Array:
    """Read an input of a fixed shape: [N, ...], with zeros in rows that have a reason."""
    count, shape = len(columns[0]), spec.shape[1:]
    known = _drop_nulls(columns, reasons, spec)
    if not known.all():
        columns = [column.filter(pa.array(known)) for column in columns]
    if len(columns) > 1:
        values = np.stack([_to_numpy(column, spec) for column in columns], axis=1)
    elif pa.types.is_fixed_size_binary(columns[0].type) or _is_binary(columns[0].type):
        values, known = _read_bytes(columns[0], known, spec, reasons)
    else:
        values, known = _read_lists(columns[0], known, spec, reasons)
    values = values.reshape(-1, *shape)
    if known.all():
        return values
    dense = np.zeros((count, *shape), spec.dtype)
    dense[known] = values
    return dense


def _to_numpy(column: pa.Array, spec: TensorSpec) -> Array:
    found = column.to_numpy(zero_copy_only=False)
    return np.asarray(found.astype(spec.dtype, copy=False))


def _read_bytes(
    column: pa.Array, known: Array, spec: TensorSpec, reasons: dict[int, str]
) -> tuple[Array, Array]:
    """Read little-endian values; return them and the rows, bool [N], that have them."""
    size = sample_bytes(spec)
    if _is_binary(column.type):
        lengths = pc.binary_length(column).to_numpy(zero_copy_only=False)
        column, known = _keep(
            column,
            lengths == size,
            known,
            reasons,
            lambda at: (
                f"{spec.name} has {lengths[at]} bytes; expected {size} for a sample of {spec}"
            ),
        )
        column = column.cast(pa.binary(size))
    buffer = column.buffers()[1]
    if not len(column) or buffer is None:
        return np.zeros(0, spec.dtype), known
    values = np.frombuffer(buffer, np.uint8)
    values = values[column.offset * size : (column.offset + len(column)) * size]
    return values.view(spec.dtype.newbyteorder("<")).astype(spec.dtype, copy=False), known


def _read_lists(
    column: pa.Array, known: Array, spec: TensorSpec, reasons: dict[int, str]
) -> tuple[Array, Array]:
    """Read flat or nested lists; return their values and the rows, bool [N], that have them all."""
    _, nested = _unwrap(column.type)
    sizes = [math.prod(spec.shape[1:])] if len(nested) == 1 else list(spec.shape[1:])
    level, per_row = column, 1
    for size in sizes[: len(nested)]:
        level = level.storage if isinstance(level, pa.ExtensionArray) else level
        lengths = pc.list_value_length(level).fill_null(-1).to_numpy(zero_copy_only=False)
        fits = (lengths == size).reshape(-1, per_row)
        level, known = _keep(
            level,
            fits,
            known,
            reasons,
            partial(_describe_lengths, lengths.reshape(-1, per_row), size, spec),
        )
        level, per_row = level.flatten(), per_row * size
    if level.null_count:
        fits = level.is_valid().to_numpy(zero_copy_only=False).reshape(-1, per_row)
        level, known = _keep(
            level, fits, known, reasons, lambda _: f"{spec.name} contains a null; expected numbers"
        )
    return _to_numpy(level, spec), known


def _describe_lengths(lengths: Array, size: int, spec: TensorSpec, row: int) -> str:
    wrong = next(length for length in lengths[row].tolist() if length != size)
    came = "a null" if wrong < 0 else f"a list of length {wrong}"
    return (
        f"{spec.name} contains {came}; expected a list of length {size} there for a sample of "
        f"{spec}"
    )


def _keep(
    column: pa.Array,
    fits: Array,
    known: Array,
    reasons: dict[int, str],
    describe: Callable[[int], str],
) -> tuple[pa.Array, Array]:
    """Keep the rows that fit.

    Args:
        column: The values of the known rows, the same number for each row.
        fits: bool [known rows, values of a row] or [known rows].
        known: bool [N], the rows that are in ``column``.
        reasons: Receives a reason for each row that does not fit.
        describe: Returns the reason, given the row's position among the known rows.

    Returns:
        The remaining values and the remaining rows.
    """
    per_row = 1 if fits.ndim == 1 else fits.shape[1]
    good = fits if fits.ndim == 1 else fits.all(axis=1)
    if good.all():
        return column, known
    rows = np.flatnonzero(known)
    for position in np.flatnonzero(~good).tolist():
        reasons.setdefault(int(rows[position]), describe(position))
    remaining = known.copy()
    remaining[rows[~good]] = False
    return column.filter(pa.array(np.repeat(good, per_row))), remaining


def _read_ragged(column: pa.Array, spec: TensorSpec, reasons: dict[int, str]) -> list[Array | None]:
    """Read an input with variable axes from nested lists: one sample for each good row."""
    known = _drop_nulls([column], reasons, spec)
    leaf, _ = _unwrap(column.type)
    samples: list[Array | None] = [None] * len(column)
    for row in np.flatnonzero(known).tolist():
        try:
            values = np.array(column[row].as_py(), dtype=leaf.to_pandas_dtype())
        except (ValueError, TypeError):  # lists of different lengths, or a null
            values = np.zeros(0, spec.dtype)
        if values.ndim != len(spec.shape) - 1 or not values.size:
            reasons.setdefault(
                row, f"{spec.name} is not a complete list of numbers in the shape of {spec}"
            )
        else:
            samples[row] = values.astype(spec.dtype, copy=False)
    return samples


def _decode_pictures(
    column: pa.Array, spec: TensorSpec, decode: DecodePicture, reasons: dict[int, str]
) -> list[Array | None]:
    known = _drop_nulls([column], reasons, spec)
    samples: list[Array | None] = [None] * len(column)
    for row in np.flatnonzero(known).tolist():
        try:
            samples[row] = decode(column[row].as_py())[spec.name][0]
        except ServiceError as error:
            reasons.setdefault(row, str(error))
    return samples
