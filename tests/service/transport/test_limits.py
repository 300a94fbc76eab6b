"""The configured limits apply to every form of a request, on each transport."""

import io
import json
from collections.abc import Iterator

import pytest
from PIL import Image

from tests.service.wire import (
    TRANSPORTS,
    Connection,
    find_mistake,
    golden_images,
    infer,
    on_both_transports,
    post,
    running_services,
)

MAX_BODY_BYTES, MAX_IMAGE_PIXELS = 2000, 784


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A service on each transport with low limits."""
    settings = on_both_transports(
        MAX_BODY_BYTES=str(MAX_BODY_BYTES), MAX_IMAGE_PIXELS=str(MAX_IMAGE_PIXELS)
    )
    with running_services(tmp_path_factory.mktemp("limits"), settings) as urls:
        yield urls


@pytest.fixture(scope="module", params=TRANSPORTS)
def url(request: pytest.FixtureRequest, urls: dict[str, str]) -> str:
    """The service on one transport."""
    return urls[request.param]


def _png(side: int) -> bytes:
    """A golden image on a square canvas with this many pixels per side, which compresses well."""
    picture = Image.new("L", (side, side))
    picture.paste(Image.fromarray(golden_images("cnn", 1)[0]))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _form(file: bytes) -> bytes:
    part = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    return part + file + b"\r\n--x--\r\n"


def _too_long() -> dict[str, bytes]:
    """Requests with bodies that are too long, by name."""
    images = golden_images("cnn", 4)
    raw, length = infer("cnn", 4), b"content-length: 3136"
    head, body = raw[: -images.size], raw[-images.size :]
    text = json.dumps({"images": images.tolist()}).encode()
    data = images.ravel().tolist()
    tensor = {"name": "images", "shape": [4, 28, 28], "datatype": "UINT8", "data": data}
    return {
        "raw": raw,
        "raw, chunked": head.replace(length, b"transfer-encoding: chunked")
        + b"c40\r\n%b\r\n0\r\n\r\n" % body,
        "JSON to infer": post("/v2/models/cnn/infer", json.dumps({"inputs": [tensor]}).encode()),
        "JSON to predict": post("/predict", text),
        "JSON to predict, the model in the URL": post("/predict?model=mlp", text),
        "a file": post("/predict/image", bytes(MAX_BODY_BYTES + 1), "content-type: image/png"),
    }


@pytest.mark.parametrize("name", _too_long())
def test_a_body_beyond_the_limit_is_refused(name: str, url: str) -> None:
    """It gets 413, and the answer names the limit."""
    with Connection(url) as connection:
        connection.send(_too_long()[name])
        answer = connection.receive()
    assert answer.status_code == 413
    assert f"{MAX_BODY_BYTES:,}" in answer.json()["error"]


@pytest.mark.parametrize("form", [False, True])
def test_a_picture_beyond_the_limit_of_pixels_is_refused(form: bool, url: str) -> None:
    """A PNG of 100 x 100 pixels gets 413, alone and in a form; one of 28 x 28 is accepted."""
    media_type = "multipart/form-data; boundary=x" if form else "image/png"
    answers = []
    with Connection(url) as connection:
        for side in (28, 100):
            body = _form(_png(side)) if form else _png(side)
            connection.send(post("/predict/image", body, f"content-type: {media_type}"))
            answers.append(connection.receive())
    assert [answer.status_code for answer in answers] == [200, 413]
    assert f"{MAX_IMAGE_PIXELS:,}" in answers[1].json()["error"]


def test_what_is_within_the_limit_is_answered(url: str) -> None:
    """Two images are 1,568 bytes, which the limit allows."""
    with Connection(url) as connection:
        connection.send(infer("cnn", 2))
        assert find_mistake(connection.receive(), "cnn", 2) == ""
