"""JSON is decoded to checked arrays, or refused with what came and what was expected."""

import json

import numpy as np
import pytest

from export.bundle.golden import Golden
from export.bundle.store import Bundle
from export.mnist.ood_detector import OodDetector, Verdict
from service.adapters.digits import DigitsAdapter, decode_predict, describe_predictions
from service.protocol.errors import InvalidInputError, PayloadTooLargeError
from service.settings import Limits
from tests.tiny import SERVED_BUNDLES

IMAGE = np.arange(784).reshape(28, 28) % 256


def _body(images: object, **fields: object) -> bytes:
    return json.dumps({"images": images, **fields}).encode()


def test_one_image_and_many_become_uint8_arrays() -> None:
    """A 28x28 list is one image, an Nx28x28 list is N images, and values are kept."""
    one = decode_predict(_body(IMAGE.tolist()), Limits(10))
    assert one.images.shape == (1, 28, 28)
    assert one.images.dtype == np.uint8
    assert np.array_equal(one.images[0], IMAGE)
    many = decode_predict(_body([IMAGE.tolist()] * 3, model="mlp"), Limits(10))
    assert many.images.shape == (3, 28, 28)
    assert many.model == "mlp"


def _with(value: object) -> list[list[object]]:
    rows: list[list[object]] = [list(row) for row in IMAGE.tolist()]
    rows[3][4] = value
    return rows


BAD = [
    (b"", "empty"),
    (b"{", "not JSON"),
    (b'{"images": [[1,]]}', "not JSON"),
    (b"\xff\xfe", "not UTF-8 text"),
    (b"\x89PNG\r\n", "/predict/image"),
    (b"[]", "a list"),
    (b'"text"', "a string"),
    (b"null", "null"),
    (b"{}", "images is missing"),
    (_body([]), "empty list"),
    (_body(None), "null"),
    (_body("http://localhost/x.png"), "a string"),
    (_body(7), "a number"),
    (_body({"a": 1}), "an object"),
    (_body([[1, 2], [3]]), "images is a list of length 2;"),
    (_body([[[]]]), r"images\[0\] is a list of length 1;"),
    (_body([[]] * 28), r"images\[0\] is a list of length 0;"),
    (_body([1] * 784), "images is a list of length 784"),
    (_body([1] * 28), r"images\[0\] is a number"),
    (_body([[1] * 392] * 2), "images is a list of length 2;"),
    (_body([[1] * 27] * 28), r"images\[0\] is a list of length 27"),
    (_body([*IMAGE.tolist()[:27], [1] * 29]), r"images\[27\] is a list of length 29"),
    (_body([IMAGE.tolist(), IMAGE.tolist()[:5]]), r"images\[1\] is a list of length 5"),
    (_body([IMAGE.tolist(), 3]), r"images\[1\] is a number"),
    (_body([[[IMAGE.tolist()]]]), r"images\[0\] is a list of length 1;"),
    (_body("x" * 300_000), "a string"),
    (_body([["x" * 300_000] * 28] * 28), r"images\[0\]\[0\] is a string"),
    (_body(_with(-1)), r"images\[3\]\[4\] is -1"),
    (_body(_with(256)), r"images\[3\]\[4\] is 256"),
    (_body([_with(256)]), r"images\[0\]\[3\]\[4\] is 256"),
    (_body(_with(0.5)), r"images\[3\]\[4\] is 0.5, a fraction"),
    (_body(_with(1.5)), r"images\[3\]\[4\] is 1.5, a fraction;"),
    (_body(_with(True)), r"images\[3\]\[4\] is true or false"),
    (_body((IMAGE / 255).tolist()), "send the original integers"),
    (_body(_with(None)), "null"),
    (_body(_with("7")), "a string"),
    (_body(_with({})), "an object"),
    (_body([[True] * 28] * 28), "true or false"),
    (_body(_with(10**30)), "far out of range"),
    (b'{"images": [[NaN]]}', "NaN"),
    (b'{"images": [' + b",".join([b"[" + b"1e400," * 27 + b"1]"] * 28) + b"]}", r"\] is inf"),
    ("{}".encode("utf-16"), "not UTF-8 text"),
    (b'{"images": [[Infinity]]}', "Infinity"),
    (b'{"images": [[-Infinity]]}', "-Infinity"),
    (b'{"images": [[' + b"9" * 5000 + b"]]}", "too many digits"),
    (b'{"images": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep; at most 32"),
    (_body(IMAGE.tolist(), modle="cnn"), "'modle'"),
    (_body(IMAGE.tolist(), model=3), "model is a number"),
]


@pytest.mark.parametrize(("body", "named"), BAD, ids=range(len(BAD)))
def test_bad_bodies_are_refused(body: bytes, named: str) -> None:
    """Each bad body gets an error that names what was wrong with it."""
    with pytest.raises(InvalidInputError, match=named):
        decode_predict(body, Limits(10))


def test_too_many_images_are_refused_with_both_numbers() -> None:
    """The message gives the number of images and the limit."""
    with pytest.raises(PayloadTooLargeError, match=r"11 images.*at most 10"):
        decode_predict(_body([IMAGE.tolist()] * 11), Limits(10))


def test_a_prediction_names_the_likeliest_label() -> None:
    """Labels and their order come from the bundle, and each image has its own verdict."""
    probabilities = np.array([[0.2, 0.8], [0.9, 0.1]], np.float32)
    answer = describe_predictions(["no", "yes"], probabilities, None)
    assert [entry["label"] for entry in answer] == ["yes", "no"]
    assert answer[0]["probabilities"] == pytest.approx([0.2, 0.8])
    assert [entry["guard"] for entry in answer] == [None, None]
    verdicts = [Verdict(True, 0.5, None), Verdict(False, 0.001, "blank")]
    answer = describe_predictions(["no", "yes"], probabilities, verdicts)
    assert answer[1]["guard"] == {"usual": False, "p_value": 0.001, "reason": "blank"}
    assert answer[0]["guard"] == {"usual": True, "p_value": 0.5, "reason": None}


def test_p_values_are_computed_once_a_batch_and_only_if_they_are_read() -> None:
    """Slices and joined parts of a batch give the same p-values as single images."""
    bundle = Bundle.open(SERVED_BUNDLES / "cnn")
    detector = OodDetector.load(bundle.path("guard"))
    images = Golden.load(bundle.path("golden")).inputs["images"][:6]
    counted: list[int] = []

    class Counting(OodDetector):
        def p_values(self, images_NHW: np.ndarray) -> np.ndarray:
            counted.append(len(images_NHW))
            return super().p_values(images_NHW)

    adapter = DigitsAdapter(bundle.manifest, Counting(**vars(detector)))
    predict = adapter.extend(lambda inputs: {"probabilities": np.full((6, 10), 0.1)})
    outputs = predict({"images": images})
    assert counted == []
    expected = detector.judge(images)
    for start, end in ((0, 2), (2, 6)):
        part = {name: array[start:end] for name, array in outputs.items()}
        inputs = {"images": images[start:end]}
        found = adapter.encode_predictions(part, inputs, show=False)["predictions"]
        assert isinstance(found, list)
        assert [entry["guard"] for entry in found] == [v._asdict() for v in expected[start:end]]
    assert counted == [6]
    joined = np.concatenate([outputs["p_values"], outputs["p_values"][1:2]])
    assert np.array_equal(joined, np.append(detector.p_values(images), joined[1]))
