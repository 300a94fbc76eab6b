"""Requests and answers of every endpoint, as bytes.

Shape suffixes: N images, H and W 28 pixels, K classes.
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from loadtest.scenarios import Endpoint

LENGTH = "inference-header-content-length"
VARIANT, PROVIDER = "x-model-variant", "x-provider"
PROVIDERS = {"CUDA": "cuda", "CPU": "cpu"}
Pixels = npt.NDArray[np.uint8]
_OUTPUT = "probabilities"


class Body(NamedTuple):
    """A request: where to, what, and with which headers."""

    path: str
    content: bytes
    headers: dict[str, str]


class Said(NamedTuple):
    """What an answer says.

    Attributes:
        probabilities_NK: float64.
    """

    model: str
    version: str
    device: str
    variant: str
    labels: list[str]
    probabilities_NK: npt.NDArray[np.float64]


def body(endpoint: Endpoint, model: str, images_NHW: Pixels) -> Body:
    """A request for some images, uint8 [N, 28, 28]; ``predict/image`` takes the first alone."""
    infer = f"/v2/models/{model}/infer"
    if endpoint == "predict/image":
        return Body(f"/predict/image?model={model}", png(images_NHW[0]), _typed("image/png"))
    if endpoint == "predict":
        pixels = images_NHW[0] if len(images_NHW) == 1 else images_NHW
        content = compact({"images": pixels.tolist()})
        return Body(f"/predict?model={model}", content, _typed("application/json"))
    if endpoint == "infer/raw":
        return Body(infer, images_NHW.tobytes(), {LENGTH: "0"})
    tensor: dict[str, Any] = {
        "name": "images",
        "shape": list(images_NHW.shape),
        "datatype": "UINT8",
    }
    if endpoint == "infer/json":
        tensor["data"] = images_NHW.ravel().tolist()
        content = compact({"inputs": [tensor], "outputs": [{"name": _OUTPUT}]})
        return Body(infer, content, _typed("application/json"))
    tensor["parameters"] = {"binary_data_size": images_NHW.size}
    asked = {"name": _OUTPUT, "parameters": {"binary_data": True}}
    text = compact({"inputs": [tensor], "outputs": [asked]})
    return Body(infer, text + images_NHW.tobytes(), {LENGTH: str(len(text))})


def read(content: bytes, headers: Mapping[str, str], names: Sequence[str]) -> Said:
    """What an answer of any endpoint says.

    Args:
        content: Its body.
        headers: Its own, their names in small letters (or a mapping that does not mind).
        names: The classes' names.

    Raises:
        ValueError: It is no such answer (KeyError, TypeError and IndexError are possible too).
    """
    length = headers.get(LENGTH)
    found = json.loads(content if length is None else content[: int(length)])
    if "predictions" in found:
        rows = [entry["probabilities"] for entry in found["predictions"]]
        if {type(value) for row in rows for value in row} - {float, int}:
            raise ValueError("probabilities that are no numbers")
        labels = [entry["label"] for entry in found["predictions"]]
        return Said(
            found["model"],
            found["version"],
            found["device"],
            found["variant"],
            labels,
            np.array(rows, np.float64),
        )
    probabilities_NK = _tensor(found["outputs"], content[int(length or len(content)) :])
    labels = [names[i] for i in probabilities_NK.argmax(axis=1)]
    provider = headers.get(PROVIDER) or ""
    device = next((d for word, d in PROVIDERS.items() if word in provider.upper()), "unnamed")
    variant = headers.get(VARIANT) or "unnamed"
    return Said(
        found["model_name"], found["model_version"], device, variant, labels, probabilities_NK
    )


def compact(content: Any) -> bytes:
    """JSON without blanks."""
    return json.dumps(content, separators=(",", ":")).encode()


def png(image_HW: Pixels) -> bytes:
    """An image as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image_HW).save(buffer, format="PNG")
    return buffer.getvalue()


def _tensor(outputs: Sequence[Mapping[str, Any]], blobs: bytes) -> npt.NDArray[np.float64]:
    """The probabilities of an inference answer, float64 [N, K]."""
    start = 0
    for output in outputs:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        if output["name"] == _OUTPUT:
            values = np.frombuffer(blobs[start : start + size], "<f4") if size else output["data"]
            return np.array(values, np.float64).reshape(output["shape"])
        start += size
    raise ValueError(f"no output {_OUTPUT}")


def _typed(content_type: str) -> dict[str, str]:
    return {"content-type": content_type}
