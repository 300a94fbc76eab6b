"""Complete, valid bundles around tiny ONNX graphs, for tests of models that are not digits.

The golden samples' answers are computed by ONNX Runtime itself: these bundles test the service, not
the parity of an export.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.bundle.golden import Golden
from export.bundle.manifest import (
    DTYPES,
    Datatype,
    Domain,
    ImagePreprocessing,
    Manifest,
    ParityVerdict,
    SampleSet,
    TensorSpec,
)
from export.bundle.metrics import Array, Arrays
from export.bundle.session import OnnxModel
from export.bundle.store import Bundle, file_entry, staged, write_bundle
from export.bundle.tolerances import TOLERANCES, tolerance_for

OPSET, IR_VERSION = 18, 9
VERSION, SHA256 = "1", "0" * 64


def make_bundle(
    folder: Path,
    name: str,
    onnx_model: onnx.ModelProto,
    golden_inputs: Arrays,
    *,
    bounds: dict[str, dict[int, tuple[int, int]]] | None = None,
    axes: dict[str, dict[int, str]] | None = None,
    domains: dict[str, Domain] | None = None,
    kinds: dict[str, str] | None = None,
    **fields: Any,
) -> Bundle:
    """Write a bundle to ``folder / name``.

    Args:
        folder: Of all bundles, for example the setting ``bundles``.
        name: The model's.
        onnx_model: Its inputs' and outputs' first axes are the batch.
        golden_inputs: By input name, at least one sample; the answers are computed here.
        bounds: By tensor, the bounds of its variable axes (see ``TensorSpec``).
        axes: By tensor, the names of its variable axes.
        domains: By input, the values that it may have.
        kinds: By output, "logits" or "probabilities".
        fields: Further fields of the manifest: version, task, labels, preprocessing.
    """
    with staged(folder / name) as staging:
        path = staging / "model.onnx"
        path.write_bytes(onnx_model.SerializeToString(deterministic=True))
        count = len(next(iter(golden_inputs.values())))
        _compute_golden(path, golden_inputs, count).save(staging / "golden.npz")
        parity = staging / "parity.json"
        parity.write_text(json.dumps({"made": "for tests"}) + "\n")
        model_fields = {"format": "onnx", "precision": "fp32", "opset": OPSET}
        manifest = Manifest(
            name=name,
            version=fields.pop("version", VERSION),
            architecture="tests",
            inputs=tuple(
                spec.model_copy(update={"domain": (domains or {}).get(spec.name)})
                for spec in _specs(onnx_model.graph.input, bounds or {}, axes or {}, {})
            ),
            outputs=_specs(onnx_model.graph.output, bounds or {}, axes or {}, kinds or {}),
            labels=tuple(fields.pop("labels", ())),
            files=(
                file_entry(path, role="model", **model_fields),
                file_entry(staging / "golden.npz", role="golden"),
                file_entry(parity, role="parity"),
            ),
            parity=(_passed_verdict(count),),
            proof=SampleSet(name="samples of a test", samples=count, sha256=SHA256),
            calibration=None,
            not_built={},
            tolerances=TOLERANCES,
            training=None,
            commit="0" * 40,
            versions={},
            **fields,
        )
        return write_bundle(staging, folder / name, manifest)


def _compute_golden(path: Path, inputs: Arrays, count: int) -> Golden:
    """Golden samples without labels, whose reference outputs are the model's own."""
    answers = OnnxModel(path, "cpu")(inputs)
    truth = {key: array.astype(np.float64) for key, array in answers.items()}
    return Golden(inputs, answers, truth, np.full(count, -1, np.int64))


def make_vector_bundle(folder: Path, name: str = "vectors") -> Bundle:
    """A model of x FP32 [-1, 4] to y FP32 [-1, 2]: y = x @ weights."""
    weights = np.arange(8, dtype=np.float32).reshape(4, 2)
    model = make_model(
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        [("x", "FP32", [None, 4])],
        [("y", "FP32", [None, 2])],
        {"weights": weights},
    )
    return make_bundle(folder, name, model, {"x": _samples(6, 4)})


def make_slow_bundle(folder: Path, name: str = "slow", *, layers: int) -> Bundle:
    """Convolutions, x FP32 [-1, 1, 28, 28] to y: milliseconds of a core for each sample."""
    weights = _samples(64, 64, 3, 3) * np.float32(0.04)
    convolutions = [
        helper.make_node("Conv", [f"x{i}", "weights"], [f"x{i + 1}"], pads=[1, 1, 1, 1])
        for i in range(layers)
    ]
    spread = helper.make_node("Conv", ["x", "first"], ["x0"], pads=[1, 1, 1, 1])
    mean = helper.make_node("GlobalAveragePool", [f"x{layers}"], ["y"])
    model = make_model(
        [spread, *convolutions, mean],
        [("x", "FP32", [None, 1, 28, 28])],
        [("y", "FP32", [None, 64, 1, 1])],
        {"first": _samples(64, 1, 3, 3), "weights": weights},
    )
    return make_bundle(folder, name, model, {"x": _samples(64, 1, 28, 28)})


def make_text_bundle(folder: Path, name: str = "text") -> Bundle:
    """A model of ids INT64 and mask FP32, both [-1, 1..16], to the masked mean FP32 [-1, 1]."""
    model = make_model(
        [
            helper.make_node("Cast", ["ids"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["values", "mask"], ["masked"]),
            helper.make_node("ReduceSum", ["masked", "axis"], ["sum"], keepdims=1),
            helper.make_node("ReduceSum", ["mask", "axis"], ["count"], keepdims=1),
            helper.make_node("Max", ["count", "one"], ["divisor"]),
            helper.make_node("Div", ["sum", "divisor"], ["mean"]),
        ],
        [("ids", "INT64", [None, None]), ("mask", "FP32", [None, None])],
        [("mean", "FP32", [None, 1])],
        {"axis": np.array([1], np.int64), "one": np.array(1, np.float32)},
    )
    ids = np.arange(20, dtype=np.int64).reshape(4, 5)
    inputs: Arrays = {"ids": ids, "mask": (ids % 3 > 0).astype(np.float32)}
    variable, tokens = {1: (1, 16)}, {1: "tokens"}
    return make_bundle(
        folder,
        name,
        model,
        inputs,
        bounds={"ids": variable, "mask": variable},
        axes={"ids": tokens, "mask": tokens},
        domains={"ids": Domain(kind="tokens", low=0, high=99)},
    )


def make_rgb_bundle(folder: Path, name: str = "colours") -> Bundle:
    """A model of pixels FP32 [-1, 3, 8, 8] to logits FP32 [-1, 3]: the mean of each channel.

    The labels are red, green and blue.
    """
    model = make_model(
        [helper.make_node("ReduceMean", ["pixels", "axes"], ["logits"], keepdims=0)],
        [("pixels", "FP32", [None, 3, 8, 8])],
        [("logits", "FP32", [None, 3])],
        {"axes": np.array([2, 3], np.int64)},
    )
    preprocessing = ImagePreprocessing(
        resize=10,
        crop=(8, 8),
        channels=3,
        layout="NCHW",
        scale=1 / 255,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    return make_bundle(
        folder,
        name,
        model,
        {"pixels": _samples(4, 3, 8, 8)},
        kinds={"logits": "logits"},
        task="image-classification",
        labels=("red", "green", "blue"),
        preprocessing=preprocessing,
    )


def make_nan_bundle(folder: Path, name: str = "roots") -> Bundle:
    """A model of x FP32 [-1, 2] to y = sqrt(x), which is NaN for negative numbers."""
    model = make_model(
        [helper.make_node("Sqrt", ["x"], ["y"])],
        [("x", "FP32", [None, 2])],
        [("y", "FP32", [None, 2])],
        {},
    )
    return make_bundle(folder, name, model, {"x": np.abs(_samples(4, 2))})


def make_misnamed_bundle(folder: Path, name: str = "misnamed", **fields: Any) -> Bundle:
    """A model of images FP32 [-1, 4] to probabilities FP32 [-1, 4]: names as those of digits."""
    model = make_model(
        [helper.make_node("Softmax", ["images"], ["probabilities"], axis=-1)],
        [("images", "FP32", [None, 4])],
        [("probabilities", "FP32", [None, 4])],
        {},
    )
    return make_bundle(folder, name, model, {"images": _samples(4, 4)}, **fields)


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, Datatype, list[int | None]]],
    outputs: Sequence[tuple[str, Datatype, list[int | None]]],
    constants: Arrays,
) -> onnx.ModelProto:
    """An ONNX model of a few nodes; None is the size of a variable axis."""
    graph = helper.make_graph(
        list(nodes),
        "tests",
        [_value(*tensor) for tensor in inputs],
        [_value(*tensor) for tensor in outputs],
        [numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


def _value(name: str, datatype: Datatype, shape: list[int | None]) -> onnx.ValueInfoProto:
    element = helper.np_dtype_to_tensor_dtype(DTYPES[datatype])
    # Axes of one name have one size in ONNX; the batch axis is the only one that all share.
    sizes: list[int | str | None] = ["batch" if axis == 0 else s for axis, s in enumerate(shape)]
    return helper.make_tensor_value_info(name, element, sizes)


def _specs(
    values: Sequence[onnx.ValueInfoProto],
    bounds: dict[str, dict[int, tuple[int, int]]],
    axes: dict[str, dict[int, str]],
    kinds: dict[str, str],
) -> tuple[TensorSpec, ...]:
    """The tensors' descriptions in the manifest, from the graph's own."""
    datatypes = {dtype: datatype for datatype, dtype in DTYPES.items()}
    specs = []
    for value in values:
        tensor = value.type.tensor_type
        sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
        fields = {
            "name": value.name,
            "datatype": datatypes[helper.tensor_dtype_to_np_dtype(tensor.elem_type)],
            "shape": sizes,
            "kind": kinds.get(value.name, "values"),
            "bounds": bounds.get(value.name, {}),
            "axes": axes.get(value.name, {}),
        }
        specs.append(TensorSpec.model_validate(fields))
    return tuple(specs)


def _passed_verdict(samples: int) -> ParityVerdict:
    return ParityVerdict(
        format="onnx",
        precision="fp32",
        device="cpu",
        passed=True,
        scaled_error=0,
        rms_ratio=1,
        sqnr_db=None,
        label_flips=0,
        accuracy=None,
        certificate=None,
        samples=samples,
        batch_sizes=(1,),
        tolerance=tolerance_for("onnx", "cpu"),
    )


def _samples(*shape: int) -> Array:
    """Fixed pseudo-random numbers, float32."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)
