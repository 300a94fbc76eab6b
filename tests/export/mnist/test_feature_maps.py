"""The first layer's file is the beginning of the proven file and gives the checkpoint's values."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from export.__main__ import main
from export.bundle.manifest import TensorSpec
from export.bundle.metrics import Array
from export.bundle.session import OnnxModel
from export.bundle.store import Bundle
from export.bundle.tolerances import tolerance_for, violations
from export.convert.onnx_export import model_bytes
from export.mnist.feature_maps import NoFirstLayerError, cut, cut_problems, measure_first_layer
from export.mnist.servable import ServableModel
from export.parity.judge import judge
from export.parity.run import ParityRun
from export.parity.schema import ParityFigures
from tests.export.subjects import tiny_subject
from tests.rehash import rehash
from training.models import build_model

ALLOWED = tolerance_for("onnx", "cpu")
PLACES = {"cnn": "features.1", "bn-cnn": "features.2", "mlp": "layers.2"}


@pytest.fixture(scope="module")
def proofs() -> dict[str, ParityRun]:
    """Tiny networks, exported once; tests must not change them."""
    return {model: ParityRun.of(tiny_subject(model)) for model in PLACES}


def _hooked(module: nn.Module, place: str, images: Tensor) -> Array:
    """The output of an inner module, from a PyTorch hook."""
    seen: list[Tensor] = []
    inside = module.get_submodule(f"classifier.{place}")
    hook = inside.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        module(images)
    hook.remove()
    (values,) = seen
    return np.asarray(values)


@pytest.mark.parametrize("model", PLACES)
def test_the_reference_is_the_modules_own_activation(
    model: str, proofs: dict[str, ParityRun]
) -> None:
    """The reference is bit-equal to a forward hook's output, in float32 and float64."""
    proof = proofs[model]
    first = proof.first_layer(proof.translation.model)
    inputs, module = proof.reference.first(20), proof.subject.module
    images, place = torch.from_numpy(inputs["images"]), PLACES[model]
    assert first.layer.startswith(f"classifier.{place} (ReLU after ")
    for double, run in ((False, module), (True, copy.deepcopy(module).double())):
        found = first.values(inputs, double=double)[first.output.name]
        assert found.dtype == (np.float64 if double else np.float32)
        assert np.array_equal(found, _hooked(run, place, images))


def _spoilt(model: onnx.ModelProto, *, strongest: bool) -> onnx.ModelProto:
    """The model with one weight of its first layer 1% off, the largest or the smallest."""
    changed = copy.deepcopy(model)
    weight = next(t for t in changed.graph.initializer if t.name.endswith(".0.weight"))
    values = numpy_helper.to_array(weight).copy()
    size = np.abs(values)
    values.flat[size.argmax() if strongest else size.argmin()] *= 1.01
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return changed


@pytest.mark.parametrize("model", PLACES)
def test_an_honest_file_passes_and_one_weight_off_does_not(
    model: str, proofs: dict[str, ParityRun], tmp_path: Path
) -> None:
    """The values reveal 1% of a strong weight, the comparison of tensors 1% of the weakest."""
    proof, path = proofs[model], tmp_path / "model.features.onnx"
    whole = proof.translation.model
    first = proof.first_layer(whole)
    part, inputs = cut(whole, first.output), proof.reference.first(40)
    assert cut_problems(part, whole, first.output) == []
    for candidate, caught in ((part, False), (_spoilt(part, strongest=True), True)):
        path.write_bytes(model_bytes(candidate))
        found = measure_first_layer(first, path, whole, OnnxModel(path, "cpu"), inputs)
        assert set(found.by_batch) == {1, 7, 64}
        for comparison in found.by_batch.values():
            assert bool(list(violations(comparison, ALLOWED))) == caught
        assert bool(found.problems) == caught
    (problem,) = cut_problems(_spoilt(part, strongest=False), whole, first.output)
    assert "tensor classifier." in problem
    assert "differs from the ONNX file" in problem


def test_the_cut_is_as_the_whole_file_and_the_same_each_time(proofs: dict[str, ParityRun]) -> None:
    """The bytes are reproducible, opset, IR version and input match, and no node is superfluous."""
    for proof in proofs.values():
        whole = proof.translation.model
        first = proof.first_layer(whole)
        part = cut(whole, first.output)
        assert model_bytes(part) == model_bytes(cut(whole, first.output))
        assert part.ir_version == whole.ir_version
        assert part.opset_import == whole.opset_import
        assert list(part.graph.input) == list(whole.graph.input)
        assert part.graph.node[-1].output[0] == first.output.name
        assert {node.op_type for node in part.graph.node} & {"MaxPool", "Softmax"} == set()


@pytest.mark.parametrize(
    ("architecture", "words", "shape"),
    [
        ("conv1d", "Conv 5, 2 channels", (-1, 2, 28)),
        ("conv3d", "Conv 3x5x5, 2 channels", (-1, 2, 3, 24, 24)),
        pytest.param("inception", "Conv 1x1, 2 channels", (-1, 2, 28, 28), marks=pytest.mark.slow),
        pytest.param("resnet", "Conv 5x5, 4 channels", (-1, 4, 14, 14), marks=pytest.mark.slow),
    ],
)
def test_other_networks_have_a_first_layer_too(
    architecture: str, words: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Convolutions over rows, over volumes, in branches and before blocks are found."""
    numbers = {
        "inception": {"width": 2},
        "resnet": {"channels": 4, "blocks": 1},
    }.get(architecture, {"n1": 2, "n2": 4, "n3": 16})
    torch.manual_seed(0)
    module = ServableModel(build_model(architecture, numbers))
    proof = ParityRun.of(dataclasses.replace(tiny_subject("mlp"), module=module))
    whole, path = proof.translation.model, tmp_path / "model.features.onnx"
    first = proof.first_layer(whole)
    path.write_bytes(model_bytes(cut(whole, first.output)))
    found = measure_first_layer(
        first, path, whole, OnnxModel(path, "cpu"), proof.reference.first(40)
    )
    assert words in first.layer
    assert first.output.shape == shape
    assert not found.problems
    assert not [c for found in found.by_batch.values() for c in violations(found, ALLOWED)]


def test_what_has_no_first_layer_says_why(proofs: dict[str, ParityRun]) -> None:
    """Without an activation after a product, or with other inputs, the error gives the reason."""
    proof = proofs["mlp"]
    bare = copy.deepcopy(proof.translation.model)
    for node in bare.graph.node:
        node.op_type = node.op_type.replace("Relu", "Identity")
    with pytest.raises(NoFirstLayerError, match="no activation after"):
        proof.first_layer(bare)
    floats = (TensorSpec(name="images", datatype="FP32", shape=(-1, 28, 28)),)
    other = dataclasses.replace(proof, subject=dataclasses.replace(proof.subject, inputs=floats))
    with pytest.raises(NoFirstLayerError, match=r"whose only input is images=UINT8\[-1,28,28\]"):
        other.first_layer(proof.translation.model)


def test_the_bundle_names_hashes_and_proves_the_first_layer(bundles: Path) -> None:
    """Manifest and parity.json have layer, figures and tolerance, and the file has metadata."""
    for model, words in (("cnn", "features.1 (ReLU after Conv 5x5, 2 channels)"), ("mlp", "units")):
        bundle = Bundle.open(bundles / model)
        shown = bundle.manifest.features
        assert shown is not None
        assert words in shown.layer
        assert shown.verdict.passed
        assert shown.verdict.tolerance == bundle.manifest.tolerance("cpu")
        figures = ParityFigures.model_validate(
            json.loads(bundle.path("parity").read_text()), strict=False
        )
        assert judge(figures, figures.tolerances).features == shown
        said = OnnxModel(bundle.path("features"), "cpu").metadata
        assert (said["name"], said["variant"]) == (model, "features")
        assert said["outputs"] == f"{shown.output} (values)"
        strict = [t.model_copy(update={"rms_ratio": 1.0}) for t in figures.tolerances]
        judged = judge(figures, strict).features
        assert judged is not None
        assert judged.verdict.passed == (shown.verdict.rms_ratio <= 1)


def test_a_changed_first_layer_turns_both_checks_red(
    bundle: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A weight 1% off in this file, with its hash updated, gives status 1 and is named."""
    path = bundle / "model.features.onnx"
    path.write_bytes(model_bytes(_spoilt(onnx.load(path), strongest=True)))
    rehash(bundle, path.name)
    assert main(["check", str(bundle), "--quick"]) == 1
    assert "feature maps, batch 1, relu: scaled error" in capsys.readouterr().err
    assert main(["check", str(bundle), "--data-dir", str(data_dir)]) == 1
    found = capsys.readouterr()
    assert "first layer        cpu: FAILED" in found.out
    assert "model.features.onnx, batch 1: scaled error" in found.err
    assert "tensor classifier.features.0.weight differs from the ONNX file" in found.err


def test_a_file_cut_elsewhere_is_no_first_layer(proofs: dict[str, ParityRun]) -> None:
    """A file cut at the second activation is refused for its output and its extra nodes."""
    whole = proofs["cnn"].translation.model
    first = proofs["cnn"].first_layer(whole)
    second = TensorSpec(name="relu_1", datatype="FP32", shape=(-1, 4, 8, 8))
    problems = cut_problems(cut(whole, second), whole, first.output)
    assert "outputs: expected relu=FP32[-1,2,24,24], found relu_1=FP32[-1,4,8,8]" in problems
    assert "node node_conv2d_1 differs from the ONNX file that it was cut from" in problems


def test_feature_maps_without_their_proof_are_no_bundle(bundle: Path) -> None:
    """A manifest with the file but no verdict, or the reverse, is refused with status 2."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "features": None}))
    assert main(["check", str(bundle), "--quick"]) == 2
    files = [f for f in manifest["files"] if not f["role"].startswith("features")]
    path.write_text(json.dumps({**manifest, "files": files}))
    assert main(["check", str(bundle), "--quick"]) == 2
