"""Bundles of models other than digits are opened, run and answered according to their task."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")

from export.bundle.golden import Golden, check_golden
from export.bundle.manifest import BundleError
from export.bundle.metrics import Arrays
from export.bundle.session import OnnxModel
from export.bundle.store import Bundle
from service.adapters.adapter import choose_adapter
from service.protocol.errors import NonFiniteOutputError
from service.protocol.oip import decode_infer, encode_infer
from service.settings import Limits
from tests.service import made_bundles as made

LIMITS = Limits(10)


def _run(bundle: Bundle, inputs: Arrays) -> Arrays:
    return OnnxModel(bundle.model_path("onnx"), "cpu")(inputs)


def _answer(bundle: Bundle, body: object) -> dict[str, object]:
    """The answer of the bundle's task to a JSON body."""
    adapter = choose_adapter(bundle.manifest, None)
    inputs = adapter.decode_json(json.dumps(body).encode(), LIMITS)
    return adapter.encode(_run(bundle, inputs), inputs)


@pytest.mark.parametrize(
    "make",
    [
        made.make_vector_bundle,
        made.make_text_bundle,
        made.make_rgb_bundle,
        made.make_nan_bundle,
        made.make_misnamed_bundle,
    ],
)
def test_a_made_bundle_answers_its_golden_samples(make: object, tmp_path: Path) -> None:
    """Each made bundle passes the golden check of the service's start."""
    bundle: Bundle = make(tmp_path)  # type: ignore[operator]
    golden = Golden.load(bundle.path("golden"))
    engine = OnnxModel(bundle.model_path("onnx"), "cpu")
    tolerance = bundle.manifest.tolerance("cpu", "onnx")
    assert check_golden(golden, engine, bundle.manifest.outputs, tolerance).failures == ()


def test_vectors_are_answered(tmp_path: Path) -> None:
    """A model of FP32 vectors returns FP32 outputs."""
    answer = _answer(made.make_vector_bundle(tmp_path), {"inputs": [[1, 0, 0, 0], [0, 0, 0, 1]]})
    assert answer == {"outputs": {"y": [[0.0, 1.0], [6.0, 7.0]]}}


def test_two_inputs_of_variable_length_are_answered(tmp_path: Path) -> None:
    """INT64 token ids with a mask may have any length within the bounds."""
    bundle = made.make_text_bundle(tmp_path)
    for length in (1, 3, 16):
        ids = [list(range(length))]
        answer = _answer(bundle, {"inputs": {"ids": ids, "mask": [[1] * length]}})
        assert answer == {"outputs": {"mean": [[(length - 1) / 2]]}}


def test_a_pictures_colour_is_its_label(tmp_path: Path) -> None:
    """PNG and JPEG files of any size are resized, cropped and normalized."""
    bundle = made.make_rgb_bundle(tmp_path)
    adapter = choose_adapter(bundle.manifest, None)
    for colour, format_ in (("red", "PNG"), ("green", "JPEG"), ("blue", "PNG")):
        picture = io.BytesIO()
        # In CSS, full green is called "lime".
        shown = {"green": "lime"}.get(colour, colour)
        Image.new("RGB", (20, 31), shown).save(picture, format=format_)
        inputs = adapter.decode_image(picture.getvalue(), 10_000)
        predictions: Any = adapter.encode(_run(bundle, inputs), inputs)["predictions"]
        (prediction,) = predictions
        assert prediction["label"] == colour
        assert max(prediction["probabilities"]) > 0.9


def test_nan_is_answered_in_binary_alone(tmp_path: Path) -> None:
    """NaN outputs are refused in JSON with an explanation and returned as binary outputs."""
    bundle = made.make_nan_bundle(tmp_path)
    manifest = bundle.manifest
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [4, -4]}
    body = json.dumps({"inputs": [tensor]}).encode()
    asked = decode_infer(body, None, manifest, LIMITS)
    with pytest.raises(NonFiniteOutputError, match="binary_data_output"):
        encode_infer(_run(bundle, asked.inputs), asked, manifest)
    parameters = {"binary_data_output": True}
    body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    asked = decode_infer(body, None, manifest, LIMITS)
    answer, length = encode_infer(_run(bundle, asked.inputs), asked, manifest)
    values = np.frombuffer(answer[length:], "<f4")
    assert values[0] == 2
    assert np.isnan(values[1])


def test_tensors_that_are_only_named_as_digits_are_tensors(tmp_path: Path) -> None:
    """They are served as tensors, and a bundle that claims the task digits for them is refused."""
    answer = _answer(made.make_misnamed_bundle(tmp_path), {"inputs": [[0, 0, 0, 0]]})
    assert answer == {"outputs": {"probabilities": [[0.25] * 4]}}
    claimed = made.make_misnamed_bundle(tmp_path, "claimed", task="digits")
    with pytest.raises(BundleError, match="claimed has the task digits"):
        choose_adapter(claimed.manifest, None)
