"""The Open Inference Protocol (KServe V2) over HTTP: requests to arrays and back, every rule.

JSON and the binary extension (``binary_tensor_data``): a body of JSON and, behind it, raw
little-endian blobs in the tensors' order; the header ``Inference-Header-Content-Length`` says how
many bytes are JSON. 0 means that the body is the only input's values and nothing else, and asks for
binary outputs.
"""

import json
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field, ValidationError

from export.manifest import Manifest
from export.parity.metrics import Arrays
from service.errors import InvalidInputError, shown
from service.settings import Limits
from service.strict_json import json_kind, parse_json
from service.tensors import (
    LITTLE_ENDIAN,
    InputTensor,
    Wire,
    check_count,
    read_inputs,
    sample_bytes,
)

EXTENSIONS = ["binary_tensor_data"]
PLATFORM = "onnxruntime_onnx"
EXPECTED = (
    "an inference request of the Open Inference Protocol: "
    '{"inputs": [{"name", "shape", "datatype", "data"}]}'
)
CACHED_BYTES, CACHED_HEADERS = 4096, 1024
LONGEST_ID = 1024
# The validator's findings in JSON's words.
WANTED = {
    "model_type": "an object",
    "dict_type": "an object",
    "list_type": "a list",
    "string_type": "a string",
    "int_type": "an integer",
    "bool_type": "true or false",
    "missing": "missing",
    "too_short": "a list that is not empty",
}
HEADER_LENGTH = "inference-header-content-length"
BINARY_TYPE = "application/octet-stream"


class _OutputParameters(Wire):
    binary_data: bool | None = None
    shared_memory_region: Any = None


class _Output(Wire):
    name: str
    parameters: _OutputParameters = _OutputParameters()


class _Parameters(Wire):
    binary_data_output: bool = False


class _Request(Wire):
    id: str | None = None
    parameters: _Parameters = _Parameters()
    inputs: list[InputTensor]
    outputs: list[_Output] | None = Field(None, min_length=1)


class InferRequest(NamedTuple):
    """A checked request.

    Attributes:
        inputs: By name, of the manifest's types and shapes, one count of samples.
        outputs: Names asked for, each with whether it shall be binary.
        id: Of the request, to be given back.
    """

    inputs: Arrays
    outputs: dict[str, bool]
    id: str | None = None

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(next(iter(self.inputs.values())))


def parse_infer(
    body: bytes, json_length: str | None, manifest: Manifest, limits: Limits
) -> InferRequest:
    """Read the body of ``POST /v2/models/MODEL/infer``.

    Args:
        body: What the client sent.
        json_length: The header ``Inference-Header-Content-Length``, if there is one.
        manifest: Of the model that is asked: its tensors.
        limits: What one request may hold.

    Raises:
        InvalidInputError: Says what came and what was expected.
        PayloadTooLargeError: More samples than allowed.
    """
    length = _json_length(json_length, len(body))
    if json_length is not None and length == 0:
        return _raw(body, manifest, limits.samples)
    header = body[:length]
    read = _known_header if length < min(len(body), CACHED_BYTES) else _header
    asked = read(header, limits.json_depth)
    if asked.id is not None and len(asked.id) > LONGEST_ID:
        raise InvalidInputError(
            f"id has {len(asked.id):,} characters, at most {LONGEST_ID:,} are given back"
        )
    inputs = read_inputs(asked.inputs, memoryview(body)[length:], manifest, limits.samples)
    return InferRequest(inputs, _outputs(asked, manifest), asked.id)


def format_infer(
    answers: Arrays, asked: InferRequest, manifest: Manifest
) -> tuple[bytes, int | None]:
    """The body of an answer, and how many bytes of it are JSON (None: all).

    Args:
        answers: All outputs by name.
        asked: Which of them, and in which form.
        manifest: Of the model that answered.
    """
    if all(asked.outputs.values()):
        header = _binary_header(manifest, tuple(asked.outputs), asked.samples, asked.id)
        blobs = [answers[name].tobytes() for name in asked.outputs]
        return b"".join([header, *blobs]), len(header)
    blobs, tensors = [], []
    for name, binary in asked.outputs.items():
        tensor = _tensor(manifest, name, asked.samples, binary=binary)
        if binary:
            blobs.append(answers[name].tobytes())
        else:
            tensor["data"] = answers[name].ravel().tolist()
        tensors.append(tensor)
    header = _answer_json(manifest, tensors, asked.id)
    return (b"".join([header, *blobs]), len(header)) if blobs else (header, None)


def infer_urls(manifest: Manifest) -> list[str]:
    """The paths at which a model is asked."""
    model = f"/v2/models/{manifest.name}"
    return [f"{model}/infer", f"{model}/versions/{manifest.version}/infer"]


def server_metadata() -> dict[str, object]:
    """What ``GET /v2`` says; the protocol's version, not the code's, which is nobody's business."""
    return {"name": "proven-digits", "version": "2", "extensions": EXTENSIONS}


def model_metadata(manifest: Manifest) -> dict[str, object]:
    """What ``GET /v2/models/MODEL`` says."""
    return {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": PLATFORM,
        "inputs": [spec.model_dump(exclude={"kind", "bounds"}) for spec in manifest.inputs],
        "outputs": [spec.model_dump(exclude={"kind", "bounds"}) for spec in manifest.outputs],
    }


def _tensor(manifest: Manifest, name: str, samples: int, *, binary: bool) -> dict[str, Any]:
    spec = next(spec for spec in manifest.outputs if spec.name == name)
    tensor = {"name": name, "datatype": spec.datatype, "shape": [samples, *spec.shape[1:]]}
    size = {"binary_data_size": samples * sample_bytes(spec)}
    return tensor | {"parameters": size} if binary else tensor


def _answer_json(manifest: Manifest, tensors: list[dict[str, Any]], id_: str | None) -> bytes:
    answer: dict[str, Any] = {"model_name": manifest.name, "model_version": manifest.version}
    if id_ is not None:
        answer["id"] = id_
    return json.dumps(answer | {"outputs": tensors}, separators=(",", ":")).encode()


def _binary_header(
    manifest: Manifest, names: tuple[str, ...], samples: int, id_: str | None
) -> bytes:
    key = (manifest.name, manifest.version, names, samples, id_)
    if key not in _answer_headers:
        tensors = [_tensor(manifest, name, samples, binary=True) for name in names]
        if len(_answer_headers) >= CACHED_HEADERS:  # ids are many; sizes are few
            _answer_headers.clear()
        _answer_headers[key] = _answer_json(manifest, tensors, id_)
    return _answer_headers[key]


_answer_headers: dict[tuple[object, ...], bytes] = {}


def _header(header: bytes, max_depth: int) -> _Request:
    try:
        return _Request.model_validate(parse_json(header, EXPECTED, max_depth))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the body"
        wanted = WANTED.get(problem["type"], problem["msg"].lower())
        came = "" if problem["type"] == "missing" else f"{json_kind(problem['input'])}; expected "
        raise InvalidInputError(f"{where} is {came}{wanted}; expected {EXPECTED}") from error


# Clients send the same few headers before their blobs again and again.
_known_header = lru_cache(maxsize=256)(_header)


def _json_length(given: str | None, body_length: int) -> int:
    if given is None:
        return body_length
    digits = given.lstrip("0") or given[:1]
    # Twenty digits are more bytes than there are; Python refuses to read thousands of them.
    length = int(digits[:20]) if given.isascii() and given.isdigit() else -1
    if not 0 <= length <= body_length:
        raise InvalidInputError(
            f"Inference-Header-Content-Length is {given[:40]!r}; expected the number of bytes of "
            f"JSON at the start of the body, 0 to {body_length}"
        )
    return length


def _raw(body: bytes, manifest: Manifest, max_samples: int) -> InferRequest:
    """The body is the only input's values."""
    if len(manifest.inputs) != 1:
        raise InvalidInputError(
            f"a body without JSON (Inference-Header-Content-Length: 0) is one input's values; "
            f"{manifest.name} has {len(manifest.inputs)}"
        )
    (spec,) = manifest.inputs
    size = sample_bytes(spec)
    count, rest = divmod(len(body), size)
    if rest or not count:
        raise InvalidInputError(
            f"the body has {len(body)} bytes; expected {size} for each sample of {spec}"
        )
    check_count(count, max_samples)
    values = np.frombuffer(body, LITTLE_ENDIAN[spec.datatype]).reshape(-1, *spec.shape[1:])
    return InferRequest({spec.name: values}, {tensor.name: True for tensor in manifest.outputs})


def _outputs(asked: _Request, manifest: Manifest) -> dict[str, bool]:
    binary = asked.parameters.binary_data_output
    names = [spec.name for spec in manifest.outputs]
    if asked.outputs is None:
        return dict.fromkeys(names, binary)
    found: dict[str, bool] = {}
    for output in asked.outputs:
        if output.name not in names or output.name in found:
            again = "is asked for twice" if output.name in found else "is not known"
            raise InvalidInputError(
                f"output {shown(output.name)} {again}; {manifest.name} gives {', '.join(names)}"
            )
        if output.parameters.shared_memory_region is not None:
            raise InvalidInputError(
                f"output {shown(output.name)} is wanted in shared memory, which is not served "
                "(shared_memory_region)"
            )
        given = output.parameters.binary_data
        found[output.name] = binary if given is None else given
    return found
