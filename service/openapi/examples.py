"""Example requests of the OpenAPI document; the service answers each of them with 200."""

import json
import math
from typing import Any, NamedTuple

import numpy as np

from export.bundle.manifest import Manifest, TensorSpec
from export.bundle.metrics import Array

# Models with larger samples get no examples, which would be nothing but long lists of zeros.
MOST_VALUES = 4096
_JSON, _BYTES = "application/json", "application/octet-stream"
_JSON_LENGTH = "Inference-Header-Content-Length"
_BLANK = [[0] * 28] * 28


class Example(NamedTuple):
    """A request for one sample of zeros, or of the smallest allowed values.

    Attributes:
        name: Unique among the examples of an operation.
        summary: The form of the request, in words.
        body: A JSON value, or a string whose characters are the bytes to send.
        parameters: Values of parameters in the path and in headers.
        media_type: Content type of the body.
    """

    name: str
    summary: str
    body: Any
    parameters: dict[str, str | int]
    media_type: str = _JSON


def request_examples(operation_id: str, manifest: Manifest) -> list[Example]:
    """Return an operation's examples for one model; none if the model's samples are large."""
    if sum(math.prod(_smallest_sample(spec)) for spec in manifest.inputs) > MOST_VALUES:
        return []
    if operation_id in ("infer", "infer_version"):
        return _inference_examples(manifest)
    bodies: dict[str, Any] = {
        "predict_named_tensors": {
            "inputs": {spec.name: _one_sample(spec).tolist() for spec in manifest.inputs}
        },
        "predict": {"images": _BLANK, "model": manifest.name},
        "features": {"images": _BLANK},
    }
    if operation_id not in bodies:
        return []
    return [Example(manifest.name, "JSON", bodies[operation_id], _path_parameters(manifest))]


def _inference_examples(manifest: Manifest) -> list[Example]:
    """Return examples as JSON, JSON followed by bytes and, for a single fixed shape, bytes only.

    Only zero bytes can be shown as text, so other values get the JSON example alone.
    """
    name, path = manifest.name, _path_parameters(manifest)
    with_data, with_size, size_bytes, zeros_alone = [], [], 0, True
    for spec in manifest.inputs:
        values = _one_sample(spec)
        zeros_alone = zeros_alone and not values.any()
        tensor = {"name": spec.name, "shape": list(values.shape), "datatype": spec.datatype}
        with_data.append(tensor | {"data": values.ravel().tolist()})
        with_size.append(tensor | {"parameters": {"binary_data_size": values.nbytes}})
        size_bytes += values.nbytes
    header, zeros = json.dumps({"inputs": with_size}), "\0" * size_bytes
    before_bytes = path | {_JSON_LENGTH: len(header)}
    found = [Example(f"{name}-json", "JSON", {"inputs": with_data}, path)]
    if not zeros_alone:
        return found
    words = "JSON followed by bytes"
    found.append(Example(f"{name}-binary", words, header + zeros, before_bytes, _BYTES))
    if len(manifest.inputs) == 1 and not manifest.inputs[0].bounds:
        words, only_bytes = "the bytes of the only input", path | {_JSON_LENGTH: 0}
        found.append(Example(f"{name}-raw", words, zeros, only_bytes, _BYTES))
    return found


def _path_parameters(manifest: Manifest) -> dict[str, str | int]:
    return {"model": manifest.name, "version": manifest.version}


def _one_sample(spec: TensorSpec) -> Array:
    """Return a batch of one smallest sample of an input, filled with zeros if they are allowed."""
    domain, value = spec.domain, 0.0
    if domain is not None and domain.kind == "mask":
        value = 1.0
    elif domain is not None and domain.low is not None and domain.high is not None:
        value = min(max(0.0, domain.low), domain.high)
    return np.full((1, *_smallest_sample(spec)), value, spec.dtype)


def _smallest_sample(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(low for low, _ in spec.sample_bounds)
