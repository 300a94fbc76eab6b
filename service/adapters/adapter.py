"""The choice of a model's adapter by the task in its manifest."""

from export.bundle.manifest import Manifest
from export.mnist.ood_detector import OodDetector
from service.adapters.digits import DigitsAdapter, has_digits_form
from service.adapters.image_classification import ImageClassificationAdapter
from service.adapters.tensors import TensorsAdapter


def choose_adapter(manifest: Manifest, detector: OodDetector | None) -> TensorsAdapter:
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
