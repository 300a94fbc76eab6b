"""Runs a bundle's model for the peers: parses tensors from bytes and encodes outputs as bytes.

This module needs only NumPy and ONNX Runtime, which every peer's environment has. The environment
variable BUNDLE names the bundle's folder; the shapes of a sample are those of its golden samples.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


class Tensor(NamedTuple):
    """An input or output tensor of the model; ``shape`` is that of one sample."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Served:
    """The bundle's model, run on one CPU thread.

    Attributes:
        inputs: The inputs, in the order of the manifest.
        outputs: All outputs, except logits if probabilities are an output.
    """

    def __init__(self) -> None:
        """Read the bundle and load the model."""
        bundle = Path(os.environ["BUNDLE"])
        manifest = json.loads((bundle / "manifest.json").read_text())
        with np.load(bundle / "golden.npz", allow_pickle=False) as golden:
            arrays = dict(golden)
        self.inputs = _tensors(manifest["inputs"], arrays, "inputs")
        kinds = {row.get("kind") for row in manifest["outputs"]}
        rows = [
            row
            for row in manifest["outputs"]
            if row.get("kind") != "logits" or "probabilities" not in kinds
        ]
        self.outputs = _tensors(rows, arrays, "eager")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path, providers = bundle / "model.onnx", ["CPUExecutionProvider"]
        self._session = ort.InferenceSession(path, options, providers=providers)

    def run(self, inputs: Arrays) -> list[Array]:
        """Compute the outputs of a batch, each [N, ...]."""
        found = self._session.run([tensor.name for tensor in self.outputs], inputs)
        return [np.asarray(values) for values in found]

    def decode(self, content: bytes) -> Arrays:
        """Parse a request: the concatenated bytes of its tensors, each [N, ...].

        Raises:
            ValueError: The size is not a multiple of a sample's.
        """
        sample_bytes = sum(
            int(np.prod(tensor.shape)) * tensor.dtype.itemsize for tensor in self.inputs
        )
        samples, rest = divmod(len(content), sample_bytes)
        if rest or not samples:
            raise ValueError(f"{len(content)} bytes, expected a multiple of {sample_bytes}")
        start, found = 0, {}
        for tensor in self.inputs:
            shape = (samples, *tensor.shape)
            size = int(np.prod(shape)) * tensor.dtype.itemsize
            values = np.frombuffer(content[start : start + size], tensor.dtype)
            found[tensor.name] = values.reshape(shape)
            start += size
        return found

    def batch(self, requests: Iterable[Arrays]) -> Arrays:
        """Concatenate several requests' tensors into one batch."""
        parts = list(requests)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def encode(outputs: Iterable[Array]) -> bytes:
    """Encode outputs as their concatenated bytes."""
    return b"".join(values.tobytes() for values in outputs)


def _tensors(rows: list[dict[str, Any]], arrays: Arrays, group: str) -> list[Tensor]:
    found = [(row["name"], arrays[f"{group}/{row['name']}"]) for row in rows]
    return [Tensor(name, array.dtype, array.shape[1:]) for name, array in found]
