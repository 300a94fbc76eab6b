"""The ways to ask for the same digits: bodies made once, and what their answers must say.

Shape suffixes: N images, H and W 28 pixels, K classes.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

MANY = 64  # images of the larger requests
BOUNDARY = "a-boundary-that-no-picture-holds"
LENGTH = "inference-header-content-length"
Pixels = npt.NDArray[np.uint8]


class FormError(RuntimeError):
    """No bundle there to ask with."""


@dataclass(frozen=True)
class Request:
    """What is sent again and again: a form of asking for so many images.

    Attributes:
        server: Who is asked.
        labels: What the answer must say, a label for each image.
    """

    server: str
    name: str
    path: str
    body: bytes
    labels: tuple[str, ...]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """How many images it holds."""
        return len(self.labels)

    def wire(self) -> bytes:
        """All its bytes as HTTP/1.1 has them."""
        lines = [f"POST {self.path} HTTP/1.1", "host: x", f"content-length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + self.body


class Forms:
    """Makes requests of a bundle's golden images."""

    def __init__(self, bundle: Path) -> None:
        """Read the bundle.

        Args:
            bundle: Its folder.

        Raises:
            FormError: No bundle there.
        """
        try:
            manifest = json.loads((bundle / "manifest.json").read_text())
            with np.load(bundle / "golden.npz", allow_pickle=False) as golden:
                self._images_NHW = golden["inputs/images"]
                best_N = golden["truth/logits"].argmax(axis=1)
            self.model, self._names = str(manifest["name"]), tuple(manifest["labels"])
        except (OSError, ValueError, KeyError) as error:
            raise FormError(f"{bundle} is no bundle with golden samples: {error}") from error
        self._labels = [self._names[i] for i in best_N]

    def tutorial(self, server: str, name: str, count: int = 1) -> Request:
        """The form of BentoML's tutorial: a list of images as JSON."""
        body = _compact({"images": self._first(count).tolist()})
        return Request(
            server, name, "/predict", body, self._right(count), _typed("application/json")
        )

    def raw(self, server: str, name: str, count: int = 1) -> Request:
        """Nothing but pixels, by the Open Inference Protocol."""
        body = self._first(count).tobytes()
        return Request(server, name, self._infer, body, self._right(count), {LENGTH: "0"})

    def binary(self, server: str, name: str) -> Request:
        """The protocol's binary extension: JSON, then pixels."""
        tensor = {"name": "images", "shape": [1, 28, 28], "datatype": "UINT8"}
        asked = {"name": "probabilities", "parameters": {"binary_data": True}}
        text = json.dumps(
            {
                "inputs": [tensor | {"parameters": {"binary_data_size": 784}}],
                "outputs": [asked],
            }
        ).encode()
        body, headers = text + self._first(1).tobytes(), {LENGTH: str(len(text))}
        return Request(server, name, self._infer, body, self._right(1), headers)

    def as_json(self, server: str, name: str) -> Request:
        """One image as JSON, to /predict."""
        body = _compact({"images": self._first(1)[0].tolist()})
        path = f"/predict?model={self.model}"
        return Request(server, name, path, body, self._right(1), _typed("application/json"))

    def png(self, server: str, name: str) -> Request:
        """A PNG file as the body."""
        body = _png(self._first(1)[0])
        return Request(server, name, self._upload, body, self._right(1), _typed("image/png"))

    def form(self, server: str, name: str) -> Request:
        """The same file in a form, as a browser or ``curl -F`` sends it."""
        disposition = 'form-data; name="image"; filename="digit.png"'
        head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n"
        head += "Content-Type: image/png\r\n\r\n"
        body = head.encode() + _png(self._first(1)[0]) + f"\r\n--{BOUNDARY}--\r\n".encode()
        kind = _typed(f"multipart/form-data; boundary={BOUNDARY}")
        return Request(server, name, self._upload, body, self._right(1), kind)

    def read_labels(self, headers: Mapping[str, str], body: bytes) -> tuple[str, ...]:
        """The labels that an answer of any of these forms gives.

        Args:
            headers: Of the answer, their names in small letters.
            body: Of the answer.

        Raises:
            ValueError: It is no such answer (KeyError, TypeError and IndexError are possible too).
        """
        if LENGTH in headers:
            best_N = _first_tensor(body, int(headers[LENGTH])).argmax(axis=1)
            return tuple(self._names[i] for i in best_N)
        content = json.loads(body)
        if isinstance(content, dict):
            return tuple(entry["label"] for entry in content["predictions"])
        return tuple(self._names[i] for i in np.array(content).argmax(axis=1))

    @property
    def _infer(self) -> str:
        return f"/v2/models/{self.model}/infer"

    @property
    def _upload(self) -> str:
        return f"/predict/image?model={self.model}"

    def _first(self, count: int) -> Pixels:
        return np.resize(self._images_NHW, (count, 28, 28))

    def _right(self, count: int) -> tuple[str, ...]:
        return tuple(self._labels[i % len(self._labels)] for i in range(count))


def _first_tensor(body: bytes, json_length: int) -> npt.NDArray[np.float32]:
    """The first output of a binary answer, float32 [N, K]; logits and probabilities are alike."""
    output = json.loads(body[:json_length])["outputs"][0]
    size = output["parameters"]["binary_data_size"]
    values = np.frombuffer(body[json_length : json_length + size], np.float32)
    return values.reshape(output["shape"])


def _typed(content_type: str) -> dict[str, str]:
    return {"content-type": content_type}


def _compact(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _png(image_HW: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HW).save(buffer, format="PNG")
    return buffer.getvalue()
