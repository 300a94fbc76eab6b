"""Faults planted in exported files, as an exporter or a bad disk could cause them."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tests.rehash import rehash


def change_one_weight(bundle: Path, factor: float) -> None:
    """Multiply the first convolution's largest weight in the ONNX file."""
    model = onnx.load(bundle / "model.onnx")
    weight = next(t for t in model.graph.initializer if t.name.endswith("features.0.weight"))
    values = numpy_helper.to_array(weight).copy()
    values.flat[np.abs(values).argmax()] *= factor
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, bundle / "model.onnx")
    rehash(bundle, "model.onnx")
