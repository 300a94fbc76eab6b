"""Converts JSON values and raw bytes of the Open Inference Protocol to checked arrays.

Every value is checked before it is converted: values are never rounded, wrapped around or reshaped
to fit, and no NaN or infinity reaches a model.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from export.bundle.manifest import DTYPES, Datatype, Manifest, TensorSpec
from export.bundle.metrics import Array, Arrays
from service.protocol.errors import InvalidInputError, PayloadTooLargeError, quote_value
from service.protocol.json_values import json_value

# The byte order on the wire, whatever the machine's own.
LITTLE_ENDIAN = {datatype: dtype.newbyteorder("<") for datatype, dtype in DTYPES.items()}
TOO_LARGE_TO_SHOW = 10**24
# For each kind of NumPy dtype: the name of its JSON values, and their Python types.
_JSON_VALUES: dict[str, tuple[str, tuple[type, ...]]] = {
    "b": ("true or false", (bool,)),
    "i": ("integers", (int,)),
    "u": ("integers", (int,)),
    "f": ("numbers", (int, float)),
}


class InputTensor(msgspec.Struct, frozen=True):
    """One input of a request, as the client sent it."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


def sample_bytes(spec: TensorSpec) -> int:
    """Return the bytes of one sample of a tensor; of the largest sample if its axes vary."""
    return _count_bytes(spec.largest_sample, spec.datatype)


@lru_cache(maxsize=1024)
def _count_bytes(shape: tuple[int, ...], datatype: Datatype) -> int:
    return math.prod(shape) * DTYPES[datatype].itemsize


def read_inputs(
    given: Sequence[InputTensor], blobs: memoryview, manifest: Manifest, max_samples: int
) -> Arrays:
    """Check and convert a request's inputs to arrays by name, in the manifest's order.

    Args:
        given: The inputs, in the order of their blobs.
        blobs: The raw bytes after the JSON.
        manifest: The model's manifest.
        max_samples: The largest number of samples in a request.

    Raises:
        InvalidInputError: The names, datatypes, shapes or values do not fit the model.
        PayloadTooLargeError: There are more samples than allowed.
    """
    specs = {spec.name: spec for spec in manifest.inputs}
    arrays: dict[str, Array] = {}
    for tensor in given:
        if tensor.name not in specs or tensor.name in arrays:
            again = "is given twice" if tensor.name in arrays else "is not known"
            raise InvalidInputError(
                f"input {quote_value(tensor.name)} {again}; {manifest.name} takes "
                f"{', '.join(map(str, manifest.inputs))}"
            )
        spec = specs[tensor.name]
        _check_form(tensor, spec)
        check_count(tensor.shape[0], max_samples)
        size = tensor.parameters.get("binary_data_size")
        if (size is None) == (tensor.data is None):
            has = "neither data nor" if size is None else "both data and"
            raise InvalidInputError(
                f"{tensor.name} has {has} the parameter binary_data_size; send one of the two"
            )
        if tensor.data is None:
            arrays[tensor.name], blobs = _read_blob(tensor, spec, size, blobs)
        else:
            arrays[tensor.name] = _read_json(tensor.data, tensor, spec)
    if missing := specs.keys() - arrays.keys():
        raise InvalidInputError(
            f"input {sorted(missing)[0]!r} is missing; {manifest.name} takes "
            f"{', '.join(map(str, manifest.inputs))}"
        )
    if len(blobs):
        raise InvalidInputError(f"{len(blobs)} bytes follow the last tensor; expected none")
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise InvalidInputError(
            f"the inputs' first axes differ: {counts}; expected the same number of samples"
        )
    _check_named_axes(arrays, manifest)
    return {spec.name: _check_domain(arrays[spec.name], spec) for spec in manifest.inputs}


def read_raw_input(body: bytes, manifest: Manifest, max_samples: int) -> Arrays:
    """Decode a body that contains only the model's only input: little-endian, row-major values.

    Raises:
        InvalidInputError: The model has several inputs or one with variable axes, the body's
            length is not a multiple of a sample's, or a value is not finite.
        PayloadTooLargeError: There are more samples than allowed.
    """
    spec = manifest.inputs[0]
    if len(manifest.inputs) != 1:
        raise InvalidInputError(
            "a body without JSON (Inference-Header-Content-Length: 0) contains the values of one "
            f"input, but {manifest.name} has {len(manifest.inputs)} inputs; send JSON before the "
            "values"
        )
    if spec.bounds:
        raise InvalidInputError(
            "a body without JSON (Inference-Header-Content-Length: 0) does not give the shape of "
            f"{spec}, which has variable axes; send JSON with the shape, followed by the values"
        )
    size = sample_bytes(spec)
    count, rest = divmod(len(body), size)
    if rest or not count:
        raise InvalidInputError(
            f"the body has {len(body)} bytes; expected {size} for each sample of {spec}"
        )
    check_count(count, max_samples)
    array = _check_domain(_from_bytes(body, spec), spec)
    return {spec.name: array.reshape(count, *spec.shape[1:])}


def check_count(count: int, max_samples: int, noun: str = "samples") -> None:
    """Raise ``PayloadTooLargeError`` if a request holds more samples than allowed."""
    if count > max_samples:
        many = f"{count:,}" if count < TOO_LARGE_TO_SHOW else "far too many"
        raise PayloadTooLargeError(
            f"{many} {noun} in one request, at most {max_samples:,} are allowed; send several "
            "requests"
        )


def _check_named_axes(arrays: Arrays, manifest: Manifest) -> None:
    """Check that axes with the same name have the same size; the proof covers no other inputs."""
    sizes: dict[str, tuple[int, str]] = {}
    for spec in manifest.inputs:
        for axis, name in spec.axes.items():
            size = arrays[spec.name].shape[axis]
            expected, first = sizes.setdefault(name, (size, spec.name))
            if size != expected:
                raise InvalidInputError(
                    f"the axis {name} has the size {expected} in {first} and {size} in "
                    f"{spec.name}; expected the same size: pad or truncate one of them"
                )


def _check_form(tensor: InputTensor, spec: TensorSpec) -> None:
    """Check an input's datatype and shape."""
    if tensor.datatype != spec.datatype:
        hint = "; BYTES (strings) are not supported" if tensor.datatype == "BYTES" else ""
        raise InvalidInputError(
            f"{tensor.name} has the datatype {quote_value(tensor.datatype)}, expected "
            f"{spec.datatype}{hint}"
        )
    if not _has_shape(tensor.shape, spec):
        sizes = [str(low) if low == high else f"{low}..{high}" for low, high in spec.sample_bounds]
        raise InvalidInputError(
            f"{tensor.name} has the shape {quote_value(tensor.shape)}, expected "
            f"[{', '.join(['N', *sizes])}] with N at least 1"
        )


def _has_shape(shape: list[int], spec: TensorSpec) -> bool:
    if len(shape) != len(spec.shape) or shape[0] < 1:
        return False
    if not spec.bounds:
        return tuple(shape[1:]) == spec.shape[1:]
    pairs = zip(shape[1:], spec.sample_bounds, strict=True)
    return all(low <= size <= high for size, (low, high) in pairs)


def _read_json(data: list[Any], tensor: InputTensor, spec: TensorSpec) -> Array:
    flat = _flatten(data, tensor.shape, tensor.name)
    count = math.prod(tensor.shape)
    if len(flat) != count:
        raise InvalidInputError(
            f"{tensor.name} has {len(flat)} values, its shape {tensor.shape} needs {count}"
        )
    words, types = _JSON_VALUES[spec.dtype.kind]
    if strange := set(map(type, flat)).difference(types):
        value = next(value for value in flat if type(value) in strange)
        raise InvalidInputError(
            f"{tensor.name} contains {json_value(value)}; expected {words} for {spec.datatype}"
        )
    try:
        with np.errstate(over="ignore"):  # such a value becomes infinite, and is refused below
            array = np.array(flat, dtype=spec.dtype)
    except OverflowError as error:
        raise _out_of_range(flat, tensor.name, spec) from error
    return _check_finite(array, tensor.name).reshape(tensor.shape)


def _out_of_range(flat: list[Any], name: str, spec: TensorSpec) -> InvalidInputError:
    """Return the error for a number that the datatype cannot hold."""
    if spec.dtype.kind == "f":
        return InvalidInputError(f"{name} contains a number that is too large for {spec.datatype}")
    limits = np.iinfo(spec.dtype)
    value = next(value for value in flat if not limits.min <= value <= limits.max)
    return InvalidInputError(
        f"{name} contains {json_value(value)}; expected {limits.min} to {limits.max}"
    )


def _flatten(data: list[Any], shape: Sequence[int], name: str) -> list[Any]:
    """Return the values in row-major order; ``data`` is flat or nested like the shape."""
    level = data
    if not (data and isinstance(data[0], list)):
        return level
    for size in shape[1:]:
        if any(not isinstance(part, list) or len(part) != size for part in level):
            raise InvalidInputError(
                f"{name}'s data is not nested like its shape {list(shape)}; send it nested "
                "like the shape, or flat"
            )
        level = [value for part in level for value in part]
    return level


def _read_blob(
    tensor: InputTensor, spec: TensorSpec, size: object, blobs: memoryview
) -> tuple[Array, memoryview]:
    """Return the array in the first of the blobs, and the remaining blobs."""
    needed = math.prod(tensor.shape) * spec.dtype.itemsize
    if type(size) is not int or size != needed or size > len(blobs):
        raise InvalidInputError(
            f"{tensor.name} has the binary_data_size {quote_value(size)} and {len(blobs)} bytes "
            f"follow; its shape {quote_value(tensor.shape)} needs {needed}, as an integer"
        )
    return _from_bytes(blobs[:needed], spec).reshape(tensor.shape), blobs[needed:]


def _from_bytes(content: bytes | memoryview, spec: TensorSpec) -> Array:
    """Return little-endian values as a flat array, without a copy on little-endian machines."""
    if spec.datatype == "BOOL" and np.frombuffer(content, np.uint8).max(initial=0) > 1:
        raise InvalidInputError(
            f"{spec.name} contains bytes other than 0 and 1; expected one of these for each "
            "BOOL value"
        )
    return _check_finite(np.frombuffer(content, LITTLE_ENDIAN[spec.datatype]), spec.name)


def _check_domain(array: Array, spec: TensorSpec) -> Array:
    """Check that the values are in the declared range, the only one the model was proven for.

    A token id beyond the vocabulary would make the engine fail for every request in the batch.
    """
    domain = spec.domain
    if domain is None or domain.low is None or domain.high is None or not array.size:
        return array
    for value in (array.min(), array.max()):
        if not domain.low <= value <= domain.high:
            raise InvalidInputError(
                f"{spec.name} contains {value:g}; expected {domain.kind} from {domain.low:g} to "
                f"{domain.high:g}"
            )
    return array


def _check_finite(array: Array, name: str) -> Array:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInputError(f"{name} contains NaN or infinite values; expected finite ones")
    return array
