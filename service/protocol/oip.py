"""The Open Inference Protocol (KServe V2) over HTTP: requests to arrays, arrays to answers.

Bodies are JSON, or use the binary extension (``binary_tensor_data``): JSON followed by the tensors'
raw little-endian values, in order. The header ``Inference-Header-Content-Length`` gives the length
of the JSON. The value 0 means that the body contains only the values of the model's only input; the
outputs are then returned as raw bytes.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from export.bundle.manifest import DTYPES, Manifest, TensorSpec
from export.bundle.metrics import Array, Arrays
from service.protocol.answers import ModelMetadata, ServerMetadata, TensorMetadata
from service.protocol.errors import InvalidInputError, NonFiniteOutputError, quote_value
from service.protocol.json_values import convert_json, encode_json, parse_json
from service.protocol.tensors import InputTensor, read_inputs, read_raw_input
from service.settings import Limits

EXTENSIONS = ["binary_tensor_data"]
PLATFORM = "onnxruntime_onnx"
EXPECTED = (
    "an inference request of the Open Inference Protocol: "
    '{"inputs": [{"name", "shape", "datatype", "data"}]}'
)
HEADER_LENGTH = "inference-header-content-length"
BINARY_TYPE = "application/octet-stream"
MAX_CACHED_BYTES = 4096
MAX_ID_CHARACTERS = 1024
DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}
_Form = tuple[str, "np.dtype[Any]", tuple[int, ...]]  # an output's name, dtype and shape


class _OutputParameters(msgspec.Struct, frozen=True):
    binary_data: bool | None = None
    shared_memory_region: Any = None


class RequestedOutput(msgspec.Struct, frozen=True):
    """An output that the client requests; ``parameters`` set its form, JSON or binary."""

    name: str
    parameters: _OutputParameters = _OutputParameters()


class InferParameters(msgspec.Struct, frozen=True):
    """Whether outputs are returned as raw bytes, unless an output's own parameters differ."""

    binary_data_output: bool = False


class InferBody(msgspec.Struct, frozen=True):
    """An inference request as the client sent it, not checked against a model."""

    inputs: list[InputTensor]
    id: str | None = None
    parameters: InferParameters = InferParameters()
    outputs: list[RequestedOutput] | None = None


class InferRequest(msgspec.Struct, frozen=True):
    """A checked request.

    Attributes:
        inputs: Arrays by name, with the manifest's dtypes and shapes and equal sample counts.
        outputs: The names of the requested outputs; True for those returned as raw bytes.
        id: The client's id for the request, which the response repeats.
    """

    inputs: Arrays
    outputs: dict[str, bool]
    id: str | None = None

    @property
    def samples(self) -> int:
        """The number of samples."""
        return len(next(iter(self.inputs.values())))


def decode_infer(
    body: bytes, json_length: str | None, manifest: Manifest, limits: Limits
) -> InferRequest:
    """Decode the body of ``POST /v2/models/MODEL/infer``.

    ``json_length`` is the header ``Inference-Header-Content-Length``, or None if it is missing.

    Raises:
        InvalidInputError: Something in the body breaks the protocol or does not fit the model.
        PayloadTooLargeError: There are more samples than allowed.
    """
    length = len(body) if json_length is None else _parse_length(json_length, len(body))
    if length == 0 and json_length is not None:
        inputs = read_raw_input(body, manifest, limits.samples)
        return InferRequest(inputs, {spec.name: True for spec in manifest.outputs})
    header = body[:length]
    decode = _decode_cached if length < min(len(body), MAX_CACHED_BYTES) else _decode_header
    asked = decode(header, limits.json_depth)
    return check_request(asked, memoryview(body)[length:], manifest, limits)


def check_request(
    asked: InferBody, blobs: memoryview, manifest: Manifest, limits: Limits
) -> InferRequest:
    """Check a request from any transport against the model that it names.

    Args:
        asked: The request.
        blobs: The raw values of the inputs without ``data``, concatenated.
        manifest: The model's manifest.
        limits: The limits of one request.

    Raises:
        InvalidInputError: Something does not fit the model.
        PayloadTooLargeError: There are more samples than allowed.
    """
    if asked.id is not None and len(asked.id) > MAX_ID_CHARACTERS:
        raise InvalidInputError(
            f"id has {len(asked.id):,} characters, at most {MAX_ID_CHARACTERS:,} are allowed"
        )
    inputs = read_inputs(asked.inputs, blobs, manifest, limits.samples)
    return InferRequest(inputs, _requested_outputs(asked, manifest), asked.id)


def encode_infer(
    outputs: Arrays, asked: InferRequest, manifest: Manifest
) -> tuple[bytes, int | None]:
    """Encode the requested outputs.

    Returns:
        The body, and the length of the JSON at its start, or None if the whole body is JSON.

    Raises:
        NonFiniteOutputError: An output requested as JSON holds NaN or infinity.
    """
    forms, blobs, values = [], [], {}
    for name, is_binary in asked.outputs.items():
        array = outputs[name]
        forms.append((name, array.dtype, array.shape))
        if is_binary:
            blobs.append(array.tobytes())
        else:
            values[name] = to_json_numbers(name, array.ravel())
    if values:
        header = _encode_header(manifest.name, manifest.version, asked.id, tuple(forms), values)
    else:
        header = _encode_cached(manifest.name, manifest.version, asked.id, tuple(forms))
    return (b"".join([header, *blobs]), len(header)) if blobs else (header, None)


def to_json_numbers(name: str, values: Array) -> list[Any]:
    """Return an output's values as Python numbers, in lists nested like the array's shape.

    Raises:
        NonFiniteOutputError: A value is NaN or infinite.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise NonFiniteOutputError(
            f"the output {name} contains NaN or infinite values, which JSON cannot represent; to "
            "receive them, request binary outputs by the Open Inference Protocol (parameter "
            "binary_data_output)"
        )
    numbers: list[Any] = values.tolist()
    return numbers


def infer_paths(manifest: Manifest) -> list[str]:
    """Return the URL paths of a model's inference endpoint: without and with its version."""
    model = f"/v2/models/{manifest.name}"
    return [f"{model}/infer", f"{model}/versions/{manifest.version}/infer"]


def server_metadata() -> ServerMetadata:
    """Return the answer to ``GET /v2``; its version is the protocol's, not the code's."""
    return {"name": "proven-digits", "version": "2", "extensions": EXTENSIONS}


def model_metadata(manifest: Manifest, versions: Sequence[str] = ()) -> ModelMetadata:
    """Return the answer to ``GET /v2/models/MODEL``; ``versions`` are all served versions."""
    return {
        "name": manifest.name,
        "versions": list(versions) or [manifest.version],
        "platform": PLATFORM,
        "inputs": [describe_tensor(spec) for spec in manifest.inputs],
        "outputs": [describe_tensor(spec) for spec in manifest.outputs],
    }


def describe_tensor(spec: TensorSpec) -> TensorMetadata:
    """Return a tensor's name, datatype and shape."""
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _parse_length(given: str, body_length: int) -> int:
    """Parse the header's value, from 0 to the body's length."""
    if given == "0":  # the most frequent value
        return 0
    digits = given.lstrip("0") or given[:1]
    # Twenty digits exceed the length of any body; Python refuses to parse thousands of digits.
    length = int(digits[:20]) if given.isascii() and given.isdigit() else -1
    if not 0 <= length <= body_length:
        raise InvalidInputError(
            f"Inference-Header-Content-Length is {given[:40]!r}; expected the number of bytes of "
            f"JSON at the start of the body, 0 to {body_length}"
        )
    return length


def _decode_header(header: bytes, max_depth: int) -> InferBody:
    asked = convert_json(parse_json(header, EXPECTED, max_depth), InferBody, EXPECTED)
    if asked.outputs is not None and not asked.outputs:
        raise InvalidInputError(
            "outputs is an empty list; expected at least one output; omit the field to get all"
        )
    return asked


# Clients send the same few JSON headers again and again before their binary values.
_decode_cached = lru_cache(maxsize=256)(_decode_header)


def _requested_outputs(asked: InferBody, manifest: Manifest) -> dict[str, bool]:
    is_binary = asked.parameters.binary_data_output
    names = [spec.name for spec in manifest.outputs]
    if asked.outputs is None:
        return dict.fromkeys(names, is_binary)
    found: dict[str, bool] = {}
    for output in asked.outputs:
        if output.name not in names or output.name in found:
            again = "is requested twice" if output.name in found else "is not known"
            raise InvalidInputError(
                f"output {quote_value(output.name)} {again}; {manifest.name} has the outputs "
                f"{', '.join(names)}"
            )
        if output.parameters.shared_memory_region is not None:
            raise InvalidInputError(
                f"output {quote_value(output.name)} is requested in shared memory, which is not "
                "supported (shared_memory_region)"
            )
        given = output.parameters.binary_data
        found[output.name] = is_binary if given is None else given
    return found


def _encode_header(
    model: str,
    version: str,
    id_: str | None,
    forms: tuple[_Form, ...],
    values: Mapping[str, list[Any]] = MappingProxyType({}),
) -> bytes:
    """Encode the JSON of a response; outputs without ``values`` follow it as raw bytes."""
    tensors = []
    for name, dtype, shape in forms:
        tensor: dict[str, Any] = {"name": name, "datatype": DATATYPES[dtype], "shape": shape}
        if name in values:
            tensor["data"] = values[name]
        else:
            tensor["parameters"] = {"binary_data_size": math.prod(shape) * dtype.itemsize}
        tensors.append(tensor)
    answer: dict[str, Any] = {"model_name": model, "model_version": version}
    if id_ is not None:
        answer["id"] = id_
    return encode_json(answer | {"outputs": tensors})


# Clients may send a new id every time, so the cache has a limited size.
_encode_cached = lru_cache(maxsize=1024)(_encode_header)
