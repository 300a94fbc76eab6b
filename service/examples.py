"""Worked requests of the OpenAPI document: each of them gets an answer as it stands."""

import json
import math
from dataclasses import dataclass
from typing import Any

from export.manifest import Manifest
from service.schemas import JSON, RAW
from service.tensors import sample_bytes


@dataclass(frozen=True)
class Example:
    """An inference request of one sample, all zeros.

    Attributes:
        body: JSON, or what is sent as it is.
        json_length: The header Inference-Header-Content-Length, if the request bears it.
    """

    summary: str
    body: Any
    json_length: int | None = None

    @property
    def media_type(self) -> str:
        """Of the body."""
        return JSON if self.json_length is None else RAW


def examples(manifest: Manifest) -> dict[str, Example]:
    """Inference requests to a model: JSON, JSON with blobs behind, blobs alone; by name."""
    tensors = [
        {"name": spec.name, "shape": [1, *spec.shape[1:]], "datatype": spec.datatype}
        for spec in manifest.inputs
    ]
    zeros = [
        [False if spec.datatype == "BOOL" else 0] * math.prod(spec.shape[1:])
        for spec in manifest.inputs
    ]
    sizes = [sample_bytes(spec) for spec in manifest.inputs]
    header = json.dumps(
        {
            "inputs": [
                tensor | {"parameters": {"binary_data_size": size}}
                for tensor, size in zip(tensors, sizes, strict=True)
            ]
        }
    )
    blobs = "\0" * sum(sizes)
    name = manifest.name
    pairs = zip(tensors, zeros, strict=True)
    found = {
        f"{name}-json": Example("JSON", {"inputs": [t | {"data": data} for t, data in pairs]}),
        f"{name}-binary": Example("JSON and, behind it, bytes", header + blobs, len(header)),
    }
    if len(tensors) == 1:
        found[f"{name}-raw"] = Example("the only input's bytes and nothing else", blobs, 0)
    return found
