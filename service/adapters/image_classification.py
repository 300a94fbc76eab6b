"""The task "image-classification": pictures of any size in, labels with probabilities out.

Pictures are resized, cropped and normalized as specified by the manifest's ``preprocessing``, with
the arithmetic of torchvision's ``Resize``, ``CenterCrop`` and ``Normalize`` on Pillow images.
"""

import numpy as np
from PIL import Image

from export.bundle.manifest import BundleError, ImagePreprocessing, Manifest, TensorSpec
from export.bundle.metrics import Array, Arrays
from service.adapters.pictures import convert_to_grey, convert_to_rgb, decode_picture
from service.adapters.tensors import TensorsAdapter
from service.protocol.errors import InvalidInputError, PayloadTooLargeError

DATATYPES = ("UINT8", "FP16", "FP32")


class ImageClassificationAdapter(TensorsAdapter):
    """Adds pictures and labels to the task "tensors"."""

    task = "image-classification"
    endpoints: tuple[str, ...] = ("predict", "predict_image")

    def __init__(self, manifest: Manifest) -> None:
        """Check that the manifest's tensors fit the task.

        Raises:
            BundleError: They do not fit; says what the manifest has and what is expected.
        """
        super().__init__(manifest)
        if manifest.preprocessing is None:
            raise BundleError(
                f"{manifest.name} has the task image-classification but no preprocessing; "
                "expected the steps that convert an image to its input"
            )
        self._preprocessing: ImagePreprocessing = manifest.preprocessing
        self._input = _check_input(manifest, manifest.preprocessing)
        self._scores = find_scores(manifest)

    def decode_image(self, content: bytes, max_pixels: int) -> Arrays:
        """Decode, resize, crop and normalize a picture to the input of one sample."""
        how = self._preprocessing
        convert = convert_to_grey if how.channels == 1 else convert_to_rgb
        picture = convert(decode_picture(content, max_pixels))
        pixels = np.asarray(_crop(_resize(picture, how, max_pixels), how.crop))
        values_HWC = _normalize(pixels.reshape(*how.crop, how.channels), how, self._input)
        if how.layout == "NCHW":
            sample = values_HWC.transpose(2, 0, 1)
        else:
            sample = values_HWC.reshape(how.sample_shape)
        return {self._input.name: np.ascontiguousarray(sample)[None]}

    def encode(self, outputs: Arrays, inputs: Arrays) -> dict[str, object]:
        """Return the outputs as nested lists, and each sample's label with all probabilities."""
        found = super().encode(outputs, inputs)
        probabilities_NK = to_probabilities(outputs[self._scores.name], self._scores)
        best = probabilities_NK.argmax(axis=1).tolist()
        predictions = [
            {"label": self._manifest.labels[index], "probabilities": row}
            for index, row in zip(best, probabilities_NK.tolist(), strict=True)
        ]
        return found | {"predictions": predictions}


def find_scores(manifest: Manifest) -> TensorSpec:
    """Return the output with one score per label: probabilities if there are any, else logits.

    Raises:
        BundleError: There is no such output.
    """
    labels = len(manifest.labels)
    for kind in ("probabilities", "logits"):
        for spec in manifest.outputs:
            is_float = spec.dtype.kind == "f"
            if spec.kind == kind and is_float and spec.shape == (-1, labels) and labels:
                return spec
    raise BundleError(
        f"{manifest.name} has the task {manifest.task}, {labels} labels and the outputs "
        f"{', '.join(f'{spec} ({spec.kind})' for spec in manifest.outputs)}; expected an output "
        "of floating-point probabilities or logits [-1,number of labels]"
    )


def to_probabilities(scores_NK: Array, spec: TensorSpec) -> Array:
    """Return probabilities [N, K]: the output itself, or the softmax of its logits in float64."""
    if spec.kind == "probabilities":
        return scores_NK
    logits_NK = scores_NK.astype(np.float64)
    powers_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    return np.asarray(powers_NK / powers_NK.sum(axis=1, keepdims=True))


def _check_input(manifest: Manifest, preprocessing: ImagePreprocessing) -> TensorSpec:
    """Return the model's only input, or raise ``BundleError`` if the preprocessing does not fit."""
    spec = manifest.inputs[0]
    bounds = spec.sample_bounds
    sizes = preprocessing.sample_shape
    fits = (
        len(manifest.inputs) == 1
        and spec.datatype in DATATYPES
        and len(bounds) == len(sizes)
        and all(low <= size <= high for size, (low, high) in zip(sizes, bounds, strict=True))
    )
    if not fits:
        raise BundleError(
            f"{manifest.name} has the task image-classification and the inputs "
            f"{', '.join(map(str, manifest.inputs))}; its preprocessing needs one input, "
            f"{' or '.join(DATATYPES)} [-1,{','.join(map(str, sizes))}]"
        )
    changes = (preprocessing.scale, *preprocessing.mean, *preprocessing.std)
    unchanged = (1, *[0] * preprocessing.channels, *[1] * preprocessing.channels)
    if spec.datatype == "UINT8" and changes != unchanged:
        raise BundleError(
            f"{manifest.name} has the input {spec} and preprocessing that normalizes; expected "
            "scale 1, mean 0 and std 1 for UINT8"
        )
    return spec


def _resize(
    picture: Image.Image, preprocessing: ImagePreprocessing, max_pixels: int
) -> Image.Image:
    """Scale the picture so that its shorter side has the length in the preprocessing."""
    if preprocessing.resize is None:
        return picture
    shorter, longer = sorted(picture.size)
    length = int(preprocessing.resize * longer / shorter)
    if preprocessing.resize * length > max(max_pixels, preprocessing.resize**2):
        raise PayloadTooLargeError(
            f"the image has {picture.width} x {picture.height} pixels; resized to a shorter side "
            f"of {preprocessing.resize} it would have more than {max_pixels:,}; send a less "
            "elongated one"
        )
    is_upright = picture.width <= picture.height
    size = (preprocessing.resize, length) if is_upright else (length, preprocessing.resize)
    if size == picture.size:
        return picture
    return picture.resize(size, Image.Resampling[preprocessing.interpolation.upper()])


def _crop(picture: Image.Image, crop: tuple[int, int]) -> Image.Image:
    """Crop the centre of the picture."""
    height, width = crop
    if picture.height < height or picture.width < width:
        raise InvalidInputError(
            f"the image has {picture.width} x {picture.height} pixels; expected at least "
            f"{width} x {height}; send a larger one"
        )
    top, left = round((picture.height - height) / 2), round((picture.width - width) / 2)
    return picture.crop((left, top, left + width, top + height))


def _normalize(pixels_HWC: Array, preprocessing: ImagePreprocessing, spec: TensorSpec) -> Array:
    """Compute (pixels * scale - mean) / std in float32, and convert to the input's dtype."""
    if spec.datatype == "UINT8":
        return pixels_HWC
    scaled_HWC = pixels_HWC.astype(np.float32) * np.float32(preprocessing.scale)
    mean_C, std_C = (np.array(v, np.float32) for v in (preprocessing.mean, preprocessing.std))
    return ((scaled_HWC - mean_C) / std_C).astype(spec.dtype)
