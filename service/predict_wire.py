"""The wire format of ``/predict``: JSON to arrays and back, every rule on the way in.

``/models/NAME/features`` reads the same images, one of them.

in   {"images": <28x28 or Nx28x28 integers 0..255>, "model": "cnn"}      (model: optional)
out  {"model": "cnn", "version": "...", "device": "cpu", "provider": "CPUExecutionProvider",
      "predictions": [{"label": "7", "probabilities": [10 numbers], "guard":
                       {"usual": true, "p_value": 0.42, "reason": null}}, ...]}
err  {"error": "what came, what was expected, what to do"}
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from export.guard import Verdict
from export.parity.metrics import Array
from service.errors import InvalidInputError, PayloadTooLargeError, shown
from service.settings import Limits
from service.strict_json import json_kind, json_value, parse_json

EXPECTED = "a 28x28 list of integers 0 to 255, or a list of such (0 = ground, 255 = ink)"
EXAMPLE = f'JSON: {{"images": {EXPECTED}}}'
SIDE = 28
PIXEL_MAX = 255


class PredictRequest(BaseModel):
    """A checked request; ``images`` is uint8 [N, 28, 28], N >= 1."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    images: np.ndarray
    model: str | None


def parse_predict(body: bytes, limits: Limits) -> PredictRequest:
    """Read the body of ``POST /predict``.

    Args:
        body: What the client sent.
        limits: What one request may hold.

    Raises:
        InvalidInputError: Says what came and what was expected.
        PayloadTooLargeError: More images than allowed.
    """
    fields = _fields(body, limits, ["images", "model"])
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidInputError(f"model is {json_kind(model)}; expected a model's name as a string")
    return PredictRequest(images=_to_images(fields["images"], limits.samples), model=model)


def parse_one_image(body: bytes, limits: Limits) -> Array:
    """Read the body of ``POST /models/NAME/features``: uint8 [1, 28, 28].

    Args:
        body: What the client sent.
        limits: What one request may hold.

    Raises:
        InvalidInputError: Says what came and what was expected.
        PayloadTooLargeError: More images than any request may hold.
    """
    images_NHW = _to_images(_fields(body, limits, ["images"])["images"], limits.samples)
    if len(images_NHW) > 1:
        raise InvalidInputError(
            f"{len(images_NHW):,} images; feature maps are shown of one: send one a request"
        )
    return images_NHW


def predictions(
    labels: Sequence[str], probabilities_NK: Array, verdicts: Sequence[Verdict] | None
) -> list[dict[str, object]]:
    """What a client gets for each image, in order.

    Args:
        labels: The classes' names.
        probabilities_NK: The model's.
        verdicts: Whether each image looks like those that the model learned from; None if it has
            no guard.

    Returns:
        The likeliest label, all probabilities, and the guard's verdict.
    """
    rows, best = probabilities_NK.tolist(), probabilities_NK.argmax(axis=1).tolist()
    guards = [None] * len(rows) if verdicts is None else [found._asdict() for found in verdicts]
    return [
        {"label": labels[i], "probabilities": row, "guard": guard}
        for i, row, guard in zip(best, rows, guards, strict=True)
    ]


def _fields(body: bytes, limits: Limits, known: list[str]) -> dict[str, object]:
    """The body's fields, images among them."""
    fields = parse_json(body, EXAMPLE, limits.json_depth)
    if not isinstance(fields, dict):
        raise InvalidInputError(
            f"the body is {json_kind(fields)}; expected an object with the field images: {EXPECTED}"
        )
    if unknown := sorted(set(fields) - set(known)):
        raise InvalidInputError(f"unknown field {shown(unknown[0])}; known: {', '.join(known)}")
    if "images" not in fields:
        raise InvalidInputError(f"the field images is missing; expected {EXPECTED}")
    return fields


def _to_images(value: object, max_images: int) -> Array:
    """Nested lists to uint8 [N, 28, 28], looking at every value before anything is converted."""
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
    if set(map(type, row)) != {int}:  # true is an int to Python, but no pixel
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
