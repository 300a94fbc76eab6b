"""The task "tensors": JSON lists in, JSON lists out, for any model."""

import math
from typing import Any

import msgspec

from export.bundle.golden import Predict
from export.bundle.manifest import Manifest, TensorSpec
from export.bundle.metrics import Arrays
from service.protocol.errors import InvalidInputError, UnsupportedMediaError, quote_value
from service.protocol.json_values import convert_json, json_kind, parse_json
from service.protocol.oip import to_json_numbers
from service.protocol.tensors import InputTensor, read_inputs
from service.settings import Limits

EXPECTED = '{"inputs": {"NAME": list of numbers, nested as the input\'s shape or flat}}'


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    inputs: dict[str, Any] | list[Any]


class TensorsAdapter:
    """Converts JSON to a model's inputs, and its outputs to JSON; the base of every adapter.

    Attributes:
        task: The name of the task in manifests.
        endpoints: The task's endpoints besides "infer", as labelled in the metrics.
    """

    task = "tensors"
    endpoints: tuple[str, ...] = ("predict",)

    def __init__(self, manifest: Manifest) -> None:
        """Keep the model's manifest."""
        self._manifest = manifest

    def decode_json(self, body: bytes, limits: Limits) -> Arrays:
        """Decode {"inputs": {"NAME": list, ...}}, or {"inputs": list} for the only input.

        A list is flat, or nested like the input's shape including the batch axis.

        Raises:
            InvalidInputError: The body is not JSON of this form, or does not fit the model.
            PayloadTooLargeError: There are more samples than allowed.
        """
        value = parse_json(body, EXPECTED, limits.json_depth)
        inputs = convert_json(value, _Request, EXPECTED).inputs
        if isinstance(inputs, list):
            if len(self._manifest.inputs) > 1:
                raise InvalidInputError(
                    "inputs is a list; expected an object with a list for each of "
                    f"{', '.join(map(str, self._manifest.inputs))}"
                )
            inputs = {self._manifest.inputs[0].name: inputs}
        given = [self._describe(name, values) for name, values in inputs.items()]
        return read_inputs(given, memoryview(b""), self._manifest, limits.samples)

    def decode_image(self, content: bytes, max_pixels: int) -> Arrays:
        """Decode an uploaded PNG or JPEG file as one sample.

        Args:
            content: The file's bytes.
            max_pixels: The largest width x height.

        Raises:
            UnsupportedMediaError: The task has no images.
            InvalidInputError: The file is not a PNG or JPEG, or is damaged.
            PayloadTooLargeError: The picture has more pixels than allowed.
            NothingDrawnError: There is no digit on the picture, for the task "digits".
        """
        name = self._manifest.name
        raise UnsupportedMediaError(
            f"{name} takes tensors, not images; send them as JSON to /models/{name}/predict or "
            f"/v2/models/{name}/infer"
        )

    def extend(self, predict: Predict) -> Predict:
        """Return a function that runs a batch like ``predict``, with outputs that ``encode`` reads.

        This implementation adds no outputs to the model's own.
        """
        return predict

    def encode(self, outputs: Arrays, inputs: Arrays) -> dict[str, object]:
        """Return the fields of a response to ``decode_json`` or ``decode_image``, ready for JSON.

        Returns:
            "outputs": nested lists by name, in the manifest's order; and "predictions" for tasks
            with labels.

        Raises:
            NonFiniteOutputError: An output holds NaN or infinity.
        """
        names = [spec.name for spec in self._manifest.outputs]
        return {"outputs": {name: to_json_numbers(name, outputs[name]) for name in names}}

    def _describe(self, name: str, values: object) -> InputTensor:
        """Describe an input as in the Open Inference Protocol."""
        if not isinstance(values, list):
            raise InvalidInputError(
                f"the input {quote_value(name)} is {json_kind(values)}; expected a list"
            )
        spec = next((spec for spec in self._manifest.inputs if spec.name == name), None)
        if spec is None:  # ``read_inputs`` refuses the name
            return InputTensor(name, [], "", {}, values)
        return InputTensor(name, _find_shape(values, spec), spec.datatype, {}, values)


def _find_shape(values: list[Any], spec: TensorSpec) -> list[int]:
    """Infer the shape of a nested list from its first elements, of a flat list from its length."""
    shape: list[int] = []
    level: object = values
    while isinstance(level, list):
        shape.append(len(level))
        level = level[0] if level else None
    if len(shape) > 1 or len(spec.shape) == 1 or spec.bounds:
        return shape
    size = math.prod(spec.shape[1:])
    count, rest = divmod(len(values), size)
    if rest or not count:
        raise InvalidInputError(
            f"{spec.name} has {len(values)} values; expected {size} for each sample of {spec}"
        )
    return [count, *spec.shape[1:]]
