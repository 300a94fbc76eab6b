"""Tensors of the Open Inference Protocol: from JSON values and from raw bytes to arrays.

A value is looked at before it is converted: nothing is rounded, wrapped or reshaped to fit.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from export.manifest import DTYPES, Manifest, TensorSpec
from export.parity.metrics import Array, Arrays
from service.errors import InvalidInputError, PayloadTooLargeError, shown
from service.strict_json import json_value

# How numbers lie on the wire, whatever machine this is.
LITTLE_ENDIAN = {datatype: dtype.newbyteorder("<") for datatype, dtype in DTYPES.items()}
SIZES_SHOWN, LONGEST = 8, 10**24
# What JSON can hold of a datatype, in words and in Python's types.
_NUMBERS: dict[str, tuple[str, tuple[type, ...]]] = {
    "BOOL": ("true or false", (bool,)),
    "INT": ("integers", (int,)),
    "FP": ("numbers", (int, float)),
}


class Wire(BaseModel):
    """What the wire brings: types are taken literally, unknown fields are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class InputTensor(Wire):
    """One input of a request."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = None


def sample_bytes(spec: TensorSpec) -> int:
    """Bytes of one sample of a tensor."""
    return math.prod(spec.shape[1:]) * spec.dtype.itemsize


def read_inputs(
    given: Sequence[InputTensor], blobs: memoryview, manifest: Manifest, max_samples: int
) -> Arrays:
    """A request's inputs, from JSON and from the blobs behind it, in the manifest's order.

    Raises:
        InvalidInputError: Names, types, shapes or values are not the model's.
        PayloadTooLargeError: More samples than allowed.
    """
    specs = {spec.name: spec for spec in manifest.inputs}
    arrays: dict[str, Array] = {}
    for tensor in given:
        if tensor.name not in specs or tensor.name in arrays:
            again = "is given twice" if tensor.name in arrays else "is not known"
            raise InvalidInputError(
                f"input {shown(tensor.name)} {again}; {manifest.name} takes "
                f"{', '.join(map(str, manifest.inputs))}"
            )
        spec = specs[tensor.name]
        _check_tensor(tensor, spec)
        check_count(tensor.shape[0], max_samples)
        size = tensor.parameters.get("binary_data_size")
        if size is not None and tensor.data is not None:
            raise InvalidInputError(
                f"{tensor.name} has both data and the parameter binary_data_size; send one of them"
            )
        if size is None:
            arrays[tensor.name] = _from_json(tensor, spec)
        else:
            arrays[tensor.name], blobs = _from_blob(tensor, spec, size, blobs)
    if missing := specs.keys() - arrays.keys():
        raise InvalidInputError(
            f"input {sorted(missing)[0]!r} is missing; {manifest.name} takes "
            f"{', '.join(map(str, manifest.inputs))}"
        )
    if len(blobs):
        raise InvalidInputError(f"{len(blobs)} bytes behind the last tensor belong to none")
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise InvalidInputError(f"the inputs' first axes differ: {counts}")
    return {spec.name: arrays[spec.name] for spec in manifest.inputs}


def _check_tensor(tensor: InputTensor, spec: TensorSpec) -> None:
    if tensor.datatype != spec.datatype:
        raise InvalidInputError(
            f"{tensor.name} has the datatype {shown(tensor.datatype)}, expected {spec.datatype}"
        )
    wanted = list(spec.shape[1:])
    if len(tensor.shape) != len(spec.shape) or tensor.shape[1:] != wanted or tensor.shape[0] < 1:
        raise InvalidInputError(
            f"{tensor.name} has the shape {_shape(tensor.shape)}, expected [N, "
            f"{', '.join(map(str, wanted))}] with N at least 1"
        )


def check_count(count: int, max_samples: int) -> None:
    """Refuse what is more than one request may hold.

    Raises:
        PayloadTooLargeError: More samples than allowed.
    """
    if count > max_samples:
        many = f"{count:,}" if count < LONGEST else "far too many"
        raise PayloadTooLargeError(
            f"{many} samples in one request, at most {max_samples:,} are taken; send several"
        )


def _from_json(tensor: InputTensor, spec: TensorSpec) -> Array:
    if tensor.data is None:
        raise InvalidInputError(
            f"{tensor.name} has neither data nor the parameter binary_data_size"
        )
    flat = _flattened(tensor.data, tensor.shape, tensor.name)
    count = math.prod(tensor.shape)
    if len(flat) != count:
        raise InvalidInputError(
            f"{tensor.name} has {len(flat)} values, its shape {tensor.shape} needs {count}"
        )
    kind = next(key for key in _NUMBERS if spec.datatype.removeprefix("U").startswith(key))
    words, types = _NUMBERS[kind]
    if strange := {type(value) for value in flat} - set(types):
        value = next(value for value in flat if type(value) in strange)
        raise InvalidInputError(
            f"{tensor.name} holds {json_value(value)}; expected {words} for {spec.datatype}"
        )
    if spec.dtype.kind in "iu":
        limits = np.iinfo(spec.dtype)
        for value in (min(flat), max(flat)):
            if not limits.min <= value <= limits.max:
                raise InvalidInputError(
                    f"{tensor.name} holds {json_value(value)}; expected {limits.min} to "
                    f"{limits.max}"
                )
    try:
        with np.errstate(over="ignore"):  # becomes infinite, and is refused as that
            array = np.array(flat, dtype=spec.dtype)
    except (OverflowError, ValueError) as error:
        raise InvalidInputError(f"{tensor.name} cannot be read as {spec.datatype}") from error
    return _finite(array, tensor.name).reshape(tensor.shape)


def _flattened(data: list[Any], shape: Sequence[int], name: str) -> list[Any]:
    """Values in row-major order; given flat, or nested exactly as the shape says."""
    level = data
    if not (data and isinstance(data[0], list)):
        return level
    for size in shape[1:]:
        if any(not isinstance(part, list) or len(part) != size for part in level):
            raise InvalidInputError(
                f"{name}'s data is nested otherwise than its shape {list(shape)}"
            )
        level = [value for part in level for value in part]
    return level


def _from_blob(
    tensor: InputTensor, spec: TensorSpec, size: object, blobs: memoryview
) -> tuple[Array, memoryview]:
    needed = tensor.shape[0] * sample_bytes(spec)
    if type(size) is not int or size != needed or size > len(blobs):
        raise InvalidInputError(
            f"{tensor.name} announces {shown(size)} bytes and {len(blobs)} are there; its shape "
            f"{_shape(tensor.shape)} needs {needed}, as a number"
        )
    array = np.frombuffer(blobs[:size], LITTLE_ENDIAN[spec.datatype]).reshape(tensor.shape)
    return _finite(array, tensor.name), blobs[size:]


def _finite(array: Array, name: str) -> Array:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInputError(f"{name} holds NaN or infinite values")
    return array


def _shape(shape: Sequence[int]) -> str:
    """A shape as it came, if it is of readable length."""
    sizes = [str(size) if abs(size) < LONGEST else "far too many" for size in shape[:SIZES_SHOWN]]
    more = f", ... {len(shape):,} in all" if len(shape) > SIZES_SHOWN else ""
    return f"[{', '.join(sizes)}{more}]"
