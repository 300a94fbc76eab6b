"""The Open Inference Protocol (KServe V2) over HTTP: requests to arrays, arrays to answers.

Bodies are JSON, or follow the binary extension (``binary_tensor_data``): JSON first and, behind
it, raw little-endian values of the tensors in their order. The header
``Inference-Header-Content-Length`` gives the length of the JSON. The value 0 means that the body is
the only input's values and nothing else; its answer has binary outputs.
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
    """An output that the client asks for; ``parameters`` say in which form."""

    name: str
    parameters: _OutputParameters = _OutputParameters()


class InferParameters(msgspec.Struct, frozen=True):
    """Whether outputs are returned as raw bytes unless they say otherwise."""

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
        inputs: Arrays by name, of the manifest's dtypes and shapes, with one number of samples.
        outputs: The names of the requested outputs, each with whether it shall be binary.
        id: The client's name for the request, which the answer repeats.
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

    ``json_length`` is the header ``Inference-Header-Content-Length``, None if there is none.

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
    """Check a request against the model it names, whichever transport it came by.

    Args:
        asked: The request.
        blobs: The raw values of those inputs that have no data, one after the other.
        manifest: The model's.
        limits: Of one request.

    Raises:
        InvalidInputError: Something does not fit the model.
        PayloadTooLargeError: There are more samples than allowed.
    """
    if asked.id is not None and len(asked.id) > MAX_ID_CHARACTERS:
        raise InvalidInputError(
            f"id has {len(asked.id):,} characters, at most {MAX_ID_CHARACTERS:,} are given back"
        )
    inputs = read_inputs(asked.inputs, blobs, manifest, limits.samples)
    return InferRequest(inputs, _requested_outputs(asked, manifest), asked.id)


def encode_infer(
    outputs: Arrays, asked: InferRequest, manifest: Manifest
) -> tuple[bytes, int | None]:
    """Encode those of the model's outputs that the request asks for.

    Returns:
        The body, and the length of the JSON at its start; None if all of it is JSON.

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
    """An output's values as Python numbers, nested as the array's shape.

    Raises:
        NonFiniteOutputError: A value is NaN or infinite.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise NonFiniteOutputError(
            f"the output {name} holds NaN or infinite values, which JSON cannot express; expected "
            "finite ones; ask for binary outputs of the Open Inference Protocol (the parameter "
            "binary_data_output) to receive them"
        )
    numbers: list[Any] = values.tolist()
    return numbers


def infer_paths(manifest: Manifest) -> list[str]:
    """The URL paths that take inference requests for a model."""
    model = f"/v2/models/{manifest.name}"
    return [f"{model}/infer", f"{model}/versions/{manifest.version}/infer"]


def server_metadata() -> ServerMetadata:
    """The answer to ``GET /v2``; the version is the protocol's, since the code's is private."""
    return {"name": "proven-digits", "version": "2", "extensions": EXTENSIONS}


def model_metadata(manifest: Manifest, versions: Sequence[str] = ()) -> ModelMetadata:
    """The answer to ``GET /v2/models/MODEL``; ``versions`` are all that are served, if several."""
    return {
        "name": manifest.name,
        "versions": list(versions) or [manifest.version],
        "platform": PLATFORM,
        "inputs": [describe_tensor(spec) for spec in manifest.inputs],
        "outputs": [describe_tensor(spec) for spec in manifest.outputs],
    }


def describe_tensor(spec: TensorSpec) -> TensorMetadata:
    """A tensor's name, datatype and shape."""
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _parse_length(given: str, body_length: int) -> int:
    """The header's value, from 0 to the body's length."""
    if given == "0":  # the most frequent one
        return 0
    digits = given.lstrip("0") or given[:1]
    # Twenty digits are more bytes than any body has; Python refuses to read thousands of digits.
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
            "outputs is an empty list; expected one output or more; leave the field out to get all"
        )
    return asked


# Clients repeat the same few headers in front of their binary values.
_decode_cached = lru_cache(maxsize=256)(_decode_header)


def _requested_outputs(asked: InferBody, manifest: Manifest) -> dict[str, bool]:
    is_binary = asked.parameters.binary_data_output
    names = [spec.name for spec in manifest.outputs]
    if asked.outputs is None:
        return dict.fromkeys(names, is_binary)
    found: dict[str, bool] = {}
    for output in asked.outputs:
        if output.name not in names or output.name in found:
            again = "is asked for twice" if output.name in found else "is not known"
            raise InvalidInputError(
                f"output {quote_value(output.name)} {again}; {manifest.name} gives "
                f"{', '.join(names)}"
            )
        if output.parameters.shared_memory_region is not None:
            raise InvalidInputError(
                f"output {quote_value(output.name)} is wanted in shared memory, which is not "
                "served (shared_memory_region)"
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
    """The JSON of an answer; outputs without values follow it as bytes."""
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


# Clients may send a new id every time.
_encode_cached = lru_cache(maxsize=1024)(_encode_header)
