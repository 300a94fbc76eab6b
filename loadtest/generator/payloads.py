"""Builds requests and parses answers, from a bundle's manifest and golden samples alone.

To support another request format, add its body and its parser here. Bodies are built before a load
begins, so that their cost is not part of the measurement.

Shape suffixes: G golden samples, N samples of a request, K classes.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from loadtest.errors import LoadTestError
from loadtest.scenarios import Endpoint

LENGTH = "inference-header-content-length"
VARIANT, PROVIDER = "x-model-variant", "x-provider"
PROVIDERS = {"CUDA": "cuda", "CPU": "cpu"}
BOUNDARY = "a-boundary-that-no-picture-holds"
JSON = {"content-type": "application/json"}
BYTES = {"content-type": "application/octet-stream"}
# The Open Inference Protocol's numeric datatypes; binary values are little-endian.
DTYPES = {
    "BOOL": "?",
    **{f"UINT{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": f"<f{size}" for size in (2, 4, 8)},
}
Array = npt.NDArray[Any]
# Formats of this service, and two for servers without a protocol: "json" is one JSON list of
# samples; "tensors" is the concatenated bytes of the tensors.
Form = Endpoint | Literal["predict/form", "json", "tensors"]
PeerForm = Literal["json", "tensors", "infer/json", "infer/binary", "infer/raw"]
PICTURES: tuple[Form, ...] = ("predict/image", "predict/form")


class PayloadError(LoadTestError):
    """A bundle cannot be read, or its model does not accept the form of request."""


class Tensor(NamedTuple):
    """An input or an output, as the manifest describes it; the first axis is the samples'."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    kind: str = "values"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype of the values."""
        return np.dtype(DTYPES[self.datatype])


class Model:
    """A model as its bundle describes it.

    Attributes:
        manifest: The content of the bundle's ``manifest.json``.
        inputs: Tensors of a request; ``outputs`` are those of an answer.
        asked: The outputs that requests name: all, except logits if probabilities are an output.
        golden: Inputs by name, [G, ...]; ``eager`` and ``truth`` are the reference's outputs in
            float32 and float64.
        takes_digits: Whether the service serves the model at /predict and /predict/image.
    """

    def __init__(self, bundle: Path) -> None:
        """Read a bundle.

        Raises:
            PayloadError: It is not a bundle, or has a datatype that this load test does not know.
        """
        try:
            self.manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
            self.name, self.version = self.manifest["name"], self.manifest["version"]
            self.labels: list[str] = list(self.manifest.get("labels", ()))
            self.inputs, self.outputs = (
                [_tensor(row) for row in self.manifest[part]] for part in ("inputs", "outputs")
            )
            with np.load(bundle / "golden.npz", allow_pickle=False) as arrays:
                self.golden = {t.name: arrays[f"inputs/{t.name}"] for t in self.inputs}
                self.truth = {t.name: arrays[f"truth/{t.name}"] for t in self.outputs}
                self.eager = {t.name: arrays[f"eager/{t.name}"] for t in self.outputs}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise PayloadError(
                f"{bundle} is not a bundle with golden samples: {error!r}"
            ) from error
        self.samples = len(next(iter(self.golden.values())))
        of_kind = {t.kind: t.name for t in self.outputs}
        self.logits = of_kind.get("logits")
        self.probabilities = of_kind.get("probabilities")
        self.asked = [t for t in self.outputs if t.kind != "logits" or not self.probabilities]
        pixels = Tensor("images", "UINT8", (-1, 28, 28))
        has_form = self.inputs == [pixels] and self.probabilities == "probabilities"
        self.takes_digits = self.manifest.get("task") in (None, "digits") and has_form

    def batch(self, positions: Sequence[int]) -> dict[str, Array]:
        """The golden inputs at the given positions, [N, ...], in the manifest's datatypes."""
        return {
            t.name: np.ascontiguousarray(self.golden[t.name][list(positions)], t.dtype)
            for t in self.inputs
        }

    def takes(self, form: Form) -> bool:
        """Whether this model accepts requests of that form."""
        if form in PICTURES:
            return self.takes_digits
        if form == "json":
            return len(self.inputs) == len(self.asked) == 1
        return form != "infer/raw" or len(self.inputs) == 1


@dataclass
class Request:
    """A prepared request, which is sent repeatedly, and the positions of its golden samples.

    Attributes:
        is_ours: Whether it goes to this service, whose answers name model, device and variant.
        known_right: Bodies of answers that were verified, each with the variant that it named.
    """

    model: Model
    form: Form
    path: str
    content: bytes
    headers: dict[str, str]
    positions: tuple[int, ...]
    is_ours: bool = True
    known_right: set[tuple[bytes, str | None]] = field(default_factory=set)

    def wire(self) -> bytes:
        """The whole request as HTTP/1.1 bytes: request line, headers and body."""
        lines = [f"POST {self.path} HTTP/1.1", "host: x", f"content-length: {len(self.content)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + self.content


class Answer(NamedTuple):
    """A parsed answer; fields that its form does not contain are None.

    Attributes:
        labels: One label for each sample.
        tensors: Outputs by name, [N, ...].
    """

    model: str | None
    version: str | None
    device: str | None
    variant: str | None
    labels: list[str] | None
    tensors: dict[str, Array]


def usable_form(models: Sequence[Model], wished: Endpoint) -> Endpoint:
    """The wished endpoint if all models accept it, else the binary Open Inference Protocol's."""
    return wished if all(model.takes(wished) for model in models) else "infer/binary"


def prepare(model: Model, form: Form, samples: int = 1, path: str | None = None) -> list[Request]:
    """One request per golden sample, which starts with it and wraps around at the last one.

    Args:
        model: The model that the requests are for.
        form: The format of the requests.
        samples: Number of samples in each request.
        path: URL path; None: this service's path for that form.

    Raises:
        PayloadError: The model does not accept that form.
    """
    if not model.takes(form):
        raise PayloadError(
            f"{model.name} does not accept {form}, which takes "
            + ("28x28 images" if form in PICTURES else "one input (and one output, for json)")
            + f"; its inputs are {', '.join(t.name for t in model.inputs)}; use infer/binary"
        )
    made = []
    for start in range(model.samples):
        positions = tuple((start + i) % model.samples for i in range(samples))
        ours, content, headers = _body(model, form, model.batch(positions))
        made.append(Request(model, form, path or ours, content, headers, positions, path is None))
    return made


def _body(model: Model, form: Form, inputs: dict[str, Array]) -> tuple[str, bytes, dict[str, str]]:
    """Path, body and headers of a request."""
    if form.startswith("infer/"):
        return f"/v2/models/{model.name}/infer", *_infer_body(model, form, inputs)
    first = next(iter(inputs.values()))
    if form == "predict/image":
        return f"/predict/image?model={model.name}", _png(first[0]), {"content-type": "image/png"}
    if form == "predict/form":
        return f"/predict/image?model={model.name}", *_multipart(_png(first[0]))
    if form == "predict" and model.takes_digits:
        pixels = first[0] if len(first) == 1 else first
        return f"/predict?model={model.name}", _compact({"images": pixels.tolist()}), JSON
    if form == "predict":
        lists = {name: array.tolist() for name, array in inputs.items()}
        return f"/models/{model.name}/predict", _compact({"inputs": lists}), JSON
    if form == "json":
        return "/", _compact({"samples": first.tolist()}), JSON
    return "/", _blobs(inputs), BYTES


def _infer_body(model: Model, form: Form, inputs: dict[str, Array]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an Open Inference Protocol request."""
    if form == "infer/raw":
        return _blobs(inputs), {LENGTH: "0"}
    tensors: list[dict[str, Any]] = [
        {"name": t.name, "shape": list(inputs[t.name].shape), "datatype": t.datatype}
        for t in model.inputs
    ]
    asked: list[dict[str, Any]] = [{"name": t.name} for t in model.asked]
    if form == "infer/json":
        for tensor in tensors:
            tensor["data"] = inputs[tensor["name"]].ravel().tolist()
        return _compact({"inputs": tensors, "outputs": asked}), JSON
    for tensor in tensors:
        tensor["parameters"] = {"binary_data_size": inputs[tensor["name"]].nbytes}
    asked = [output | {"parameters": {"binary_data": True}} for output in asked]
    text = _compact({"inputs": tensors, "outputs": asked})
    return text + _blobs(inputs), {LENGTH: str(len(text))}


def read(request: Request, content: bytes, headers: Mapping[str, str]) -> Answer:
    """Parse an answer.

    Args:
        request: The request that was answered.
        content: The answer's body.
        headers: The answer's headers, with lower-case names (or a case-insensitive mapping).

    Raises:
        ValueError: The answer is malformed (KeyError, TypeError and IndexError are possible too).
    """
    model = request.model
    if request.form == "tensors":
        return _nameless(_split(model, len(request.positions), content))
    length = headers.get(LENGTH)
    found = json.loads(content if length is None else content[: int(length)])
    if request.form == "json":
        (output,) = model.asked
        return _nameless({output.name: np.array(found)})
    if "outputs" in found and isinstance(found["outputs"], list):
        tensors = _tensors(found["outputs"], content[int(length or len(content)) :])
        provider = headers.get(PROVIDER) or ""
        device = next((d for word, d in PROVIDERS.items() if word in provider.upper()), "unnamed")
        variant = headers.get(VARIANT) or "unnamed"
        return Answer(
            found["model_name"], found.get("model_version"), device, variant, None, tensors
        )
    model_name, version, device, variant = (
        found[key] for key in ("model", "version", "device", "variant")
    )
    if request.form == "predict" and not model.takes_digits:
        tensors = {name: _numbers(values) for name, values in found["outputs"].items()}
        return Answer(model_name, version, device, variant, None, tensors)
    rows = [entry["probabilities"] for entry in found["predictions"]]
    labels = [entry["label"] for entry in found["predictions"]]
    probabilities = {str(model.probabilities): _numbers(rows)}
    return Answer(model_name, version, device, variant, labels, probabilities)


def _tensor(row: Mapping[str, Any]) -> Tensor:
    tensor = Tensor(row["name"], row["datatype"], tuple(row["shape"]), row.get("kind", "values"))
    if tensor.datatype not in DTYPES:
        raise ValueError(f"{tensor.name} has the unknown datatype {tensor.datatype}")
    return tensor


def _nameless(tensors: dict[str, Array]) -> Answer:
    return Answer(None, None, None, None, None, tensors)


def _tensors(outputs: Sequence[Mapping[str, Any]], blobs: bytes) -> dict[str, Array]:
    """The outputs of an Open Inference Protocol answer, whose values are JSON or binary."""
    start, found = 0, {}
    for output in outputs:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        dtype = DTYPES[output["datatype"]]
        values = np.frombuffer(blobs[start : start + size], dtype) if size else output["data"]
        found[output["name"]] = np.array(values).reshape(output["shape"])
        start += size
    return found


def _split(model: Model, samples: int, content: bytes) -> dict[str, Array]:
    """Parse concatenated outputs, each the bytes of an array [N, ...] shaped as the golden one."""
    start, found = 0, {}
    for output in model.asked:
        shape = (samples, *model.eager[output.name].shape[1:])
        size = int(np.prod(shape)) * output.dtype.itemsize
        values = np.frombuffer(content[start : start + size], output.dtype)
        found[output.name] = values.reshape(shape)
        start += size
    if start != len(content):
        raise ValueError(f"{len(content)} bytes, expected {start}")
    return found


def _numbers(rows: Any) -> Array:
    """Convert a JSON list of numbers to an array; other values raise ValueError."""
    array = np.array(rows)
    if array.dtype.kind not in "biuf":
        raise ValueError("values that are not numbers")
    return array


def _blobs(tensors: Mapping[str, Array]) -> bytes:
    """The concatenated bytes of the tensors' values."""
    return b"".join(array.tobytes() for array in tensors.values())


def _compact(content: Any) -> bytes:
    """JSON without whitespace, encoded as UTF-8."""
    return json.dumps(content, separators=(",", ":")).encode()


def _png(image_HW: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HW).save(buffer, format="PNG")
    return buffer.getvalue()


def _multipart(picture: bytes) -> tuple[bytes, dict[str, str]]:
    """A multipart form with a picture, as a browser or ``curl -F`` sends it."""
    disposition = 'form-data; name="image"; filename="digit.png"'
    head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n"
    head += "Content-Type: image/png\r\n\r\n"
    body = head.encode() + picture + f"\r\n--{BOUNDARY}--\r\n".encode()
    return body, {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
