"""Faults planted in exported files, as an exporter or a bad disk could make them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


def change_one_weight(bundle: Path, factor: float) -> None:
    """Multiply the first convolution's largest weight in the ONNX file."""
    model = onnx.load(bundle / "model.onnx")
    weight = next(t for t in model.graph.initializer if t.name.endswith("features.0.weight"))
    values = numpy_helper.to_array(weight).copy()
    values.flat[np.abs(values).argmax()] *= factor
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, bundle / "model.onnx")
    rehash(bundle, "model.onnx")


def rehash(bundle: Path, name: str) -> None:
    """Make the manifest agree with a changed file, as a faulty build would have written it."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    content = (bundle / name).read_bytes()
    for entry in manifest["files"]:
        if entry["path"] == name:
            entry["sha256"] = hashlib.sha256(content).hexdigest()
            entry["size_bytes"] = len(content)
    path.write_text(json.dumps(manifest))
