"""The interface between endpoints and tasks, and the choice of a model's adapter."""

from typing import Protocol

from export.bundle.golden import Predict
from export.bundle.manifest import Manifest
from export.bundle.metrics import Arrays
from export.mnist.ood_detector import OodDetector
from service.adapters.digits import DigitsAdapter, has_digits_form
from service.adapters.image_classification import ImageClassificationAdapter
from service.adapters.tensors import TensorsAdapter
from service.settings import Limits


class Adapter(Protocol):
    """Converts a task's requests to a model's inputs, and a model's outputs to answers.

    Attributes:
        task: As in the manifest.
        endpoints: The endpoints that the task has besides "infer", as labels of the metrics.
    """

    task: str
    endpoints: tuple[str, ...]

    def decode_json(self, body: bytes, limits: Limits) -> Arrays:
        """Decode the body of ``POST /models/NAME/predict``.

        Args:
            body: JSON: {"inputs": {"NAME": list, ...}}, or {"inputs": list} for the only input. A
                list is nested as the input's shape, the batch axis included, or flat.
            limits: The limits of one request.

        Raises:
            InvalidInputError: The body is not JSON of this form, or does not fit the model.
            PayloadTooLargeError: There are more samples than allowed.
        """
        ...

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
        ...

    def extend(self, predict: Predict) -> Predict:
        """Return a function that runs a batch like ``predict``, with outputs that ``encode`` reads.

        Args:
            predict: Runs one batch of the model.
        """
        ...

    def encode(self, outputs: Arrays, inputs: Arrays) -> dict[str, object]:
        """The fields of an answer to ``decode_json`` or ``decode_image``, ready for JSON.

        Args:
            outputs: The model's, by name.
            inputs: What the model was given.

        Returns:
            "outputs", nested lists by name, and "predictions" for tasks with labels.

        Raises:
            NonFiniteOutputError: An output holds NaN or infinity.
        """
        ...


def choose_adapter(manifest: Manifest, detector: OodDetector | None) -> Adapter:
    """The adapter for a model's task.

    Args:
        manifest: The model's. Without a task, which older bundles lack, the task is "digits" if
            the tensors have the form of that task, else "tensors".
        detector: Finds images that are unlike the training images, for the task "digits".

    Raises:
        BundleError: The tensors do not fit the task that the manifest gives.
    """
    if manifest.task == "digits" or (manifest.task is None and has_digits_form(manifest)):
        return DigitsAdapter(manifest, detector)
    if manifest.task == "image-classification":
        return ImageClassificationAdapter(manifest)
    return TensorsAdapter(manifest)
