"""Other models than digits are served, by named tensors, raw tensors and image files."""

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")

from tests.service import made_bundles as made
from tests.service.wire import on_both_transports, running_services

RAW = {"inference-header-content-length": "0"}
MODELS = ["colours", "misnamed", "roots", "text", "vectors"]


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A service with five made bundles on each transport."""
    folder = tmp_path_factory.mktemp("any")
    bundles = folder / "bundles"
    bundles.mkdir()
    made.make_vector_bundle(bundles)
    made.make_text_bundle(bundles)
    made.make_rgb_bundle(bundles)
    made.make_nan_bundle(bundles)
    made.make_misnamed_bundle(bundles)
    settings = on_both_transports(BUNDLES=str(bundles), DEVICE="cpu", DEFAULT_MODEL="vectors")
    with running_services(folder, settings) as running:
        yield running


@pytest.fixture(params=["short", "ordinary"])
def url(request: pytest.FixtureRequest, urls: dict[str, str]) -> str:
    """The service on one transport."""
    return urls[request.param]


def _predict(url: str, model: str, inputs: Any) -> httpx.Response:
    return httpx.post(f"{url}/models/{model}/predict", json={"inputs": inputs}, timeout=30)


def _infer(url: str, model: str, *tensors: dict[str, Any], **further: Any) -> httpx.Response:
    body = {"inputs": list(tensors), **further}
    return httpx.post(f"{url}/v2/models/{model}/infer", json=body, timeout=30)


def _png(colour: tuple[int, int, int], size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def test_named_tensors_are_answered_with_named_tensors(url: str) -> None:
    """The answer contains the model's identity and each output by name."""
    answer = _predict(url, "vectors", {"x": [[1, 0, 0, 0], [0, 0, 0, 1]]})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "model": "vectors",
        "version": "1",
        "variant": "onnx",
        "device": "cpu",
        "provider": "CPUExecutionProvider",
        "outputs": {"y": [[0.0, 1.0], [6.0, 7.0]]},
    }
    assert answer.headers["x-model"] == "vectors"


def test_requests_of_different_lengths_are_batched_by_shape(url: str) -> None:
    """Sixty requests of lengths 1 to 16 from eight concurrent clients get their own means."""

    def ask(length: int) -> list[list[float]]:
        ids = list(range(length, 2 * length))
        answer = _predict(url, "text", {"ids": [ids], "mask": [[1.0] * length]})
        assert answer.status_code == 200, answer.text
        found: list[list[float]] = answer.json()["outputs"]["mean"]
        return found

    lengths = [1 + number % 16 for number in range(60)]
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, lengths))
    expected = [[[float(np.mean(range(length, 2 * length)))]] for length in lengths]
    assert np.allclose(np.array(answers), np.array(expected))


def test_a_length_beyond_its_bound_is_refused_in_words(url: str) -> None:
    """Seventeen ids are refused where sixteen are allowed."""
    answer = _predict(url, "text", {"ids": [[1] * 17], "mask": [[1.0] * 17]})
    assert answer.status_code == 400
    assert "ids" in answer.json()["error"]
    assert "16" in answer.json()["error"]


def test_axes_of_one_name_must_have_one_size(url: str) -> None:
    """Three ids with a mask of five get 400 on both endpoints, and the model keeps working."""
    ids, mask = [[1] * 3], [[1.0] * 5]
    tensors = [
        {"name": "ids", "datatype": "INT64", "shape": [1, 3], "data": ids},
        {"name": "mask", "datatype": "FP32", "shape": [1, 5], "data": mask},
    ]
    refused = _infer(url, "text", *tensors), _predict(url, "text", {"ids": ids, "mask": mask})
    for answer in refused:
        assert answer.status_code == 400, answer.text
        words = "the axis tokens has the size 3 in ids and 5 in mask; expected the same size"
        assert words in answer.json()["error"]
    assert _predict(url, "text", {"ids": ids, "mask": [[1.0] * 3]}).status_code == 200


@pytest.mark.parametrize("token", [-1, 100])
def test_a_token_that_no_vocabulary_has_is_refused(token: int, url: str) -> None:
    """It gets 400 in JSON and in binary, before it can fail the batch of other requests."""
    answer = _predict(url, "text", {"ids": [[7, token]], "mask": [[1.0, 1.0]]})
    assert answer.status_code == 400, answer.text
    assert f"ids contains {token}; expected tokens from 0 to 99" in answer.json()["error"]
    blobs = np.array([[token, 7]]).tobytes(), np.ones((1, 2), np.float32).tobytes()
    tensors: list[dict[str, Any]] = [
        {"name": "ids", "datatype": "INT64", "shape": [1, 2]},
        {"name": "mask", "datatype": "FP32", "shape": [1, 2]},
    ]
    for tensor, blob in zip(tensors, blobs, strict=True):
        tensor["parameters"] = {"binary_data_size": len(blob)}
    header = json.dumps({"inputs": tensors}).encode()
    answer = httpx.post(
        f"{url}/v2/models/text/infer",
        content=header + b"".join(blobs),
        headers={"inference-header-content-length": str(len(header))},
    )
    assert answer.status_code == 400, answer.text
    assert f"ids contains {token}" in answer.json()["error"]


@pytest.mark.parametrize(("colour", "label"), [((250, 9, 9), "red"), ((9, 9, 250), "blue")])
def test_an_image_of_any_size_is_classified(
    colour: tuple[int, int, int], label: str, url: str
) -> None:
    """An image as body or in a form is preprocessed as the manifest records."""
    content = _png(colour, (31, 17))
    path = f"{url}/models/colours/predict"
    as_body = httpx.post(path, content=content, headers={"content-type": "image/png"})
    as_form = httpx.post(path, files={"image": ("colour.png", content, "image/png")})
    for answer in (as_body, as_form):
        assert answer.status_code == 200, answer.text
        (prediction,) = answer.json()["predictions"]
        assert prediction["label"] == label
        assert sum(prediction["probabilities"]) == pytest.approx(1)
        assert list(answer.json()["outputs"]) == ["logits"]


def test_a_file_for_a_model_without_images_is_refused_in_words(url: str) -> None:
    """The error is 415 and says how to send input to the model."""
    content = _png((0, 0, 0), (8, 8))
    answer = httpx.post(
        f"{url}/models/vectors/predict", content=content, headers={"content-type": "image/png"}
    )
    assert answer.status_code == 415
    assert "vectors" in answer.json()["error"]


def test_tensors_that_are_only_named_as_those_of_digits_are_no_digits(url: str) -> None:
    """/predict refuses the model with an explanation, and named tensors are answered."""
    image = [[0] * 28] * 28
    refused = httpx.post(f"{url}/predict?model=misnamed", json={"images": image})
    assert refused.status_code == 400
    assert "misnamed does not recognize digits" in refused.json()["error"]
    answer = _predict(url, "misnamed", {"images": [[0, 0, 0, 0]]})
    assert answer.json()["outputs"] == {"probabilities": [[0.25] * 4]}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_raw_values_that_are_not_finite_are_refused(value: float, url: str) -> None:
    """Non-finite values are refused in raw bodies as in JSON and in blobs."""
    values = np.array([[1, 2, 3, value]], "<f4")
    answer = httpx.post(f"{url}/v2/models/vectors/infer", content=values.tobytes(), headers=RAW)
    assert answer.status_code == 400
    assert "NaN or infinite" in answer.json()["error"]


def test_outputs_that_are_not_finite_are_refused_in_json_and_sent_as_bytes(url: str) -> None:
    """Both endpoints return 422 and suggest raw tensors, which can contain them."""
    asked = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [-1, 4]}
    for answer in (_infer(url, "roots", asked), _predict(url, "roots", {"x": [[-1, 4]]})):
        assert answer.status_code == 422, answer.text
        assert "binary" in answer.json()["error"]
    raw = np.array([[-1, 4]], "<f4").tobytes()
    answer = httpx.post(f"{url}/v2/models/roots/infer", content=raw, headers=RAW)
    length = int(answer.headers["inference-header-content-length"])
    found = np.frombuffer(answer.content[length:], "<f4")
    assert np.isnan(found[0])
    assert found[1] == 2


def test_text_datatypes_are_refused_in_words(url: str) -> None:
    """BYTES is refused as a datatype that no model here has."""
    asked = {"name": "x", "shape": [1, 4], "datatype": "BYTES", "data": ["a", "b", "c", "d"]}
    answer = _infer(url, "vectors", asked)
    assert answer.status_code == 400
    assert "BYTES" in answer.json()["error"]


def test_every_model_is_described_and_ready(url: str) -> None:
    """GET /models, /v2/models/NAME, the OpenAPI document and deep health list all models."""
    cards = httpx.get(f"{url}/models").json()["models"]
    assert [card["model"] for card in cards] == MODELS
    text = httpx.get(f"{url}/v2/models/text").json()
    assert [tensor["shape"] for tensor in text["inputs"]] == [[-1, -1], [-1, -1]]
    document = httpx.get(f"{url}/docs.json").json()
    assert "/models/{model}/predict" in document["paths"]
    assert "/predict" not in document["paths"]
    assert json.dumps(document).count("colours") > 0
    checked = httpx.get(f"{url}/healthz/deep", timeout=30)
    assert checked.json() == {"golden": dict.fromkeys(MODELS, "right")}


def test_samples_are_counted_by_model_and_endpoint(url: str) -> None:
    """Named tensors are counted under the endpoint predict."""
    _predict(url, "vectors", {"x": [[1, 0, 0, 0]]})
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    counted = [x for x in lines if x.startswith("inference_samples_total") and '"vectors"' in x]
    assert any('endpoint="predict"' in line for line in counted)
