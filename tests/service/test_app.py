"""The real service over HTTP, as ``bentoml serve`` runs it."""

import concurrent.futures
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from export.bundle.golden import Golden
from loadtest.server import running_service
from service.observability.metrics import FLUSH_INTERVAL_S
from tests.tiny import SERVED_BUNDLES

DIGIT = Path(__file__).with_name("digit.png")
PROVIDER = {"device": "cpu", "provider": "CPUExecutionProvider"}


@pytest.fixture(scope="module")
def client(service_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service_url, timeout=30) as open_client:
        yield open_client


def _golden(model: str) -> Golden:
    return Golden.load(SERVED_BUNDLES / model / "golden.npz")


def _manifest(model: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((SERVED_BUNDLES / model / "manifest.json").read_text())
    return content


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_many_images_get_the_references_answers(model: str, client: httpx.Client) -> None:
    """All golden images in one request get exact labels and the reference's softmax."""
    golden = _golden(model)
    answer = client.post(
        "/predict", json={"images": golden.inputs["images"].tolist(), "model": model}
    )
    assert answer.status_code == 200
    content = answer.json()
    identity = {"model": model, "version": _manifest(model)["version"], **PROVIDER}
    assert {name: content[name] for name in identity} == identity
    assert [p["label"] for p in content["predictions"]] == [str(i) for i in golden.labels()]
    truth = np.exp(golden.fp64["logits"] - golden.fp64["logits"].max(axis=1, keepdims=True))
    truth /= truth.sum(axis=1, keepdims=True)
    found = np.array([p["probabilities"] for p in content["predictions"]])
    assert np.abs(found - truth).max() < 1e-5


def test_an_answer_does_not_depend_on_who_else_asks(client: httpx.Client) -> None:
    """Sixty images sent by sixteen concurrent clients get the same answers as alone."""
    golden = _golden("cnn")

    def ask(image: np.ndarray) -> list[float]:
        body = {"images": image.tolist(), "model": "cnn"}
        answer = client.post("/predict", json=body).json()
        probabilities: list[float] = answer["predictions"][0]["probabilities"]
        return probabilities

    alone = [ask(image) for image in golden.inputs["images"]]
    with concurrent.futures.ThreadPoolExecutor(16) as clients:
        together = list(clients.map(ask, golden.inputs["images"]))
    assert together == alone


def test_requests_that_arrive_together_run_as_one_batch(client: httpx.Client) -> None:
    """With 32 clients, batches contain more images than requests do, by the metrics."""
    body = json.dumps({"images": _golden("mlp").inputs["images"][0].tolist(), "model": "mlp"})
    before = _metrics(client)
    with concurrent.futures.ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(lambda _: client.post("/predict", content=body), range(400)))
    assert {answer.status_code for answer in answers} == {200}
    after = _metrics(client)
    batches, images = (
        after[f'inference_batch_samples_{kind}{{model="mlp"}}']
        - before.get(f'inference_batch_samples_{kind}{{model="mlp"}}', 0)
        for kind in ("count", "sum")
    )
    assert images == 400
    assert batches < 400


def _metrics(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


@pytest.mark.parametrize(
    "upload",
    [
        {"files": {"image": ("digit.png", DIGIT.read_bytes(), "image/png")}},
        {"content": DIGIT.read_bytes(), "headers": {"Content-Type": "image/png"}},
        {"content": DIGIT.read_bytes(), "headers": {"Content-Type": "application/octet-stream"}},
    ],
    ids=["form", "png", "bytes"],
)
def test_an_uploaded_image_gets_the_answer_of_its_pixels(
    upload: dict[str, Any], client: httpx.Client
) -> None:
    """A PNG in a form or as the body gives the same answer as its pixels as JSON."""
    pixels = np.asarray(Image.open(DIGIT)).tolist()
    for model in ("cnn", "mlp"):
        uploaded = client.post(f"/predict/image?model={model}", **upload)
        assert uploaded.status_code == 200
        posted = client.post("/predict", json={"images": pixels, "model": model})
        assert uploaded.json() == posted.json()


def test_an_answer_says_whether_an_image_looks_like_a_digit(client: httpx.Client) -> None:
    """Verdicts come in order, for pixels and files, and judge a drawing after conversion."""
    image = _golden("cnn").inputs["images"][0]
    asked = [image, 255 - image, np.zeros_like(image), image // 255]
    answer = client.post("/predict", json={"images": [pixels.tolist() for pixels in asked]})
    guards = [entry["guard"] for entry in answer.json()["predictions"]]
    assert [guard["usual"] for guard in guards] == [True, False, False, False]
    assert guards[0]["reason"] is None
    for guard, words in zip(guards[1:], ("inverted", "blank", "scaled to 0..1"), strict=True):
        assert words in guard["reason"]
        assert 0 < guard["p_value"] < 0.01
    upload = client.post("/predict/image", content=DIGIT.read_bytes(), headers=PNG)
    (guard,) = (entry["guard"] for entry in upload.json()["predictions"])
    assert guard["usual"]
    drawing = io.BytesIO()
    Image.fromarray(255 - np.kron(image, np.ones((9, 9), np.uint8)) // 2).save(drawing, "PNG")
    drawn = client.post("/predict/image", content=drawing.getvalue(), headers=PNG).json()
    assert drawn["predictions"][0]["guard"]["usual"]
    assert drawn["predictions"][0]["label"] == answer.json()["predictions"][0]["label"]


def test_the_protocols_answers_are_the_models_tensors_alone(client: httpx.Client) -> None:
    """At /v2 an inverted image gets logits and probabilities, without a guard's verdict."""
    data = (255 - _golden("cnn").inputs["images"][0]).ravel().tolist()
    tensor = {"name": "images", "shape": [1, 28, 28], "datatype": "UINT8", "data": data}
    answer = client.post("/v2/models/cnn/infer", json={"inputs": [tensor]})
    assert {output["name"] for output in answer.json()["outputs"]} == {"logits", "probabilities"}
    assert "guard" not in answer.text


def test_models_are_listed_with_their_proof(client: httpx.Client) -> None:
    """GET /models returns version, device, tensors, accuracy, parity and golden figures."""
    cards = {card["model"]: card for card in client.get("/models").json()["models"]}
    assert set(cards) == {"cnn", "mlp"}
    card = cards["cnn"]
    assert card["version"] == _manifest("cnn")["version"]
    assert card["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28]}]
    assert all(verdict["passed"] for verdict in card["parity"])
    assert card["golden"]["wrong_labels"] == 0
    assert card["guard"] == _manifest("cnn")["guard"]
    assert card["guard"]["unusual_below"] == 0.01
    assert card["guard"]["held_out"]["samples"] == 150
    assert [name for name, card in cards.items() if card["default"]] == ["cnn"]


def test_bentomls_own_endpoints_work(client: httpx.Client) -> None:
    """Health, readiness, page and metrics answer, and the OpenAPI document has our paths."""
    for path in ("/livez", "/readyz", "/"):
        assert client.get(path).status_code == 200, path
    document = client.get("/docs.json").json()
    assert {"/predict", "/predict/image", "/models", "/livez"} <= set(document["paths"])
    assert {"/v2/models/{model}/infer", "/v2/health/ready", "/metrics"} <= set(document["paths"])
    assert "PredictRequest" in document["components"]["schemas"]
    assert "cnn, mlp" in document["info"]["description"]
    metrics = _metrics(client)
    version = _manifest("cnn")["version"]
    labels = 'device="cpu",model="cnn",provider="CPUExecutionProvider",variant="onnx",'
    labels += f'version="{version}"'
    assert metrics[f"inference_model_info{{{labels}}}"] == 1
    assert metrics['inference_golden_check_passed{model="cnn"}'] == 1


JSON = {"Content-Type": "application/json"}
PNG = {"Content-Type": "image/png"}
BLANK = [[0] * 28] * 28
WHITE = (Path(__file__).parent / "white.png").read_bytes()
BAD: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("POST", "/predict", {"content": b""}, 400, "empty"),
    ("POST", "/predict", {"content": b"{", "headers": JSON}, 400, "not JSON"),
    ("POST", "/predict", {"content": b'{"images":[[NaN]]}', "headers": JSON}, 400, "NaN"),
    ("POST", "/predict", {"json": {"images": []}}, 400, "empty list"),
    ("POST", "/predict", {"json": {"images": [[1, 2], [3]]}}, 400, "a list of length 2"),
    ("POST", "/predict", {"json": {"images": [[300] * 28] * 28}}, 400, "is 300"),
    ("POST", "/predict", {"json": {"images": BLANK, "model": "rnn"}}, 404, "cnn, mlp"),
    ("POST", "/predict", {"json": {"images": BLANK, "model": ""}}, 404, "cnn, mlp"),
    ("POST", "/predict?model=rnn", {"json": {"images": BLANK}}, 404, "cnn, mlp"),
    ("POST", "/predict", {"json": {"images": [BLANK] * 101}}, 413, "at most 100"),
    ("POST", "/predict", {"content": b"0" * 1_000_001}, 413, "at most 1,000,000"),
    (
        *("POST", "/predict", {"content": (b"0" * 65_536 for _ in range(100))}),
        *(413, "more than the 1,000,000"),
    ),
    (
        *("POST", "/predict", {"content": b"\x80\x04N.", "headers": {"Content-Type": "x/pickle"}}),
        *(400, "not JSON"),
    ),
    (
        "POST",
        "/predict",
        {
            "content": b"\x80\x04N.",
            "headers": {"Content-Type": "application/vnd.bentoml+pickle"},
        },
        400,
        "not JSON",
    ),
    ("GET", "/predict", {}, 405, "POST"),
    ("PUT", "/predict/image", {}, 405, "POST"),
    ("POST", "/predict/image", {"content": b"", "headers": PNG}, 400, "empty"),
    ("POST", "/predict/image", {"content": b"text", "headers": PNG}, 400, "not a PNG"),
    ("POST", "/predict/image", {"content": WHITE, "headers": PNG}, 422, "nothing is drawn"),
    ("POST", "/predict/image?model=rnn", {"content": b"x", "headers": PNG}, 404, "rnn"),
    ("POST", "/predict/image", {"json": {"image": "http://127.0.0.1/"}}, 415, "multipart"),
    ("POST", "/predict/image", {"data": {"image": "http://127.0.0.1/"}}, 415, "multipart"),
    ("POST", "/predict/image", {"files": {"file": b"x"}}, 400, "field named image"),
    ("POST", "/predict/image", {"files": {"image": ("a.txt", b"text")}}, 400, "not a PNG"),
    ("POST", "/predict/image", {"files": [("image", b"a"), ("image", b"b")]}, 400, "files"),
    (
        "POST",
        "/predict/image",
        {
            "content": b'--x\r\nContent-Disposition: form-data; name="+2AA-"\r\n\r\n1\r\n--x--\r\n',
            "headers": {"Content-Type": "multipart/form-data; boundary=x; charset=utf-7"},
        },
        400,
        "field named image",
    ),
    (
        "POST",
        "/predict/image",
        {
            "content": b'--x\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n1\r\n--x--\r\n',
            "headers": {"Content-Type": "multipart/form-data; boundary=x; charset=punycode"},
        },
        400,
        "field named image",
    ),
    (
        "POST",
        "/predict/image",
        {"content": b"--x\r\nbroken", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "boundary",
    ),
]


@pytest.mark.parametrize(("method", "path", "sent", "status", "named"), BAD, ids=range(len(BAD)))
def test_bad_requests_are_refused_in_words_and_the_service_goes_on(
    method: str, path: str, sent: dict[str, Any], status: int, named: str, client: httpx.Client
) -> None:
    """A 4xx error names the fault without a traceback, and later answers are right."""
    answer = client.request(method, path, **sent)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert named in answer.json()["error"]
    assert "Traceback" not in answer.text
    golden = _golden("cnn")
    after = client.post(
        "/predict", json={"images": golden.inputs["images"][0].tolist(), "model": "cnn"}
    )
    assert after.json()["predictions"][0]["label"] == str(golden.labels()[0])


def test_refusals_are_counted(client: httpx.Client) -> None:
    """A refused request is counted in the metrics under its status."""
    name = 'inference_refused_requests_total{kind="unknown_model",status="404"}'
    before = _metrics(client).get(name, 0)
    client.post("/predict", json={"images": BLANK, "model": "rnn"})
    assert _metrics(client)[name] == before + 1


def test_two_workers_answer_alike(tmp_path: Path) -> None:
    """With two processes every answer is right, and /metrics contains the counts of both."""
    golden = _golden("mlp")
    settings = {"INFERENCE_BUNDLES": str(SERVED_BUNDLES), "INFERENCE_WORKERS": "2"}
    with (
        running_service(tmp_path / "log", settings={**settings, "INFERENCE_DEVICE": "cpu"}) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        body = {"images": golden.inputs["images"].tolist(), "model": "mlp"}
        for _ in range(20):
            answer = httpx.post(f"{url}/predict", json=body).json()  # a new connection each time
            labels = [p["label"] for p in answer["predictions"]]
            assert labels == [str(i) for i in golden.labels()]
        time.sleep(2 * FLUSH_INTERVAL_S)  # workers share their counts at this interval
        counted = _metrics(client)['inference_samples_total{endpoint="predict",model="mlp"}']
        assert counted == 20 * len(golden.inputs["images"])
