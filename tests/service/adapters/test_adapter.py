"""A model's task determines which requests its endpoints accept and what they answer."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.bundle.golden import Golden
from export.bundle.manifest import BundleError, Manifest, TensorSpec
from export.bundle.store import Bundle
from export.mnist.ood_detector import OodDetector
from service.adapters.adapter import choose_adapter
from service.adapters.digits import DigitsAdapter
from service.protocol.errors import (
    InvalidInputError,
    NonFiniteOutputError,
    PayloadTooLargeError,
    UnsupportedMediaError,
)
from service.settings import Limits
from tests.tiny import SERVED_BUNDLES

CNN = Bundle.open(SERVED_BUNDLES / "cnn")
DIGIT = Path(__file__).parent.parent / "digit.png"
LIMITS = Limits(10)


def _manifest(**changes: object) -> Manifest:
    """The CNN's manifest with the given changes."""
    return CNN.manifest.model_copy(update=changes)


def _spec(name: str, datatype: str, *shape: int, **fields: object) -> TensorSpec:
    return TensorSpec.model_validate(
        {"name": name, "datatype": datatype, "shape": (-1, *shape), **fields}
    )


TOKENS = _manifest(
    inputs=(
        _spec("ids", "INT64", -1, bounds={"1": [1, 8]}),
        _spec("mask", "FP32", -1, bounds={"1": [1, 8]}),
    ),
    outputs=(_spec("mean", "FP32", 1),),
)
VECTORS = _manifest(inputs=(_spec("x", "FP32", 4),), outputs=(_spec("y", "FP32", 2),))


def test_older_bundles_of_digits_have_the_task_digits() -> None:
    """The committed manifest names no task, so the task follows from the form of its tensors."""
    assert CNN.manifest.task is None
    adapter = choose_adapter(CNN.manifest, None)
    assert adapter.task == "digits"
    assert adapter.endpoints == ("predict", "predict_image")


@pytest.mark.parametrize(
    "inputs",
    [
        (_spec("images", "FP32", 28, 28),),
        (_spec("images", "UINT8", 8, 8),),
        (_spec("images", "UINT8", 28, 28), _spec("more", "UINT8", 28, 28)),
        (_spec("pictures", "UINT8", 28, 28),),
    ],
)
def test_names_alone_do_not_make_digits(inputs: tuple[TensorSpec, ...]) -> None:
    """Tensors of other shapes get the task tensors; a manifest that claims digits is refused."""
    assert choose_adapter(_manifest(inputs=inputs), None).task == "tensors"
    with pytest.raises(BundleError, match=r"expected images=UINT8\[-1,28,28\] as the only input"):
        choose_adapter(_manifest(inputs=inputs, task="digits"), None)


def test_probabilities_must_be_as_many_as_labels() -> None:
    """An output of three probabilities does not match ten labels."""
    outputs = (_spec("probabilities", "FP32", 3),)
    assert choose_adapter(_manifest(outputs=outputs), None).task == "tensors"
    with pytest.raises(BundleError, match="10 labels"):
        choose_adapter(_manifest(outputs=outputs, task="digits"), None)


def test_a_task_in_the_manifest_is_kept() -> None:
    """A model of digits may be served as plain tensors."""
    assert choose_adapter(_manifest(task="tensors"), None).task == "tensors"


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": [[1, 2, 3, 4], [5, 6, 7, 8]]},
        {"x": [1, 2, 3, 4, 5, 6, 7, 8]},
        [[1, 2, 3, 4], [5, 6, 7, 8]],
        [1, 2, 3, 4, 5, 6, 7, 8],
    ],
)
def test_tensors_are_read_nested_and_flat_with_and_without_a_name(inputs: object) -> None:
    """The batch axis comes first; the only input needs no name."""
    found = choose_adapter(VECTORS, None).decode_json(_body(inputs), LIMITS)
    assert found["x"].dtype == np.float32
    assert np.array_equal(found["x"], np.arange(1, 9).reshape(2, 4))


def _body(inputs: object, **fields: object) -> bytes:
    return json.dumps({"inputs": inputs, **fields}).encode()


def test_variable_axes_are_read_from_the_nesting() -> None:
    """The nesting of the JSON gives two samples of three tokens."""
    inputs = {"ids": [[1, 2, 3], [4, 5, 6]], "mask": [[1, 1, 0], [1, 0, 0]]}
    found = choose_adapter(TOKENS, None).decode_json(_body(inputs), LIMITS)
    assert list(found) == ["ids", "mask"]
    assert found["ids"].shape == (2, 3)
    assert found["mask"].dtype == np.float32


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is empty"),
        (b"[]", "the body is a list; expected"),
        (b"{}", "the field inputs is missing"),
        (_body({}), "input 'ids' is missing"),
        (_body([1]), "inputs is a list; expected an object with a list for each of ids="),
        (_body({"ids": [[1]], "mask": [[1]]}, top=1), "unknown field 'top'; known: inputs"),
        (_body({"ids": 3}), "'ids' is a number; expected a list"),
        (_body({"id": [1]}), "input 'id' is not known"),
        (_body({"ids": [[1] * 9], "mask": [[1] * 9]}), "shape [1, 9], expected [N, 1..8]"),
        (_body({"ids": [[]], "mask": [[]]}), "shape [1, 0], expected [N, 1..8]"),
        (_body({"ids": [1, 2], "mask": [[1, 1]]}), "shape [2], expected [N, 1..8]"),
        (_body({"ids": [[1, 2], [3]], "mask": [[1, 1]]}), "not nested like its shape"),
        (_body({"ids": [[0.5]], "mask": [[1]]}), "0.5, a fraction; expected integers for INT64"),
        (_body({"ids": [[1]], "mask": [[1], [1]]}), "first axes differ"),
    ],
)
def test_bad_json_is_refused_in_words(body: bytes, words: str) -> None:
    """The message names what came and what was expected."""
    with pytest.raises(InvalidInputError) as refused:
        choose_adapter(TOKENS, None).decode_json(body, LIMITS)
    assert words in str(refused.value)


@pytest.mark.parametrize("values", [[], [1, 2, 3]])
def test_a_flat_list_must_be_whole_samples(values: list[int]) -> None:
    """Three numbers are refused where a sample has four."""
    with pytest.raises(InvalidInputError, match="expected 4 for each sample"):
        choose_adapter(VECTORS, None).decode_json(_body(values), LIMITS)


def test_more_samples_than_allowed_are_refused() -> None:
    """The message gives both numbers."""
    with pytest.raises(PayloadTooLargeError, match=r"11 samples.*at most 10"):
        choose_adapter(VECTORS, None).decode_json(_body([0] * 44), LIMITS)


def test_tensors_take_no_pictures() -> None:
    """An uploaded image is refused, and the message says where to send tensors."""
    with pytest.raises(UnsupportedMediaError, match="/models/cnn/predict"):
        choose_adapter(VECTORS, None).decode_image(DIGIT.read_bytes(), 10**6)


def test_outputs_become_nested_lists_by_name() -> None:
    """A model of the task tensors answers with nested lists by output name."""
    outputs = {"y": np.array([[1, 2], [3, 4]], np.float32)}
    assert choose_adapter(VECTORS, None).encode(outputs, {}) == {
        "outputs": {"y": [[1.0, 2.0], [3.0, 4.0]]}
    }


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_answers_that_json_cannot_express_are_refused(value: float) -> None:
    """The error message says how to get non-finite values."""
    outputs = {"y": np.array([[1, value]], np.float32)}
    with pytest.raises(NonFiniteOutputError, match="request binary outputs"):
        choose_adapter(VECTORS, None).encode(outputs, {})


def test_digits_answer_with_outputs_predictions_and_verdicts() -> None:
    """/predict returns only predictions, with the image on request; the model's endpoint all."""
    golden = Golden.load(CNN.path("golden")).first(2)
    adapter = choose_adapter(CNN.manifest, OodDetector.load(CNN.path("guard")))
    assert isinstance(adapter, DigitsAdapter)
    answer = adapter.encode(golden.fp32, golden.inputs)
    assert list(answer) == ["outputs", "predictions"]
    short = adapter.encode_predictions(golden.fp32, golden.inputs, show=False)
    assert short == {"predictions": answer["predictions"]}
    shown = adapter.encode_predictions(golden.fp32, golden.inputs, show=True)
    assert shown == short | {"image": golden.inputs["images"][0].tolist()}
    predictions: Any = shown["predictions"]
    first = predictions[0]
    assert set(first) == {"label", "probabilities", "guard"}
    assert set(first["guard"]) == {"usual", "p_value", "reason"}


def test_digits_are_read_as_pictures_and_as_tensors() -> None:
    """An uploaded MNIST image and its pixels as JSON give the same input."""
    adapter = choose_adapter(CNN.manifest, None)
    picture = adapter.decode_image(DIGIT.read_bytes(), 10**6)["images"]
    pixels = np.asarray(Image.open(io.BytesIO(DIGIT.read_bytes()))).tolist()
    for inputs in ({"images": [pixels]}, [pixels]):
        found = adapter.decode_json(_body(inputs), LIMITS)
        assert np.array_equal(found["images"], picture)
