"""The wire format of ``/predict``: JSON to arrays and back, every rule on the way in.

in   {"images": <28x28 or Nx28x28 integers 0..255>, "model": "cnn"}      (model: optional)
out  {"model": "cnn", "version": "...", "device": "cpu", "provider": "CPUExecutionProvider",
      "predictions": [{"label": "7", "probabilities": [10 numbers]}, ...]}
err  {"error": "what came, what was expected, what to do"}
"""

import json
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from pydantic import BaseModel, ConfigDict

from export.parity.metrics import Array
from service.errors import InvalidInputError, PayloadTooLargeError

EXPECTED = "a 28x28 list of integers 0 to 255, or a list of such (0 = ground, 255 = ink)"
FIELDS = {"images", "model"}


class PredictRequest(BaseModel):
    """A checked request; ``images`` is uint8 [N, 28, 28], N >= 1."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    images: np.ndarray
    model: str | None


def parse_predict(body: bytes, max_images: int) -> PredictRequest:
    """Read the body of ``POST /predict``.

    Args:
        body: What the client sent.
        max_images: Images that one request may hold.

    Raises:
        InvalidInputError: Says what came and what was expected.
        PayloadTooLargeError: More images than allowed.
    """
    fields = _parse_json(body)
    if not isinstance(fields, dict):
        raise InvalidInputError(
            f"the body is {_kind(fields)}; expected an object with the field images: {EXPECTED}"
        )
    if unknown := sorted(set(fields) - FIELDS):
        raise InvalidInputError(f"unknown field {unknown[0]!r}; known: images, model")
    if "images" not in fields:
        raise InvalidInputError(f"the field images is missing; expected {EXPECTED}")
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidInputError(f"model is {_kind(model)}; expected a model's name as a string")
    return PredictRequest(images=_to_images(fields["images"], max_images), model=model)


def predictions(labels: Sequence[str], probabilities_NK: Array) -> list[dict[str, object]]:
    """What a client gets for each image: the likeliest label and all probabilities, in order."""
    rows = probabilities_NK.tolist()
    best = probabilities_NK.argmax(axis=1)
    return [{"label": labels[i], "probabilities": row} for i, row in zip(best, rows, strict=True)]


def _parse_json(body: bytes) -> object:
    if not body:
        raise InvalidInputError('the body is empty; expected JSON: {"images": ...}')
    try:
        # Decoded here: json would guess at UTF-16 and UTF-32, which JSON on the wire is not.
        return json.loads(body.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"the body is not JSON: it is no UTF-8 text (byte {error.start}); image files go to "
            "/predict/image"
        ) from error
    except json.JSONDecodeError as error:
        raise InvalidInputError(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except RecursionError as error:
        raise InvalidInputError("the body's lists are nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise InvalidInputError(f"the body holds a number that cannot be read: {error}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidInputError(f"the body holds {name}, which is not JSON; expected {EXPECTED}")


def _to_images(value: object, max_images: int) -> Array:
    if not isinstance(value, list):
        raise InvalidInputError(f"images is {_kind(value)}; expected {EXPECTED}")
    if not value:
        raise InvalidInputError(f"images is an empty list; expected {EXPECTED}")
    try:
        array = np.array(value)
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(f"images is ragged or too deep; expected {EXPECTED}") from error
    if array.ndim not in (2, 3) or array.shape[-2:] != (28, 28):
        shape = " x ".join(map(str, array.shape))
        raise InvalidInputError(f"images has the shape {shape}; expected {EXPECTED}")
    if array.dtype.kind not in "iu":
        _refuse_values(array)
    images = array.reshape(-1, 28, 28)
    if len(images) > max_images:
        raise PayloadTooLargeError(
            f"{len(images):,} images in one request, at most {max_images:,} are taken; send several"
        )
    outside = (images < 0) | (images > 255)  # noqa: PLR2004 - a byte
    if outside.any():
        i, y, x = (int(axis[0]) for axis in outside.nonzero())
        raise InvalidInputError(
            f"images[{i}][{y}][{x}] is {images[i, y, x]}; expected an integer 0 to 255"
        )
    return images.astype(np.uint8)


def _refuse_values(array: Array) -> NoReturn:
    if array.dtype.kind == "f":
        flat = array.reshape(-1)
        scaled = bool((flat >= 0).all() and (flat <= 1).all())
        hint = " (0..1 looks scaled already: send the raw pixels)" if scaled else ""
        raise InvalidInputError(
            f"images holds {flat[0]}, not an integer{hint}; expected {EXPECTED}"
        )
    for item in array.reshape(-1).tolist():
        if type(item) not in (int, float):
            raise InvalidInputError(f"images holds {_kind(item)}; expected {EXPECTED}")
    raise InvalidInputError(f"images holds a number far out of range; expected {EXPECTED}")


def _kind(value: object) -> str:
    """A JSON value's kind in JSON's own words."""
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return kinds.get(type(value), "a value of another kind")
