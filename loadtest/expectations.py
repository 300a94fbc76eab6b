"""Prepared requests and the answers they must get, from a bundle's golden samples.

The generator must not become what is measured: bodies are bytes made before the test, and an
answer whose bytes were verified once for a request is recognised again without being parsed.

Shape suffixes: G golden images, H and W 28 pixels, K classes.
"""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

# softmax in float32 rounds by a few 6e-8, and JSON carries every digit.
SOFTMAX_ROUNDING = 1e-6
# No answer has many right spellings: beyond this, each is parsed.
REMEMBERED_ANSWERS = 8


class ExpectationError(ValueError):
    """The bundle cannot be read."""


@dataclass
class Prepared:
    """One request's body and what its answer must say."""

    body: bytes
    content_type: str
    labels: list[str]
    probabilities_NK: npt.NDArray[np.float64]
    known_right: set[bytes] = field(default_factory=set)


class Expectations:
    """Prepared requests for one model, and the judge of their answers."""

    def __init__(self, bundle: Path, images_per_request: int, endpoint: str) -> None:
        """Prepare one request for each golden sample (a batch starts at it and goes on from it).

        Args:
            bundle: The folder of the bundle that is served.
            images_per_request: Images in a body.
            endpoint: "predict" or "predict/image".

        Raises:
            ExpectationError: No bundle there.
        """
        try:
            self.manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
            with np.load(bundle / "golden.npz", allow_pickle=False) as golden:
                images_GHW, truth_GK = golden["inputs/images"], golden["truth/logits"]
        except (OSError, ValueError, KeyError) as error:
            raise ExpectationError(f"{bundle} is no bundle with golden samples: {error}") from error
        self.path = f"/{endpoint}?model={self.manifest['name']}"
        self._bounds = {
            row["device"]: row["scaled_error"] * float(np.abs(truth_GK).max()) / 2
            + SOFTMAX_ROUNDING
            for row in self.manifest["tolerances"]
            if (row["format"], row["precision"]) == ("onnx", "fp32")
        }
        exponentials = np.exp(truth_GK - truth_GK.max(axis=1, keepdims=True))
        probabilities_GK = exponentials / exponentials.sum(axis=1, keepdims=True)
        labels = [self.manifest["labels"][i] for i in truth_GK.argmax(axis=1)]
        self.requests = []
        for start in range(len(images_GHW)):
            chosen = [(start + i) % len(images_GHW) for i in range(images_per_request)]
            body, content_type = _body(images_GHW[chosen], endpoint)
            self.requests.append(
                Prepared(body, content_type, [labels[i] for i in chosen], probabilities_GK[chosen])
            )

    def complaint(self, request: Prepared, answer: bytes) -> str | None:
        """What is wrong with a 200 answer; None if nothing is.

        Labels must be the reference's. A probability may differ by half of what a logit may
        (softmax changes by at most half of the largest change of its inputs), by the tolerance
        that the bundle gives for the device that the answer names.
        """
        if answer in request.known_right:
            return None
        try:
            complaint = self._judge(request, json.loads(answer))
        except Exception as error:  # noqa: BLE001 - whatever trips the judge is no right answer
            complaint = f"malformed answer ({error!r})"
        if complaint is None and len(request.known_right) < REMEMBERED_ANSWERS:
            request.known_right.add(answer)
        return None if complaint is None else f"{complaint}; it began {answer[:200]!r}"

    def _judge(self, request: Prepared, content: Any) -> str | None:
        expected = {name: self.manifest[name] for name in ("name", "version")}
        identity = {"name": content["model"], "version": content["version"]}
        if identity != expected:
            return f"answered by {identity}, expected {expected}"
        labels = [entry["label"] for entry in content["predictions"]]
        if labels != request.labels:
            return f"labels {labels}, expected {request.labels}"
        rows = [entry["probabilities"] for entry in content["predictions"]]
        if {type(value) for row in rows for value in row} - {float, int}:
            return "probabilities that are no numbers"
        probabilities_NK = np.array(rows, dtype=np.float64)
        if probabilities_NK.shape != request.probabilities_NK.shape:
            return f"probabilities of shape {probabilities_NK.shape}"
        difference = float(np.abs(probabilities_NK - request.probabilities_NK).max())
        bound = self._bounds[content["device"]]
        if not difference <= bound:  # NaN must complain too
            return f"probabilities differ by {difference:.2e}, allowed {bound:.2e}"
        return None


def _body(images_NHW: npt.NDArray[np.uint8], endpoint: str) -> tuple[bytes, str]:
    if endpoint == "predict/image":
        buffer = io.BytesIO()
        Image.fromarray(images_NHW[0]).save(buffer, format="PNG")
        return buffer.getvalue(), "image/png"
    pixels = images_NHW[0] if len(images_NHW) == 1 else images_NHW
    return json.dumps({"images": pixels.tolist()}, separators=(",", ":")).encode(), (
        "application/json"
    )
