"""Example requests of the OpenAPI document; the service answers each of them with 200."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from export.bundle.manifest import Manifest, TensorSpec

JSON, BYTES = "application/json", "application/octet-stream"
# Models with larger samples get no examples: the document would consist of zeros.
MOST_VALUES = 4096
_BLANK = [[0] * 28] * 28


class Example(NamedTuple):
    """A request for one sample of zeros.

    Attributes:
        name: Unique among the examples of an operation.
        summary: The form of the request, in words.
        body: A JSON value, or a string whose characters are the bytes to send.
        model: The model in the path.
        version: The version in the path, if the path has one.
        json_length: The header Inference-Header-Content-Length; None if it is not sent.
    """

    name: str
    summary: str
    body: Any
    model: str
    version: str
    json_length: int | None = None

    @property
    def media_type(self) -> str:
        """Content type of the body."""
        return JSON if self.json_length is None else BYTES


def inference_examples(manifests: Sequence[Manifest]) -> list[Example]:
    """Requests to /infer: JSON, JSON followed by bytes and, for one input, bytes only."""
    found = []
    for manifest in manifests:
        if not _is_small(manifest):
            continue
        tensors: list[dict[str, Any]] = [
            {"name": spec.name, "shape": [1, *_smallest_sample(spec)], "datatype": spec.datatype}
            for spec in manifest.inputs
        ]
        arrays = [
            np.zeros(math.prod(_smallest_sample(spec)), spec.dtype) for spec in manifest.inputs
        ]
        sizes = [{"binary_data_size": array.nbytes} for array in arrays]
        pairs = list(zip(tensors, arrays, sizes, strict=True))
        values = {"inputs": [tensor | {"data": array.tolist()} for tensor, array, _ in pairs]}
        header = json.dumps({"inputs": [t | {"parameters": size} for t, _, size in pairs]})
        zeros = "\0" * sum(array.nbytes for array in arrays)
        name, who = manifest.name, (manifest.name, manifest.version)
        found.append(Example(f"{name}-json", "JSON", values, *who))
        found.append(
            Example(f"{name}-binary", "JSON followed by bytes", header + zeros, *who, len(header))
        )
        if len(tensors) == 1 and not manifest.inputs[0].bounds:
            found.append(Example(f"{name}-raw", "the bytes of the only input", zeros, *who, 0))
    return found


def named_tensors_examples(manifests: Sequence[Manifest]) -> list[Example]:
    """Requests to /models/{model}/predict."""
    return [
        _example(
            manifest,
            {
                "inputs": {
                    spec.name: np.zeros((1, *_smallest_sample(spec)), spec.dtype).tolist()
                    for spec in manifest.inputs
                }
            },
        )
        for manifest in manifests
        if _is_small(manifest)
    ]


def predict_examples(manifests: Sequence[Manifest]) -> list[Example]:
    """Requests to /predict, which name the model in the body."""
    return [_example(m, {"images": _BLANK, "model": m.name}) for m in manifests]


def features_examples(manifests: Sequence[Manifest]) -> list[Example]:
    """Requests to /models/{model}/features."""
    return [_example(manifest, {"images": _BLANK}) for manifest in manifests]


def _example(manifest: Manifest, body: Any) -> Example:
    return Example(manifest.name, "JSON", body, manifest.name, manifest.version)


def _is_small(manifest: Manifest) -> bool:
    return sum(math.prod(_smallest_sample(spec)) for spec in manifest.inputs) <= MOST_VALUES


def _smallest_sample(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(low for low, _ in spec.sample_bounds)
