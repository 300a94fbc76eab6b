"""Open Inference Protocol requests are decoded, and violations are named."""

import json
from typing import Any

import numpy as np
import pytest

from export.bundle.golden import Golden
from export.bundle.manifest import TensorSpec
from export.bundle.store import Bundle
from service.protocol.errors import InvalidInputError, PayloadTooLargeError
from service.protocol.oip import decode_infer, encode_infer, model_metadata
from service.settings import Limits
from tests.tiny import SERVED_BUNDLES

MANIFEST = Bundle.open(SERVED_BUNDLES / "cnn").manifest
IMAGES = Golden.load(SERVED_BUNDLES / "cnn" / "golden.npz").inputs["images"][:2]
PAIR = MANIFEST.model_copy(
    update={
        "inputs": (
            TensorSpec(name="left", datatype="FP32", shape=(-1, 2)),
            TensorSpec(name="right", datatype="INT64", shape=(-1,)),
        )
    }
)


def _tensor(**changes: Any) -> dict[str, Any]:
    tensor = {
        "name": "images",
        "shape": [2, 28, 28],
        "datatype": "UINT8",
        "data": IMAGES.ravel().tolist(),
    }
    return {key: value for key, value in (tensor | changes).items() if value is not None}


def _body(tensor: dict[str, Any] | None = None, **further: Any) -> bytes:
    return json.dumps({"inputs": [_tensor() if tensor is None else tensor], **further}).encode()


@pytest.mark.parametrize("nested", [False, True])
def test_json_values_are_read_flat_and_nested(nested: bool) -> None:
    """Values are row-major either way, and all outputs are returned as JSON."""
    data = IMAGES.tolist() if nested else IMAGES.ravel().tolist()
    asked = decode_infer(_body(_tensor(data=data), id="a"), None, MANIFEST, Limits(10))
    assert np.array_equal(asked.inputs["images"], IMAGES)
    assert (asked.samples, asked.id) == (2, "a")
    assert asked.outputs == {"logits": False, "probabilities": False}


def test_blobs_behind_the_json_are_read_in_order() -> None:
    """Two binary inputs are read in order, and outputs are as requested, one of them binary."""
    left = np.array([[1, 2], [3, 4]], "<f4")
    right = np.array([5, 6], "<i8")
    header = {
        "inputs": [
            {
                "name": "right",
                "shape": [2],
                "datatype": "INT64",
                "parameters": {"binary_data_size": 16},
            },
            {
                "name": "left",
                "shape": [2, 2],
                "datatype": "FP32",
                "parameters": {"binary_data_size": 16},
            },
        ],
        "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(header).encode()
    body = text + right.tobytes() + left.tobytes()
    asked = decode_infer(body, str(len(text)), PAIR, Limits(10))
    assert list(asked.inputs) == ["left", "right"]
    assert np.array_equal(asked.inputs["left"], left)
    assert np.array_equal(asked.inputs["right"], right)
    assert asked.outputs == {"logits": True}


def test_a_body_without_json_is_the_input() -> None:
    """With header value 0 the body is only pixels, and every output is binary."""
    asked = decode_infer(IMAGES.tobytes(), "0", MANIFEST, Limits(10))
    assert np.array_equal(asked.inputs["images"], IMAGES)
    answers = {
        "logits": np.arange(20, dtype=np.float32).reshape(2, 10),
        "probabilities": np.ones((2, 10), np.float32),
    }
    body, length = encode_infer(answers, asked, MANIFEST)
    assert length is not None
    header = json.loads(body[:length])
    assert (header["model_name"], header["model_version"]) == ("cnn", MANIFEST.version)
    assert [t["parameters"]["binary_data_size"] for t in header["outputs"]] == [80, 80]
    assert body[length:] == answers["logits"].tobytes() + answers["probabilities"].tobytes()


def test_json_answers_hold_every_digit_and_the_id() -> None:
    """JSON keeps every digit of float32, and only requested outputs are returned."""
    asked = decode_infer(
        _body(id="q", outputs=[{"name": "probabilities"}]), None, MANIFEST, Limits(10)
    )
    values = np.random.default_rng(0).random((2, 10)).astype(np.float32)
    body, length = encode_infer({"logits": values, "probabilities": values}, asked, MANIFEST)
    assert length is None
    answer = json.loads(body)
    assert answer["id"] == "q"
    (tensor,) = answer["outputs"]
    assert (tensor["name"], tensor["shape"]) == ("probabilities", [2, 10])
    assert np.array_equal(np.array(tensor["data"], np.float32).reshape(2, 10), values)


def test_a_model_says_its_tensors() -> None:
    """The metadata contain name, version, platform and tensors in the protocol's terms only."""
    said = model_metadata(MANIFEST)
    assert said["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28]}]
    assert set(said) == {"name", "versions", "platform", "inputs", "outputs"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is empty"),
        (b"[]", "the body is a list; expected an object"),
        (b'{"inputs": 3}', "inputs is a number; expected a list"),
        (b'{"inputs": [{"name": "images"}]}', "inputs.0.shape is missing"),
        (b'{"inputs": []}', "input 'images' is missing"),
        (_body(_tensor(name="image")), "'image' is not known"),
        (
            json.dumps({"inputs": [_tensor(), _tensor()]}).encode(),
            "'images' is given twice",
        ),
        (_body(_tensor(datatype="FP32")), "datatype 'FP32', expected UINT8"),
        (_body(_tensor(shape=[2, 784])), "shape [2, 784], expected [N, 28, 28]"),
        (_body(_tensor(shape=[-2, 28, 28])), "with N at least 1"),
        (_body(_tensor(shape=[0, 28, 28])), "with N at least 1"),
        (_body(_tensor(shape=[3, 28, 28])), "has 1568 values, its shape [3, 28, 28] needs 2352"),
        (_body(_tensor(shape=[2**70, 28, 28])), "samples in one request"),
        (_body(_tensor(shape=[2.0, 28, 28])), "inputs.0.shape.0 is a number; expected an integer"),
        (_body(_tensor(data=None)), "neither data nor the parameter binary_data_size"),
        (_body(_tensor(data=[0.5] * 1568)), "contains 0.5, a fraction; expected integers"),
        (_body(_tensor(data=[True] * 1568)), "contains true or false; expected integers"),
        (_body(_tensor(data=[None] * 1568)), "contains null; expected integers"),
        (_body(_tensor(data=[256] * 1568)), "contains 256; expected 0 to 255"),
        (_body(_tensor(data=[-1] * 1568)), "contains -1; expected 0 to 255"),
        (_body(_tensor(data=[10**30] * 1568)), "far out of range; expected 0 to 255"),
        (_body(_tensor(data=[[0] * 784] * 2)), "not nested like its shape"),
        (_body(_tensor(data=[[[0] * 28] * 27] * 2)), "not nested like its shape"),
        (b'{"inputs": [NaN]}', "NaN, which is not JSON"),
        (b'{"inputs": "\\ud800"}', "contains '\\ud800', half of a surrogate pair"),
        (b'{"inputs": [], "\\udfff": 1}', "contains '\\udfff', half of a surrogate pair"),
        (_body(outputs=[{"name": "labels"}]), "output 'labels' is not known"),
        (_body(id=7), "id is a number; expected a string"),
        (b"[" * 100_000, "100,000 deep; at most 32"),
    ],
)
def test_a_broken_request_is_answered_in_words(body: bytes, words: str) -> None:
    """The error says which rule was broken, what came and what was expected."""
    with pytest.raises((InvalidInputError, PayloadTooLargeError)) as refused:
        decode_infer(body, None, MANIFEST, Limits(10))
    assert words in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("body", "length", "words"),
    [
        (b"", "0", "the body has 0 bytes; expected 784 for each sample"),
        (b"\0" * 783, "0", "the body has 783 bytes"),
        (b"{}", "3", "expected the number of bytes of JSON"),
        (b"{}", "99999999999999999999999", "expected the number of bytes of JSON"),
        (b"{}", "-1", "expected the number of bytes of JSON"),
        (b"{}", "two", "expected the number of bytes of JSON"),
    ],
)
def test_a_lying_length_is_answered_in_words(body: bytes, length: str, words: str) -> None:
    """A length header that contradicts the body is refused."""
    with pytest.raises(InvalidInputError, match=words):
        decode_infer(body, length, MANIFEST, Limits(10))


@pytest.mark.parametrize(
    ("size", "blob", "words"),
    [
        (1568, b"\0" * 1567, "has the binary_data_size 1568 and 1567 bytes follow"),
        (1567, b"\0" * 1567, "needs 1568"),
        ("1568", b"\0" * 1568, "needs 1568"),
        (True, b"\0" * 1568, "needs 1568"),
        (1568, b"\0" * 1569, "1 bytes follow the last tensor"),
    ],
)
def test_blobs_must_be_as_announced(size: object, blob: bytes, words: str) -> None:
    """A blob that is too short, too long or of another announced size than its shape is refused."""
    text = _body(_tensor(data=None, parameters={"binary_data_size": size}))
    with pytest.raises(InvalidInputError, match=words):
        decode_infer(text + blob, str(len(text)), MANIFEST, Limits(10))


def test_too_many_samples_are_refused() -> None:
    """The limit applies to every form of request."""
    text = _body(_tensor(data=None, parameters={"binary_data_size": 1568}))
    for body, length in (
        (_body(), None),
        (IMAGES.tobytes(), "0"),
        (text + IMAGES.tobytes(), str(len(text))),
    ):
        with pytest.raises(PayloadTooLargeError, match="at most 1 are allowed"):
            decode_infer(body, length, MANIFEST, Limits(1))


def test_inputs_of_different_counts_and_non_finite_ones_are_refused() -> None:
    """Inputs share one batch size, and floats must be finite."""
    left = {"name": "left", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}
    right = {"name": "right", "shape": [3], "datatype": "INT64", "data": [1, 2, 3]}
    with pytest.raises(InvalidInputError, match="first axes differ"):
        decode_infer(json.dumps({"inputs": [left, right]}).encode(), None, PAIR, Limits(9))
    left["data"] = [1e39, 2, 3, 4]
    right |= {"shape": [2], "data": [1, 2]}
    with pytest.raises(InvalidInputError, match="NaN or infinite"):
        decode_infer(json.dumps({"inputs": [left, right]}).encode(), None, PAIR, Limits(9))
