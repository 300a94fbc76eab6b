"""The query parameters, and the image that a client may request with them."""

from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.protocol.errors import InvalidInputError
from service.protocol.query import decode_query

DIGIT = Path(__file__).parent.parent / "digit.png"
BOTH = ("model", "show")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", (None, False)),
        ("model=cnn", ("cnn", False)),
        ("show=image", (None, True)),
        ("show=image&model=cnn", ("cnn", True)),
        ("model=", ("", False)),
    ],
)
def test_a_query_names_model_and_show(query: str, expected: tuple[str | None, bool]) -> None:
    """A query may contain model, show, both in any order, or neither."""
    assert decode_query(query, BOTH) == expected


@pytest.mark.parametrize(
    ("query", "known", "named"),
    [
        ("show=pixels", BOTH, "'pixels'; expected show=image"),
        ("show=", BOTH, "expected show=image"),
        ("show=image&show=image", BOTH, "the query parameter show is given twice"),
        ("model=cnn&model=mlp", BOTH, "the query parameter model is given twice"),
        ("sho=image", BOTH, "'sho'; known: model, show"),
        ("show=image", ("model",), "'show'; known: model"),
    ],
)
def test_another_query_is_refused_in_words(query: str, known: tuple[str, ...], named: str) -> None:
    """The message says what came and which parameters there are."""
    with pytest.raises(InvalidInputError, match=named):
        decode_query(query, known)


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_the_image_comes_back_as_the_model_read_it(model: str, service_url: str) -> None:
    """The image is added to the usual answer, and sending its pixels gives that answer again."""
    url, headers = f"{service_url}/predict/image?model={model}", {"content-type": "image/png"}
    plain = httpx.post(url, content=DIGIT.read_bytes(), headers=headers)
    shown = httpx.post(f"{url}&show=image", content=DIGIT.read_bytes(), headers=headers)
    assert shown.status_code == 200
    image = shown.json()["image"]
    assert shown.json() == plain.json() | {"image": image}
    assert np.array(image, np.uint8).tolist() == image
    assert (np.array(image) == np.asarray(Image.open(DIGIT))).all()
    posted = httpx.post(f"{service_url}/predict", json={"images": image, "model": model})
    assert posted.json() == plain.json()


def test_pixels_are_not_shown_to_who_sent_them(service_url: str) -> None:
    """POST /predict does not accept show."""
    answer = httpx.post(f"{service_url}/predict?show=image", json={"images": [[0] * 28] * 28})
    assert answer.status_code == 400
    assert "known: model" in answer.json()["error"]
