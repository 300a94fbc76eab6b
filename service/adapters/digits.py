"""The task "digits": 28x28 grey images in, the likeliest digit with all probabilities out.

The wire format of ``/predict``; ``/models/NAME/features`` reads the same images, one a request.

in   {"images": <28x28 or Nx28x28 integers 0..255>, "model": "cnn"}      (model: optional)
out  {"model": "cnn", "version": "...", "device": "cpu", "provider": "CPUExecutionProvider",
      "predictions": [{"label": "7", "probabilities": [10 numbers], "guard":
                       {"usual": true, "p_value": 0.42, "reason": null}}, ...]}
err  {"error": "what came, what was expected, what to do"}
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple, cast

import msgspec
import numpy as np
from PIL import Image

from export.golden import Predict
from export.guard import Guard, Verdict
from export.manifest import BundleError, Manifest, TensorSpec
from export.parity.metrics import Array, Arrays
from service.adapters.mnist_form import convert_to_mnist_form
from service.adapters.pictures import PIXEL_MAX, convert_to_grey, decode_picture, turn_upright
from service.adapters.tensors import TensorsAdapter
from service.protocol.errors import InvalidInputError, PayloadTooLargeError, quote_value
from service.protocol.json_values import json_kind, json_value, parse_json
from service.protocol.oip import to_json_numbers
from service.settings import Limits

EXPECTED = "a 28x28 list of integers 0 to 255, or a list of such (0 = ground, 255 = ink)"
EXAMPLE = f'JSON: {{"images": {EXPECTED}}}'
SIDE = 28
IMAGES, PROBABILITIES = "images", "probabilities"
P_VALUES = "p_values"  # of the out-of-distribution detector; no output of the model
IMAGES_SPEC = TensorSpec(name=IMAGES, datatype="UINT8", shape=(-1, SIDE, SIDE))
# A JPEG with longer sides is decoded at a smaller size.
JPEG_SIDE = 1024


class PredictRequest(NamedTuple):
    """A checked request.

    Attributes:
        images: uint8 [N, 28, 28], N >= 1, 0 = ground, 255 = ink.
        model: The model's name, None if the body names none.
    """

    images: Array
    model: str | None


_Row = Annotated[list[int], msgspec.Meta(min_length=SIDE, max_length=SIDE)]
_Image = Annotated[list[_Row], msgspec.Meta(min_length=SIDE, max_length=SIDE)]


class _OneImage(msgspec.Struct, forbid_unknown_fields=True):
    images: _Image
    model: str | None = None


class _Images(msgspec.Struct, forbid_unknown_fields=True):
    images: Annotated[list[_Image], msgspec.Meta(min_length=1)]
    model: str | None = None


class BatchPValues:
    """The p-values of a batch's images, computed for all of them when the first request reads them.

    One computation for a batch costs a tenth of one for each image. Requests of the Open Inference
    Protocol in the same batch read none. It is sliced and converted like an array, float64 [N].
    """

    def __init__(self, detector: Guard, images_NHW: Array) -> None:
        """Take the detector and the batch's images, uint8 [N, 28, 28]."""
        self._detector, self._images_NHW = detector, images_NHW
        self._values_N: Array | None = None

    def __getitem__(self, rows: slice) -> "_SlicedPValues":
        return _SlicedPValues(self, rows)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> Array:
        if self._values_N is None:
            self._values_N = self._detector.p_values(self._images_NHW)
        return self._values_N


class _SlicedPValues:
    """The p-values of one request's images."""

    def __init__(self, batch: BatchPValues, rows: slice) -> None:
        self._batch, self._rows = batch, rows

    def __array__(self, dtype: object = None, copy: bool | None = None) -> Array:
        return self._batch.__array__()[self._rows]


class DigitsAdapter(TensorsAdapter):
    """Adds pictures of digits and labels to the task "tensors"."""

    task = "digits"
    endpoints: tuple[str, ...] = ("predict", "predict_image")

    def __init__(self, manifest: Manifest, detector: Guard | None) -> None:
        """Check that the manifest's tensors fit the task.

        Args:
            manifest: The model's.
            detector: Finds images that are unlike the training images, if the bundle has it.

        Raises:
            BundleError: The tensors do not fit.
        """
        if not has_digits_form(manifest):
            raise BundleError(
                f"{manifest.name} has the task digits, {len(manifest.labels)} labels, the inputs "
                f"{', '.join(map(str, manifest.inputs))} and the outputs "
                f"{', '.join(map(str, manifest.outputs))}; expected {IMAGES_SPEC} alone, and an "
                f"output {PROBABILITIES} of floating-point numbers [-1,number of labels]"
            )
        super().__init__(manifest)
        self._detector = detector

    def decode_image(self, content: bytes, max_pixels: int) -> Arrays:
        """Decode a picture of a digit and convert it to the form of MNIST's images."""
        return {IMAGES: decode_digit(content, max_pixels)[None]}

    def extend(self, predict: Predict) -> Predict:
        """Add the p-values of the images to the outputs; they are computed when they are read."""
        detector = self._detector
        if detector is None:
            return predict

        def predict_with_p_values(inputs: Arrays) -> Arrays:
            p_values = BatchPValues(detector, inputs[IMAGES])
            return predict(inputs) | {P_VALUES: cast("Array", p_values)}

        return predict_with_p_values

    def encode(self, outputs: Arrays, inputs: Arrays) -> dict[str, object]:
        """The outputs as nested lists, and the predictions of ``encode_predictions``."""
        return super().encode(outputs, inputs) | self.encode_predictions(
            outputs, inputs, show=False
        )

    def encode_predictions(
        self, outputs: Arrays, inputs: Arrays, *, show: bool
    ) -> dict[str, object]:
        """The fields of an answer of ``/predict``, ready for JSON.

        Args:
            outputs: The model's.
            inputs: What the model was given.
            show: Add the first image as the model read it.

        Raises:
            NonFiniteOutputError: A probability is NaN or infinite.
        """
        images_NHW = inputs[IMAGES]
        verdicts = None
        if self._detector is not None:
            p_values = outputs.get(P_VALUES)
            known_N = None if p_values is None else np.asarray(p_values)
            verdicts = self._detector.judge(images_NHW, known_N)
        found: dict[str, object] = {
            "predictions": describe_predictions(
                self._manifest.labels, outputs[PROBABILITIES], verdicts
            )
        }
        return found | {"image": images_NHW[0].tolist()} if show else found


def has_digits_form(manifest: Manifest) -> bool:
    """Do the tensors have the form of the task "digits"?"""
    if [(s.name, s.datatype, s.shape) for s in manifest.inputs] != [
        (IMAGES_SPEC.name, IMAGES_SPEC.datatype, IMAGES_SPEC.shape)
    ]:
        return False
    labels = len(manifest.labels)
    return labels > 0 and any(
        spec.name == PROBABILITIES and spec.shape == (-1, labels) and spec.dtype.kind == "f"
        for spec in manifest.outputs
    )


def decode_digit(content: bytes, max_pixels: int) -> Array:
    """Decode an uploaded picture of a digit.

    Args:
        content: The bytes of a PNG or JPEG file.
        max_pixels: The largest width x height.

    Returns:
        uint8 [28, 28], 0 = ground, 255 = ink.

    Raises:
        InvalidInputError: The file is not a PNG or JPEG, or is damaged.
        NothingDrawnError: There is no digit on the picture.
        PayloadTooLargeError: The picture has more pixels than allowed.
    """
    return _convert_upright(decode_picture(content, max_pixels, draft_side=JPEG_SIDE))


def convert_picture(image: Image.Image) -> Array:
    """Convert a decoded picture of any mode and size to the form of MNIST's images.

    Returns:
        uint8 [28, 28], 0 = ground, 255 = ink.

    Raises:
        NothingDrawnError: There is no digit on the picture.
    """
    return _convert_upright(turn_upright(image.copy()))


def _convert_upright(image: Image.Image) -> Array:
    return convert_to_mnist_form(convert_to_grey(image))


def decode_predict(body: bytes, limits: Limits) -> PredictRequest:
    """Decode the body of ``POST /predict``.

    Args:
        body: The bytes that the client sent.
        limits: The limits of one request.

    Raises:
        InvalidInputError: The body is not JSON of this form.
        PayloadTooLargeError: There are more images than allowed.
    """
    quick = _decode_quickly(body, limits)
    if quick is not None:
        return quick
    fields = _fields(body, limits, ["images", "model"])
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidInputError(f"model is {json_kind(model)}; expected a model's name as a string")
    return PredictRequest(_to_images(fields["images"], limits.samples), model)


def decode_one_image(body: bytes, limits: Limits) -> Array:
    """Decode the body of ``POST /models/NAME/features``: uint8 [1, 28, 28].

    Args:
        body: The bytes that the client sent.
        limits: The limits of one request.

    Raises:
        InvalidInputError: The body is not JSON of this form, or holds several images.
        PayloadTooLargeError: There are more images than any request may hold.
    """
    images_NHW = _to_images(_fields(body, limits, ["images"])["images"], limits.samples)
    if len(images_NHW) > 1:
        raise InvalidInputError(
            f"{len(images_NHW):,} images; feature maps are shown of one: send one a request"
        )
    return images_NHW


def describe_predictions(
    labels: Sequence[str], probabilities_NK: Array, verdicts: Sequence[Verdict] | None
) -> list[dict[str, object]]:
    """The prediction for each image, in order.

    Args:
        labels: The classes' names.
        probabilities_NK: The model's.
        verdicts: Whether each image is like the training images; None if the bundle has no
            detector.

    Returns:
        The likeliest label, all probabilities, and the verdict as "guard".

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
    """Decode a body without faults by its types; None leaves it to code that words every error."""
    try:
        found: _Images | _OneImage = msgspec.json.decode(body, type=_Images)
    except ValueError:
        try:
            found = msgspec.json.decode(body, type=_OneImage)
        except ValueError:
            return None
    # A repeated key would need another colon.
    if body.count(b":") != 1 + (found.model is not None):
        return None
    images = found.images if isinstance(found, _Images) else [found.images]
    if len(images) > limits.samples:
        return None
    try:
        pixels = b"".join([bytes(row) for image in images for row in image])
    except ValueError:  # beyond 0 to 255
        return None
    return PredictRequest(np.frombuffer(pixels, np.uint8).reshape(-1, SIDE, SIDE), found.model)


def _fields(body: bytes, limits: Limits, known: list[str]) -> dict[str, object]:
    """The body's fields, of which "images" is required."""
    fields = parse_json(body, EXAMPLE, limits.json_depth)
    if not isinstance(fields, dict):
        raise InvalidInputError(
            f"the body is {json_kind(fields)}; expected an object with the field images: {EXPECTED}"
        )
    if unknown := sorted(set(fields) - set(known)):
        raise InvalidInputError(
            f"unknown field {quote_value(unknown[0])}; known: {', '.join(known)}"
        )
    if "images" not in fields:
        raise InvalidInputError(f"the field images is missing; expected {EXPECTED}")
    return fields


def _to_images(value: object, max_images: int) -> Array:
    """Nested lists as uint8 [N, 28, 28]; every value is checked before it is converted."""
    if not isinstance(value, list):
        raise InvalidInputError(f"images is {json_kind(value)}; expected {EXPECTED}")
    if not value:
        raise InvalidInputError(f"images is an empty list; expected {EXPECTED}")
    first = value[0]
    is_single = not (isinstance(first, list) and first and isinstance(first[0], list))
    images = [value] if is_single else value
    if len(images) > max_images:
        raise PayloadTooLargeError(
            f"{len(images):,} images in one request, at most {max_images:,} are taken; send several"
        )
    pixels = b"".join(
        _row(row, f"images[{y}]" if is_single else f"images[{i}][{y}]")
        for i, image in enumerate(images)
        for y, row in enumerate(_rows(image, "images" if is_single else f"images[{i}]"))
    )
    return np.frombuffer(pixels, np.uint8).reshape(-1, SIDE, SIDE)


def _rows(image: object, where: str) -> list[object]:
    if not isinstance(image, list) or len(image) != SIDE:
        raise InvalidInputError(f"{where} is {_extent(image)}; expected {EXPECTED}")
    return image


def _row(row: object, where: str) -> bytes:
    if not isinstance(row, list) or len(row) != SIDE:
        raise InvalidInputError(f"{where} is {_extent(row)}; expected {EXPECTED}")
    if set(map(type, row)) != {int}:  # bool is a subclass of int
        x = next(x for x, pixel in enumerate(row) if type(pixel) is not int)
        scaled = type(row[x]) is float and 0 <= row[x] <= 1
        hint = " (pixels in 0..1 were scaled already: send the raw ones)" if scaled else ""
        raise InvalidInputError(f"{where}[{x}] is {json_value(row[x])}{hint}; expected {EXPECTED}")
    try:
        return bytes(row)
    except ValueError:
        x = next(x for x, pixel in enumerate(row) if not 0 <= pixel <= PIXEL_MAX)
        raise InvalidInputError(
            f"{where}[{x}] is {json_value(row[x])}; expected an integer 0 to {PIXEL_MAX}"
        ) from None


def _extent(value: object) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else json_kind(value)
