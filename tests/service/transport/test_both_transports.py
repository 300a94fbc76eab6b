"""A request gets the same answer on both transports."""

import io
import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from export.bundle.golden import Golden
from export.bundle.store import Bundle
from loadtest.server import running_service
from tests.tiny import SERVED_BUNDLES

MANIFEST = Bundle.open(SERVED_BUNDLES / "cnn").manifest
GOLDEN = Golden.load(SERVED_BUNDLES / "cnn" / "golden.npz")
URL = "/v2/models/cnn/infer"
LENGTH = "inference-header-content-length"
IDENTITY = ("x-model", "x-model-version", "x-model-variant", "x-provider")


@pytest.fixture(scope="module")
def ordinary_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same service with the fast path turned off."""
    log_file = tmp_path_factory.mktemp("service") / "ordinary.log"
    settings = {
        "INFERENCE_BUNDLES": str(SERVED_BUNDLES),
        "INFERENCE_DEVICE": "cpu",
        "INFERENCE_FAST_PATH": "false",
        "INFERENCE_MAX_REQUEST_SAMPLES": "100",
    }
    with running_service(log_file, settings=settings) as url:
        yield url


def _binary(images: np.ndarray, **further: object) -> tuple[bytes, dict[str, str]]:
    tensor = {
        "name": "images",
        "shape": list(images.shape),
        "datatype": "UINT8",
        "parameters": {"binary_data_size": images.size},
    }
    parameters = {"binary_data_output": True}
    text = json.dumps({"inputs": [tensor], "parameters": parameters, **further}).encode()
    return text + images.tobytes(), {LENGTH: str(len(text))}


def _json(images: np.ndarray, **further: object) -> bytes:
    return json.dumps({"images": images.tolist(), **further}).encode()


def _requests() -> dict[str, tuple[bytes, dict[str, str]]]:
    images = GOLDEN.inputs["images"]
    tensor = {"name": "images", "shape": [1, 28, 28], "datatype": "UINT8"}
    data = images[0].ravel().tolist()
    return {
        "JSON": (json.dumps({"inputs": [tensor | {"data": data}]}).encode(), {}),
        "JSON, wrong": (json.dumps({"inputs": [tensor | {"data": data[1:]}]}).encode(), {}),
        "raw, one image": (images[0].tobytes(), {LENGTH: "0"}),
        "raw, a full batch": (images.tobytes(), {LENGTH: "0"}),
        "raw, more than a batch": (np.resize(images, (90, 28, 28)).tobytes(), {LENGTH: "0"}),
        "binary": _binary(images[:3], id="a"),
        "JSON answer": _binary(images[:3], parameters={}),
        "one output": _binary(images[:3], outputs=[{"name": "logits"}]),
        "empty": (b"", {LENGTH: "0"}),
        "half an image": (b"\0" * 400, {LENGTH: "0"}),
        "a lying length": (images[0].tobytes(), {LENGTH: "9999"}),
        "no JSON": (b"x" * 10, {LENGTH: "10"}),
        "too many images": (b"\0" * 784 * 101, {LENGTH: "0"}),
        "its own request id": (images[0].tobytes(), {LENGTH: "0", "x-request-id": "42"}),
    }


@pytest.mark.parametrize("name", list(_requests()))
def test_both_ways_give_the_same_answer(name: str, service_url: str, ordinary_url: str) -> None:
    """Status, body and relevant headers are the same, for answers and refusals."""
    body, headers = _requests()[name]
    fast, ordinary = (
        httpx.post(url + URL, content=body, headers=headers) for url in (service_url, ordinary_url)
    )
    assert fast.status_code == ordinary.status_code
    assert fast.content == ordinary.content
    for header in ("content-type", "content-length", LENGTH):
        assert fast.headers.get(header) == ordinary.headers.get(header), header
    for answer in (fast, ordinary):
        given_id = headers.get("x-request-id")
        assert given_id in (None, answer.headers["x-request-id"])
        assert answer.headers["x-request-id"]
    assert set(fast.headers) == set(ordinary.headers)
    for header in IDENTITY:
        assert fast.headers.get(header) == ordinary.headers.get(header), header


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", _json(GOLDEN.inputs["images"][0])),
        ("/predict?model=mlp", _json(GOLDEN.inputs["images"][:3])),
        ("/predict", _json(GOLDEN.inputs["images"][0], model="mlp")),
        ("/predict?model=cnn", _json(GOLDEN.inputs["images"][0], model="mlp")),
        ("/predict", _json(GOLDEN.inputs["images"])),
        ("/predict", _json(GOLDEN.inputs["images"][0], model="nobody")),
        ("/predict?model=nobody", _json(GOLDEN.inputs["images"][0])),
        ("/predict", _json(GOLDEN.inputs["images"][0] + 0.5)),
        ("/predict", b""),
        ("/predict", b"\xff"),
        ("/predict", b'{"images": "\\ud800"}'),
        ("/v2/models/nobody/infer", b"{}"),
        ("/v2/models/cnn/versions/7/infer", b"{}"),
        (f"/v2/models/cnn/versions/{MANIFEST.version}/infer", b"{}"),
    ],
)
def test_both_ways_read_the_same_of_every_path(
    path: str, body: bytes, service_url: str, ordinary_url: str
) -> None:
    """Pixels as JSON, models by query and body, and unknown paths are handled alike."""
    fast, ordinary = (httpx.post(url + path, content=body) for url in (service_url, ordinary_url))
    assert fast.status_code == ordinary.status_code
    assert fast.content == ordinary.content
    assert fast.headers["content-type"] == ordinary.headers["content-type"]


def _form(content: bytes, name: str = "image") -> tuple[bytes, str]:
    part = f'--x\r\ncontent-disposition: form-data; name="{name}"; filename="a"\r\n\r\n'.encode()
    return part + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


def _drawing(side: int) -> np.ndarray:
    """Dark ink at a random position on light paper."""
    sheet = np.full((side, side), 220, np.uint8)
    digit = GOLDEN.inputs["images"][0] // 2
    sheet[3:31, 10:38] -= digit
    return sheet


def _uploads() -> dict[str, tuple[bytes, str]]:
    """Image files as bodies and in forms, small and large."""
    image = Image.fromarray(GOLDEN.inputs["images"][0])
    files = {}
    for name, picture, options in (
        ("PNG", image, {"format": "PNG"}),
        ("JPEG", image, {"format": "JPEG"}),
        ("large PNG", image.resize((300, 200)), {"format": "PNG"}),
        ("blank", Image.new("L", (28, 28)), {"format": "PNG"}),
        ("blank JPEG", Image.new("RGB", (90, 60), "white"), {"format": "JPEG"}),
        ("drawing", Image.fromarray(_drawing(80)), {"format": "PNG"}),
        ("large drawing", Image.fromarray(_drawing(400)), {"format": "PNG"}),
        ("colour profile", image, {"format": "PNG", "icc_profile": b"a" * 5000}),
    ):
        buffer = io.BytesIO()
        picture.save(buffer, **options)
        files[name] = buffer.getvalue()
    png = files["PNG"]
    uploads = {name: (content, "image/png") for name, content in files.items()}
    uploads |= {f"{name}, form": _form(content) for name, content in files.items()}
    return uploads | {
        "cut PNG": (png[: len(png) // 2], "image/png"),
        "cut form": (_form(png)[0][:-6], _form(png)[1]),
        "another field": _form(png, "file"),
        "no type": (png, ""),
        "nothing": (b"", "image/png"),
        "text": (b"x" * 100, "image/png"),
    }


@pytest.mark.parametrize("name", list(_uploads()))
def test_both_ways_read_the_same_of_every_upload(
    name: str, service_url: str, ordinary_url: str
) -> None:
    """Both transports answer alike, though only small PNGs take the fast path."""
    body, media_type = _uploads()[name]
    headers = {"content-type": media_type}
    for path in ("/predict/image", "/predict/image?model=mlp", "/predict/image?show=image"):
        with httpx.Client(base_url=service_url) as client:
            asked = [client.post(path, content=body, headers=headers) for _ in range(2)]
        ordinary = httpx.post(ordinary_url + path, content=body, headers=headers)
        assert {answer.status_code for answer in asked} == {ordinary.status_code}
        assert {answer.content for answer in asked} == {ordinary.content}
