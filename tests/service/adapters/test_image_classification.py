"""Images are preprocessed as the manifest records, and scores are returned with labels."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.bundle.manifest import (
    DTYPES,
    BundleError,
    Datatype,
    ImagePreprocessing,
    Manifest,
    TensorSpec,
)
from export.bundle.store import Bundle
from service.adapters.adapter import choose_adapter
from service.adapters.tensors import TensorsAdapter
from service.protocol.errors import InvalidInputError, NonFiniteOutputError, PayloadTooLargeError
from tests.tiny import SERVED_BUNDLES

MANIFEST = Bundle.open(SERVED_BUNDLES / "cnn").manifest
MAX_PIXELS = 1_000_000
IMAGENET: dict[str, Any] = {
    "resize": 36,
    "crop": (32, 32),
    "channels": 3,
    "layout": "NCHW",
    "scale": 1 / 255,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
PLAIN: dict[str, Any] = IMAGENET | {"scale": 1, "mean": (0, 0, 0), "std": (1, 1, 1)}
GREY: dict[str, Any] = PLAIN | {"channels": 1, "mean": (0,), "std": (1,)}


def _classifier(
    recorded: dict[str, Any] = IMAGENET, datatype: str = "FP32", **changes: Any
) -> TensorsAdapter:
    return choose_adapter(_manifest(recorded, datatype, **changes), None)


def _manifest(recorded: dict[str, Any], datatype: str = "FP32", **changes: Any) -> Manifest:
    """A classifier of two labels whose input has the preprocessing's shape."""
    preprocessing = ImagePreprocessing.model_validate(recorded)
    fields: dict[str, object] = {
        "task": "image-classification",
        "preprocessing": preprocessing,
        "labels": ("cat", "dog"),
        "inputs": (_spec("pixels", datatype, *preprocessing.sample_shape),),
        "outputs": (_spec("logits", "FP32", 2, kind="logits"),),
    }
    return MANIFEST.model_copy(update=fields | changes)


def _spec(name: str, datatype: str, *shape: int, **fields: object) -> TensorSpec:
    return TensorSpec.model_validate(
        {"name": name, "datatype": datatype, "shape": (-1, *shape), **fields}
    )


def _picture(width: int, height: int) -> Image.Image:
    """An image of smooth random colours."""
    generator = np.random.default_rng(width + height)
    coarse = generator.integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def _file(image: Image.Image, format_: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(36, 36), (100, 61), (61, 100), (37, 250), (20, 30)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_the_arithmetic_is_torchvisions(size: tuple[int, int], interpolation: str) -> None:
    """The result equals Resize, CenterCrop and Normalize on a Pillow image."""
    transforms = pytest.importorskip("torchvision.transforms")
    picture = _picture(*size)
    expected = transforms.Compose(
        [
            transforms.Resize(
                IMAGENET["resize"], getattr(transforms.InterpolationMode, interpolation.upper())
            ),
            transforms.CenterCrop(IMAGENET["crop"]),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET["mean"], IMAGENET["std"]),
        ]
    )(picture).numpy()
    adapter = _classifier(IMAGENET | {"interpolation": interpolation})
    found = adapter.decode_image(_file(picture), MAX_PIXELS)["pixels"]
    assert found.shape == (1, 3, 32, 32)
    assert found.dtype == np.float32
    assert np.abs(found[0] - expected).max() < 1e-6  # scale is a product here, a quotient there


@pytest.mark.parametrize("datatype", ["UINT8", "FP16", "FP32"])
def test_layouts_hold_the_same_pixels(datatype: Datatype) -> None:
    """In every datatype, NCHW and NHWC differ only in the order of axes."""
    content = _file(_picture(50, 40))
    first = _classifier(PLAIN, datatype).decode_image(content, MAX_PIXELS)["pixels"]
    last = _classifier(PLAIN | {"layout": "NHWC"}, datatype).decode_image(content, MAX_PIXELS)
    assert first.dtype == last["pixels"].dtype == DTYPES[datatype]
    assert last["pixels"].shape == (1, 32, 32, 3)
    assert np.array_equal(first.transpose(0, 2, 3, 1), last["pixels"])


@pytest.mark.parametrize(
    ("layout", "shape"), [("NHW", (32, 32)), ("NCHW", (1, 32, 32)), ("NHWC", (32, 32, 1))]
)
def test_grey_classifiers_get_grey_pictures(layout: str, shape: tuple[int, ...]) -> None:
    """Greyscale input has one channel, with or without an axis for it."""
    picture = _picture(36, 36)
    adapter = _classifier(GREY | {"layout": layout}, "UINT8")
    found = adapter.decode_image(_file(picture), MAX_PIXELS)["pixels"]
    grey = np.asarray(picture.convert("L"))[2:34, 2:34]
    assert np.array_equal(found[0], grey.reshape(shape))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    """A white picture is white in any colour mode, and transparent areas are white."""
    picture = Image.new("RGB", (36, 36), "white").convert(mode)
    format_ = "JPEG" if mode == "CMYK" else "PNG"
    found = _classifier(PLAIN, "UINT8").decode_image(_file(picture, format_), MAX_PIXELS)
    assert found["pixels"].min() == 255
    clear = Image.new("RGBA", (36, 36), (0, 0, 0, 0))
    found = _classifier(PLAIN, "UINT8").decode_image(_file(clear), MAX_PIXELS)
    assert found["pixels"].min() == 255


def test_a_picture_that_is_smaller_than_the_crop_is_refused() -> None:
    """Without resizing, a picture smaller than the crop is refused."""
    adapter = _classifier(PLAIN | {"resize": None})
    with pytest.raises(InvalidInputError, match="40 x 31 pixels; expected at least 32 x 32"):
        adapter.decode_image(_file(_picture(40, 31)), MAX_PIXELS)


def test_an_elongated_picture_is_refused_before_it_is_enlarged() -> None:
    """A picture of one by a million pixels would have 1.3 billion pixels when resized."""
    with pytest.raises(PayloadTooLargeError, match="elongated"):
        _classifier().decode_image(_file(Image.new("L", (MAX_PIXELS, 1))), MAX_PIXELS)


def test_logits_become_probabilities_of_labels() -> None:
    """Softmax is computed in float64 and is stable for large logits."""
    outputs = {"logits": np.array([[1000, 999], [0, 2]], np.float32)}
    answer = _classifier().encode(outputs, {})
    assert answer["outputs"] == {"logits": [[1000.0, 999.0], [0.0, 2.0]]}
    predictions: Any = answer["predictions"]
    first, second = predictions
    assert (first["label"], second["label"]) == ("cat", "dog")
    assert first["probabilities"] == pytest.approx([0.7310585786, 0.2689414214], abs=1e-9)
    assert sum(second["probabilities"]) == pytest.approx(1, abs=1e-15)


def test_probabilities_are_answered_as_they_are() -> None:
    """An output of probabilities is preferred to an output of logits."""
    outputs = (
        _spec("logits", "FP32", 2, kind="logits"),
        _spec("scores", "FP32", 2, kind="probabilities"),
    )
    given = {"logits": np.zeros((1, 2), np.float32), "scores": np.array([[0.25, 0.75]], np.float32)}
    answer = _classifier(outputs=outputs).encode(given, {})
    assert answer["predictions"] == [{"label": "dog", "probabilities": [0.25, 0.75]}]


def test_logits_that_are_not_finite_are_refused() -> None:
    """Non-finite logits are refused, because JSON has no NaN."""
    with pytest.raises(NonFiniteOutputError):
        _classifier().encode({"logits": np.array([[np.nan, 0]], np.float32)}, {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preprocessing": None}, "no preprocessing"),
        ({"inputs": (_spec("a", "FP32", 3, 8, 8),)}, r"needs one input, UINT8 or FP16 or FP32"),
        ({"inputs": (_spec("a", "FP32", 3, 32, 32),) * 2}, "needs one input"),
        ({"inputs": (_spec("a", "INT64", 3, 32, 32),)}, r"\[-1,3,32,32\]"),
        ({"inputs": (_spec("a", "UINT8", 3, 32, 32),)}, "scale 1, mean 0 and std 1 for UINT8"),
        ({"labels": ()}, "0 labels"),
        ({"outputs": (_spec("y", "FP32", 2),)}, r"y=FP32\[-1,2\] \(values\)"),
        ({"outputs": (_spec("y", "FP32", 3, kind="logits"),)}, "number of labels"),
    ],
)
def test_tensors_that_do_not_fit_the_task_are_refused_at_load(
    changes: dict[str, Any], words: str
) -> None:
    """The message says what the manifest contains and what was expected."""
    with pytest.raises(BundleError, match=words):
        choose_adapter(_manifest(IMAGENET, **changes), None)


def test_variable_heights_and_widths_take_the_crop() -> None:
    """Heights and widths may vary if the crop lies within their bounds."""
    bounds = {"2": [16, 64], "3": [16, 64]}
    spec = _spec("pixels", "FP32", 3, -1, -1, bounds=bounds)
    found = _classifier(inputs=(spec,)).decode_image(_file(_picture(50, 40)), MAX_PIXELS)
    assert found["pixels"].shape == (1, 3, 32, 32)
    narrow = _spec("pixels", "FP32", 3, -1, -1, bounds=bounds | {"3": [16, 24]})
    with pytest.raises(BundleError, match="needs one input"):
        _classifier(inputs=(narrow,))
