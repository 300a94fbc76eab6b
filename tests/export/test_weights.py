"""Every weight of the ONNX file is the checkpoint's, whether or not an image would show it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.bundle import Bundle
from export.check import rebuild
from export.parity.tolerances import FOLD_ERROR
from export.parity.weights import Provenance, check_weights


def _check(bundle: Path, onnx_file: Path | None = None) -> Provenance:
    opened = Bundle.open(bundle)
    return check_weights(onnx_file or opened.model_path("onnx"), rebuild(opened))


@pytest.mark.parametrize(("model", "equal", "folded"), [("cnn", 8, 0), ("mlp", 2, 2)])
def test_every_tensor_of_an_honest_export_is_accounted_for(
    model: str, equal: int, folded: int, bundles: Path
) -> None:
    """Without BatchNorm all are bit-equal; with it the folded ones equal the float64 fold."""
    found = _check(bundles / model)
    assert (len(found.equal), len(found.folded)) == (equal, folded)
    assert found.failures == ()
    assert found.fold_error <= FOLD_ERROR / 2


@pytest.mark.parametrize("model", ["cnn", "mlp"])
@pytest.mark.parametrize("factor", [1.01, -1.0, float("nan")])
def test_one_changed_weight_in_any_tensor_is_named(
    model: str, factor: float, bundles: Path, tmp_path: Path
) -> None:
    """A random element of each tensor, 1% off, negated or NaN, is found with its position."""
    generator = np.random.default_rng(0)
    honest = onnx.load(bundles / model / "model.onnx")
    names = [t.name for t in honest.graph.initializer if t.name.startswith("classifier.")]
    assert len(names) >= 4
    for name in names:
        faulty = onnx.ModelProto.FromString(honest.SerializeToString())
        tensor = next(t for t in faulty.graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor).copy()
        position = tuple(int(generator.integers(size)) for size in values.shape)
        values[position] *= factor
        tensor.CopyFrom(numpy_helper.from_array(values, name))
        onnx.save(faulty, tmp_path / "faulty.onnx")
        (failure,) = _check(bundles / model, tmp_path / "faulty.onnx").failures
        assert name in failure
        assert f"[{', '.join(map(str, position))}] is" in failure


def test_a_missing_and_a_misshapen_tensor_are_named(bundles: Path, tmp_path: Path) -> None:
    """A dropped bias and a transposed weight are told by name and shape."""
    model = onnx.load(bundles / "cnn" / "model.onnx")
    kept = [t for t in model.graph.initializer if t.name != "classifier.head.1.bias"]
    for tensor in kept:
        if tensor.name == "classifier.head.4.weight":
            transposed = numpy_helper.to_array(tensor).T.copy()
            tensor.CopyFrom(numpy_helper.from_array(transposed, tensor.name))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    (tmp_path / "faulty.onnx").write_bytes(model.SerializeToString())
    failures = _check(bundles / "cnn", tmp_path / "faulty.onnx").failures
    assert len(failures) == 2
    assert "classifier.head.1.bias is not in the ONNX file" in failures[0]
    assert "classifier.head.4.weight is (16, 10), expected (10, 16)" in failures[1]
