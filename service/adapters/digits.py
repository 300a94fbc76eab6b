"""The task "digits": 28x28 grey images in, the likeliest digit with all probabilities out.

This is the wire format of ``/predict``; ``/models/NAME/features`` takes one such image a request.

in   {"images": <28x28 or Nx28x28 integers 0..255>, "model": "cnn"}      (model: optional)
out  {"model": "cnn", "version": "...", "device": "cpu", "provider": "CPUExecutionProvider",
      "predictions": [{"label": "7", "probabilities": [10 numbers], "guard":
                       {"usual": true, "p_value": 0.42, "reason": null}}, ...]}
err  {"error": "what came, what was expected, what to do"}
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, cast

import msgspec
import numpy as np
from PIL import Image

from export.bundle.golden import Predict
from export.bundle.manifest import BundleError, Manifest, TensorSpec
from export.bundle.metrics import Array, Arrays
from export.mnist.ood_detector import OodDetector, Verdict
from service.adapters.mnist_form import convert_to_mnist_form
from service.adapters.pictures import PIXEL_MAX, convert_to_grey, decode_picture
from service.adapters.tensors import TensorsAdapter
from service.protocol.errors import InvalidInputError
from service.protocol.json_values import convert_json, json_kind, json_value, parse_json
from service.protocol.oip import to_json_numbers
from service.protocol.tensors import check_count
from service.settings import Limits

EXPECTED = (
    'JSON: {"images": a 28x28 list of integers 0 to 255, or a list of such (0 = ground, 255 = ink)}'
)
SIDE = 28
IMAGES, PROBABILITIES = "images", "probabilities"
P_VALUES = "p_values"  # of the out-of-distribution detector; not an output of the model
IMAGES_SPEC = TensorSpec(name=IMAGES, datatype="UINT8", shape=(-1, SIDE, SIDE))
# A JPEG with longer sides is decoded at a smaller size.
JPEG_SIDE = 1024


class PredictRequest(NamedTuple):
    """A checked request.

    Attributes:
        images: uint8 [N, 28, 28], N >= 1, 0 = ground, 255 = ink.
        model: The model's name; None if the body names none.
    """

    images: Array
    model: str | None


_SIDE = msgspec.Meta(min_length=SIDE, max_length=SIDE)
_Image = Annotated[list[Annotated[list[int], _SIDE]], _SIDE]
_Pixel = Annotated[int, msgspec.Meta(ge=0, le=PIXEL_MAX)]
_CheckedImage = Annotated[list[Annotated[list[_Pixel], _SIDE]], _SIDE]


class _FeaturesBody(msgspec.Struct, forbid_unknown_fields=True):
    images: list[Any]


class _PredictBody(_FeaturesBody, forbid_unknown_fields=True):
    model: str | None = None


class _OneImage(_PredictBody, forbid_unknown_fields=True):
    images: _Image


class _Images(_PredictBody, forbid_unknown_fields=True):
    images: Annotated[list[_Image], msgspec.Meta(min_length=1)]


class LazyArray:
    """An array that is computed when it is first read; it can be sliced and converted to NumPy."""

    def __init__(self, compute: Callable[[], Array]) -> None:
        """Use this function to compute the array."""
        self._compute = compute
        self._computed: Array | None = None

    def __getitem__(self, rows: slice) -> "LazyArray":
        return LazyArray(lambda: self.__array__()[rows])

    def __array__(self, dtype: object = None, copy: bool | None = None) -> Array:
        if self._computed is None:
            self._computed = self._compute()
        return self._computed


class DigitsAdapter(TensorsAdapter):
    """Adds pictures of digits and labels to the task "tensors"."""

    task = "digits"
    endpoints: tuple[str, ...] = ("predict", "predict_image")

    def __init__(self, manifest: Manifest, detector: OodDetector | None) -> None:
        """Check the manifest, and use this out-of-distribution detector, if there is one.

        Raises:
            BundleError: The tensors do not fit the task.
        """
        if not has_digits_form(manifest):
            raise BundleError(
                f"{manifest.name} has the task digits, {len(manifest.labels)} labels, the inputs "
                f"{', '.join(map(str, manifest.inputs))} and the outputs "
                f"{', '.join(map(str, manifest.outputs))}; expected {IMAGES_SPEC} as the only "
                f"input, and an output {PROBABILITIES} of floating-point numbers [-1,number of "
                "labels]"
            )
        super().__init__(manifest)
        self._detector = detector

    def decode_image(self, content: bytes, max_pixels: int) -> Arrays:
        """Decode a picture of a digit and convert it to the form of MNIST's images."""
        return {IMAGES: decode_digit(content, max_pixels)[None]}

    def extend(self, predict: Predict) -> Predict:
        """Add the images' p-values to the outputs, computed when the first request reads them.

        Computing them once per batch costs a tenth of computing them per image. Requests of the
        Open Inference Protocol in the same batch do not read them.
        """
        detector = self._detector
        if detector is None:
            return predict

        def predict_with_p_values(inputs: Arrays) -> Arrays:
            p_values = LazyArray(lambda: detector.p_values(inputs[IMAGES]))
            return predict(inputs) | {P_VALUES: cast("Array", p_values)}

        return predict_with_p_values

    def encode(self, outputs: Arrays, inputs: Arrays) -> dict[str, object]:
        """Return the outputs as nested lists, and the predictions of ``encode_predictions``."""
        return super().encode(outputs, inputs) | self.encode_predictions(
            outputs, inputs, show=False
        )

    def encode_predictions(
        self, outputs: Arrays, inputs: Arrays, *, show: bool
    ) -> dict[str, object]:
        """Return the fields of a ``/predict`` response; ``show`` adds the first image as read.

        Raises:
            NonFiniteOutputError: A probability is NaN or infinite.
        """
        images_NHW, probabilities_NK = inputs[IMAGES], outputs[PROBABILITIES]
        verdicts = None
        if self._detector is not None:
            p_values = outputs.get(P_VALUES)
            known_N = None if p_values is None else np.asarray(p_values)
            verdicts = self._detector.judge(images_NHW, known_N)
        found = describe_predictions(self._manifest.labels, probabilities_NK, verdicts)
        return {"predictions": found} | ({"image": images_NHW[0].tolist()} if show else {})


def has_digits_form(manifest: Manifest) -> bool:
    """Whether the tensors have the form of the task "digits"."""
    labels = len(manifest.labels)
    has_probabilities = any(
        spec.name == PROBABILITIES and spec.shape == (-1, labels) and spec.dtype.kind == "f"
        for spec in manifest.outputs
    )
    return manifest.inputs == (IMAGES_SPEC,) and labels > 0 and has_probabilities


def decode_digit(content: bytes, max_pixels: int) -> Array:
    """Decode an uploaded PNG or JPEG file to uint8 [28, 28], 0 = ground, 255 = ink.

    Raises:
        InvalidInputError: The file is not a PNG or JPEG, or is damaged.
        NothingDrawnError: There is no digit on the picture.
        PayloadTooLargeError: Width x height is more than ``max_pixels``.
    """
    return convert_picture(decode_picture(content, max_pixels, draft_side=JPEG_SIDE))


def convert_picture(image: Image.Image) -> Array:
    """Convert an upright picture of any mode and size to uint8 [28, 28], 0 = ground, 255 = ink.

    Raises:
        NothingDrawnError: There is no digit on the picture.
    """
    return convert_to_mnist_form(convert_to_grey(image))


def decode_predict(body: bytes, limits: Limits) -> PredictRequest:
    """Decode the body of ``POST /predict``.

    Raises:
        InvalidInputError: The body is not JSON of this form.
        PayloadTooLargeError: There are more images than allowed.
    """
    quick = _decode_quickly(body, limits)
    if quick is not None:
        return quick
    asked = convert_json(parse_json(body, EXPECTED, limits.json_depth), _PredictBody, EXPECTED)
    return PredictRequest(_to_images(asked.images, limits.samples), asked.model)


def decode_one_image(body: bytes, limits: Limits) -> Array:
    """Decode the body of ``POST /models/NAME/features`` to uint8 [1, 28, 28].

    Raises:
        InvalidInputError: The body is not JSON of this form, or holds several images.
        PayloadTooLargeError: There are more images than any request may hold.
    """
    asked = convert_json(parse_json(body, EXPECTED, limits.json_depth), _FeaturesBody, EXPECTED)
    images_NHW = _to_images(asked.images, limits.samples)
    if len(images_NHW) > 1:
        raise InvalidInputError(
            f"{len(images_NHW):,} images in one request; feature maps are computed for one "
            "image: send one per request"
        )
    return images_NHW


def describe_predictions(
    labels: Sequence[str], probabilities_NK: Array, verdicts: Sequence[Verdict] | None
) -> list[dict[str, object]]:
    """Return each image's likeliest label, all probabilities and the verdict as "guard".

    Args:
        labels: The names of the classes.
        probabilities_NK: The model's probabilities.
        verdicts: Whether each image is like the training images; None if the bundle has no
            detector.

    Raises:
        NonFiniteOutputError: A probability is NaN or infinite.
    """
    rows = to_json_numbers(PROBABILITIES, probabilities_NK)
    best = probabilities_NK.argmax(axis=1).tolist()
    guards = [None] * len(rows) if verdicts is None else [found._asdict() for found in verdicts]
    return [
        {"label": labels[i], "probabilities": row, "guard": guard}
        for i, row, guard in zip(best, rows, guards, strict=True)
    ]


def _decode_quickly(body: bytes, limits: Limits) -> PredictRequest | None:
    """Decode a valid body; return None for any other, which a slower decoder reports in detail."""
    found: _OneImage | _Images
    try:
        found = msgspec.json.decode(body, type=_OneImage)
        images = [found.images]
    except ValueError:
        try:
            found = msgspec.json.decode(body, type=_Images)
            images = found.images
        except ValueError:
            return None
    # A repeated key would need another colon.
    if body.count(b":") != 1 + (found.model is not None) or len(images) > limits.samples:
        return None
    try:
        pixels = b"".join([bytes(row) for image in images for row in image])
    except ValueError:  # beyond 0 to 255
        return None
    return PredictRequest(np.frombuffer(pixels, np.uint8).reshape(-1, SIDE, SIDE), found.model)


def _to_images(images: list[Any], max_images: int) -> Array:
    """Convert nested lists to uint8 [N, 28, 28]; every value is checked before its conversion."""
    if not images:
        raise InvalidInputError(f"images is an empty list; send {EXPECTED}")
    first = images[0]
    is_single = not (isinstance(first, list) and first and isinstance(first[0], list))
    check_count(1 if is_single else len(images), max_images, "images")
    type_: Any = _CheckedImage if is_single else list[_CheckedImage]
    convert_json(images, type_, EXPECTED, lambda problem, _: _describe_misfit(problem, images))
    return np.array(images, np.uint8).reshape(-1, SIDE, SIDE)


def _describe_misfit(problem: str, images: list[Any]) -> str:
    """Reword an error of msgspec, e.g. "images[3][4] is 0.5, a fraction"."""
    where, value = "images", cast("object", images)
    for index in re.findall(r"\[(\d+)\]", problem):
        where += f"[{index}]"
        value = cast("list[object]", value)[int(index)]
    if isinstance(value, list):
        return f"{where} is a list of length {len(value)}"
    if problem.startswith("Expected `array`"):
        return f"{where} is {json_kind(value)}"
    scaled = type(value) is float and 0 <= value <= 1
    hint = " (pixels from 0 to 1 are already scaled: send the original integers)" if scaled else ""
    return f"{where} is {json_value(value)}{hint}"
