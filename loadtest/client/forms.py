"""The ways to ask for the same digits: bodies made once, and what their answers must say.

Shape suffixes: N images, H and W 28 pixels, K classes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from loadtest.bodies import LENGTH, Pixels, body, compact, png, read
from loadtest.client.connections import Judge
from loadtest.errors import LoadTestError
from loadtest.scenarios import Endpoint

MANY = 64  # images of the larger requests
BOUNDARY = "a-boundary-that-no-picture-holds"


class FormError(LoadTestError):
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
        body, kind = compact({"images": self._first(count).tolist()}), "application/json"
        right = self._right(count)
        return Request(server, name, "/predict", body, right, {"content-type": kind})

    def raw(self, server: str, name: str, count: int = 1) -> Request:
        """Nothing but pixels, by the Open Inference Protocol."""
        return self._of("infer/raw", server, name, count)

    def binary(self, server: str, name: str) -> Request:
        """The protocol's binary extension: JSON, then pixels."""
        return self._of("infer/binary", server, name)

    def as_json(self, server: str, name: str) -> Request:
        """One image as JSON, to /predict."""
        return self._of("predict", server, name)

    def png(self, server: str, name: str) -> Request:
        """A PNG file as the body."""
        return self._of("predict/image", server, name)

    def form(self, server: str, name: str) -> Request:
        """The same file in a form, as a browser or ``curl -F`` sends it."""
        disposition = 'form-data; name="image"; filename="digit.png"'
        head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n"
        head += "Content-Type: image/png\r\n\r\n"
        body = head.encode() + png(self._first(1)[0]) + f"\r\n--{BOUNDARY}--\r\n".encode()
        kind = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
        path = f"/predict/image?model={self.model}"
        return Request(server, name, path, body, self._right(1), kind)

    def read_labels(self, headers: Mapping[str, str], content: bytes) -> tuple[str, ...]:
        """The labels that an answer of any of these forms gives.

        Args:
            headers: Of the answer, their names in small letters.
            content: Of the answer.

        Raises:
            ValueError: It is no such answer (KeyError, TypeError and IndexError are possible too).
        """
        if LENGTH not in headers and content.startswith(
            b"["
        ):  # the tutorial's: probabilities alone
            return tuple(self._names[i] for i in np.array(json.loads(content)).argmax(axis=1))
        return tuple(read(content, headers, self._names).labels)

    def _of(self, endpoint: Endpoint, server: str, name: str, count: int = 1) -> Request:
        made = body(endpoint, self.model, self._first(count))
        return Request(server, name, made.path, made.content, self._right(count), made.headers)

    def _first(self, count: int) -> Pixels:
        return np.resize(self._images_NHW, (count, 28, 28))

    def _right(self, count: int) -> tuple[str, ...]:
        return tuple(self._labels[i % len(self._labels)] for i in range(count))


def judge(forms: Forms, request: Request) -> Judge:
    """Compares an answer's labels with those that the request must get."""

    def complaint(headers: Mapping[str, str], body: bytes) -> str | None:
        try:
            labels = forms.read_labels(headers, body)
        except (ValueError, LookupError, TypeError) as error:
            return f"malformed answer ({error!r})"
        return None if labels == request.labels else f"labels {labels}"

    return complaint
