"""Requests and answers as bytes, made of nothing but a bundle's manifest and golden samples.

To ask a model in another form, add its body and its reader here. Bodies are made before a load
begins, so that the generator does not measure itself.

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
# Of this service, and of servers that know no protocol: one list of samples as JSON, and the bytes
# of one tensor after the other.
Form = Endpoint | Literal["predict/form", "json", "tensors"]
PeerForm = Literal["json", "tensors", "infer/json", "infer/binary", "infer/raw"]
PICTURES: tuple[Form, ...] = ("predict/image", "predict/form")


class PayloadError(LoadTestError):
    """A bundle that cannot be read, or whose model cannot be asked in that form."""


class Tensor(NamedTuple):
    """An input or an output, as the manifest describes it; the first axis counts the samples."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    kind: str = "values"

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's type of the values."""
        return np.dtype(DTYPES[self.datatype])


class Model:
    """What a bundle says of its model.

    Attributes:
        manifest: As it is in the file.
        inputs: Tensors that are asked; ``outputs`` those that are answered.
        asked: The outputs that requests name: all, but for logits whose probabilities are another.
        golden: Inputs by name, [G, ...]; ``eager`` and ``truth`` are the reference's outputs in
            float32 and float64.
        takes_digits: Whether the service answers for it at /predict and /predict/image.
    """

    def __init__(self, bundle: Path) -> None:
        """Read a bundle.

        Raises:
            PayloadError: It is none, or says what this load test does not know.
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
            raise PayloadError(f"{bundle} is no bundle with golden samples: {error!r}") from error
        self.samples = len(next(iter(self.golden.values())))
        of_kind = {t.kind: t.name for t in self.outputs}
        self.logits = of_kind.get("logits")
        self.probabilities = of_kind.get("probabilities")
        self.asked = [t for t in self.outputs if t.kind != "logits" or not self.probabilities]
        pixels = Tensor("images", "UINT8", (-1, 28, 28))
        has_form = self.inputs == [pixels] and self.probabilities == "probabilities"
        self.takes_digits = self.manifest.get("task") in (None, "digits") and has_form

    def batch(self, positions: Sequence[int]) -> dict[str, Array]:
        """The golden inputs at some positions, [N, ...], in the datatypes of the manifest."""
        return {
            t.name: np.ascontiguousarray(self.golden[t.name][list(positions)], t.dtype)
            for t in self.inputs
        }

    def takes(self, form: Form) -> bool:
        """Whether requests of that form can be made for this model."""
        if form in PICTURES:
            return self.takes_digits
        if form == "json":
            return len(self.inputs) == len(self.asked) == 1
        return form != "infer/raw" or len(self.inputs) == 1


@dataclass
class Request:
    """What is sent again and again, and which golden samples it holds.

    Attributes:
        is_ours: Whether this service answers, which names its model, device and variant.
        known_right: Bodies of answers that were verified once, each with the variant it named.
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
        """All its bytes as HTTP/1.1 has them."""
        lines = [f"POST {self.path} HTTP/1.1", "host: x", f"content-length: {len(self.content)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + self.content


class Answer(NamedTuple):
    """What an answer says; None for what this form of it does not say.

    Attributes:
        labels: One for each sample.
        tensors: Outputs by name, [N, ...].
    """

    model: str | None
    version: str | None
    device: str | None
    variant: str | None
    labels: list[str] | None
    tensors: dict[str, Array]


def usable_form(models: Sequence[Model], wished: Endpoint) -> Endpoint:
    """The wished endpoint if all models take it, else the Open Inference Protocol's binary form."""
    return wished if all(model.takes(wished) for model in models) else "infer/binary"


def prepare(model: Model, form: Form, samples: int = 1, path: str | None = None) -> list[Request]:
    """A request for each golden sample; those of several samples go on from it, around the end.

    Args:
        model: Who is asked.
        form: How.
        samples: In a request.
        path: Of the URL; None: this service's own for the form.

    Raises:
        PayloadError: The model cannot be asked in that form.
    """
    if not model.takes(form):
        raise PayloadError(
            f"{model.name} cannot be asked at {form}, which takes "
            + ("28x28 pictures" if form in PICTURES else "one input (and one output, of json)")
            + f"; its inputs are {', '.join(t.name for t in model.inputs)}; take infer/binary"
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
    """Body and headers of the Open Inference Protocol."""
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
    """What an answer says.

    Args:
        request: That was answered.
        content: The answer's body.
        headers: Its own, their names in small letters (or a mapping that does not mind).

    Raises:
        ValueError: It is no such answer (KeyError, TypeError and IndexError are possible too).
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
        raise ValueError(f"{tensor.name} has the datatype {tensor.datatype}")
    return tensor


def _nameless(tensors: dict[str, Array]) -> Answer:
    return Answer(None, None, None, None, None, tensors)


def _tensors(outputs: Sequence[Mapping[str, Any]], blobs: bytes) -> dict[str, Array]:
    """The outputs of an Open Inference Protocol answer, whose values are JSON's or binary."""
    start, found = 0, {}
    for output in outputs:
        size = output.get("parameters", {}).get("binary_data_size", 0)
        dtype = DTYPES[output["datatype"]]
        values = np.frombuffer(blobs[start : start + size], dtype) if size else output["data"]
        found[output["name"]] = np.array(values).reshape(output["shape"])
        start += size
    return found


def _split(model: Model, samples: int, content: bytes) -> dict[str, Array]:
    """Outputs one after the other, each as the bytes of [N, ...] of the golden samples' sizes."""
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
    """JSON's numbers; nothing else becomes one."""
    array = np.array(rows)
    if array.dtype.kind not in "biuf":
        raise ValueError("values that are no numbers")
    return array


def _blobs(tensors: Mapping[str, Array]) -> bytes:
    """The values of tensors, one after the other."""
    return b"".join(array.tobytes() for array in tensors.values())


def _compact(content: Any) -> bytes:
    """JSON without blanks."""
    return json.dumps(content, separators=(",", ":")).encode()


def _png(image_HW: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HW).save(buffer, format="PNG")
    return buffer.getvalue()


def _multipart(picture: bytes) -> tuple[bytes, dict[str, str]]:
    """A picture in a form, as a browser or ``curl -F`` sends it."""
    disposition = 'form-data; name="image"; filename="digit.png"'
    head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n"
    head += "Content-Type: image/png\r\n\r\n"
    body = head.encode() + picture + f"\r\n--{BOUNDARY}--\r\n".encode()
    return body, {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
