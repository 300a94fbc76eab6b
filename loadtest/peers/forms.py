"""How peers are asked: a bundle's golden images in the form that each protocol has for them.

Shape suffixes: N images, H and W 28 pixels, K classes.
"""

import json
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loadtest.client.connections import Judge
from loadtest.client.forms import Forms, Request

LENGTH = "inference-header-content-length"
Pixels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]
Headers = dict[str, str]
ASK_TIMEOUT_S = 20.0
CLASSES = 10


@dataclass(frozen=True)
class Form:
    """A protocol.

    Attributes:
        protocol: In words, for the table.
        build: Images, uint8 [N, H, W], to a body and its headers.
        read: An answer's headers, their names in small letters, and body to a value of each class
            for each image, [N, K], the label's the largest. Raises ValueError, LookupError or
            TypeError for what is no answer.
    """

    protocol: str
    build: Callable[[Pixels], tuple[bytes, Headers]]
    read: Callable[[Mapping[str, str], bytes], Values]


def _json(images_NHW: Pixels) -> tuple[bytes, Headers]:
    body = json.dumps({"images": images_NHW.tolist()}, separators=(",", ":")).encode()
    return body, {"content-type": "application/json"}


def _pixels(images_NHW: Pixels) -> tuple[bytes, Headers]:
    return images_NHW.tobytes(), {"content-type": "application/octet-stream"}


def _open_inference(images_NHW: Pixels) -> tuple[bytes, Headers]:
    size = {"binary_data_size": images_NHW.nbytes}
    tensor = {"name": "images", "shape": list(images_NHW.shape), "datatype": "UINT8"}
    asked = {"name": "probabilities", "parameters": {"binary_data": True}}
    content = {"inputs": [tensor | {"parameters": size}], "outputs": [asked]}
    text = json.dumps(content, separators=(",", ":")).encode()
    return text + images_NHW.tobytes(), {LENGTH: str(len(text))}


def _raw(images_NHW: Pixels) -> tuple[bytes, Headers]:
    return images_NHW.tobytes(), {LENGTH: "0"}


def _read_json(headers: Mapping[str, str], body: bytes) -> Values:
    return np.array(json.loads(body), np.float32).reshape(-1, CLASSES)


def _read_values(headers: Mapping[str, str], body: bytes) -> Values:
    return np.frombuffer(body, np.float32).reshape(-1, CLASSES)


def _read_tensor(headers: Mapping[str, str], body: bytes) -> Values:
    length = int(headers[LENGTH])
    output = json.loads(body[:length])["outputs"][0]  # logits and probabilities are alike
    size = output["parameters"]["binary_data_size"]
    return np.frombuffer(body[length : length + size], np.float32).reshape(output["shape"])


FORMS = {
    "json": Form("JSON", _json, _read_json),
    "pixels": Form("raw pixels, raw probabilities", _pixels, _read_values),
    "open-inference": Form("Open Inference Protocol, binary", _open_inference, _read_tensor),
    "open-inference-raw": Form(
        "Open Inference Protocol, binary without a JSON head", _raw, _read_tensor
    ),
}


class Golden:
    """A bundle's golden images and the digits that they are."""

    def __init__(self, bundle: Path) -> None:
        """Read them.

        Args:
            bundle: Its folder.

        Raises:
            FormError: No bundle there.
        """
        self.model = Forms(bundle).model
        with np.load(bundle / "golden.npz", allow_pickle=False) as golden:
            self._images_NHW = golden["inputs/images"]
            self._best_N = golden["truth/logits"].argmax(axis=1)

    def requests(self, server: str, form: Form, path: str) -> list[Request]:
        """A request for each image; a label is the class's number."""
        made = []
        for number, best in enumerate(self._best_N):
            body, headers = form.build(self._images_NHW[number : number + 1])
            made.append(Request(server, f"image {number}", path, body, (str(best),), headers))
        return made


def judge(form: Form, request: Request) -> Judge:
    """Compares an answer's labels with those that the request must get."""

    def complaint(headers: Mapping[str, str], body: bytes) -> str | None:
        try:
            labels = tuple(str(best) for best in form.read(headers, body).argmax(axis=1))
        except (ValueError, LookupError, TypeError) as error:
            return f"malformed answer ({error!r})"
        return None if labels == request.labels else f"label {labels}, expected {request.labels}"

    return complaint


def ask(url: str, request: Request) -> tuple[Headers, bytes]:
    """One answer: its headers, their names in small letters, and its body.

    Raises:
        OSError: There is none, or it is not 200.
    """
    asked = urllib.request.Request(  # noqa: S310 - our own servers
        url + request.path, request.body, request.headers
    )
    with urllib.request.urlopen(asked, timeout=ASK_TIMEOUT_S) as answer:  # noqa: S310 - the same
        return {name.lower(): value for name, value in answer.headers.items()}, answer.read()
