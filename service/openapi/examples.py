"""Example requests of the OpenAPI document; the service answers each of them with 200."""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.manifest import Manifest
from service.tensors import sample_bytes

JSON, BYTES = "application/json", "application/octet-stream"
# Models with larger samples get no examples: the document would be mostly zeros.
MOST_VALUES = 10_000


@dataclass(frozen=True)
class Example:
    """An inference request for one sample of zeros.

    Attributes:
        summary: What is special about this form of the request.
        body: A JSON value, or a string of the bytes to send.
        json_length: The header Inference-Header-Content-Length; None if it is not sent.
    """

    summary: str
    body: Any
    json_length: int | None = None

    @property
    def media_type(self) -> str:
        """Content type of the body."""
        return JSON if self.json_length is None else BYTES


def inference_examples(manifest: Manifest) -> dict[str, Example]:
    """Requests to /infer by name: JSON; JSON followed by bytes; bytes only, if one input."""
    if not _is_small(manifest):
        return {}
    tensors = [
        {"name": spec.name, "shape": [1, *spec.shape[1:]], "datatype": spec.datatype}
        for spec in manifest.inputs
    ]
    values = [np.zeros(math.prod(s.shape[1:]), s.dtype).tolist() for s in manifest.inputs]
    sizes = [sample_bytes(spec) for spec in manifest.inputs]
    header = json.dumps(
        {
            "inputs": [
                tensor | {"parameters": {"binary_data_size": size}}
                for tensor, size in zip(tensors, sizes, strict=True)
            ]
        }
    )
    zeros = "\0" * sum(sizes)
    name = manifest.name
    pairs = zip(tensors, values, strict=True)
    found = {
        f"{name}-json": Example("JSON", {"inputs": [t | {"data": data} for t, data in pairs]}),
        f"{name}-binary": Example("JSON followed by bytes", header + zeros, len(header)),
    }
    if len(tensors) == 1:
        found[f"{name}-raw"] = Example("the bytes of the only input", zeros, 0)
    return found


def named_tensors_example(manifest: Manifest) -> dict[str, Any] | None:
    """The body of a request to /models/{model}/predict; None if its samples are too large."""
    if not _is_small(manifest):
        return None
    arrays = {spec.name: np.zeros((1, *spec.shape[1:]), spec.dtype) for spec in manifest.inputs}
    return {"inputs": {name: array.tolist() for name, array in arrays.items()}}


def _is_small(manifest: Manifest) -> bool:
    return sum(math.prod(spec.shape[1:]) for spec in manifest.inputs) <= MOST_VALUES
