"""Chooses a model's adapter by the task in its manifest."""

from export.bundle.manifest import Manifest
from export.mnist.ood_detector import OodDetector
from service.adapters.digits import DigitsAdapter, has_digits_form
from service.adapters.image_classification import ImageClassificationAdapter
from service.adapters.tensors import TensorsAdapter


def choose_adapter(manifest: Manifest, detector: OodDetector | None) -> TensorsAdapter:
    """Return the adapter for a model's task.

    Args:
        manifest: The model's manifest. If it names no task, as in older bundles, the task is
            "digits" if the tensors have the form of that task, otherwise "tensors".
        detector: The out-of-distribution detector, for the task "digits".

    Raises:
        BundleError: The tensors do not fit the task that the manifest gives.
    """
    if manifest.task == "digits" or (manifest.task is None and has_digits_form(manifest)):
        return DigitsAdapter(manifest, detector)
    if manifest.task == "image-classification":
        return ImageClassificationAdapter(manifest)
    return TensorsAdapter(manifest)
