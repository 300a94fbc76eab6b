"""A manifest's tensors and preprocessing are validated when it is read."""

from typing import Any

import pytest
from pydantic import ValidationError

from export.bundle.manifest import ImagePreprocessing, Manifest, TensorSpec
from export.bundle.store import Bundle
from tests.tiny import SERVED_BUNDLES

IMAGENET: dict[str, Any] = {
    "resize": 256,
    "crop": [224, 224],
    "channels": 3,
    "layout": "NCHW",
    "scale": 1 / 255,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def _spec(shape: list[int], bounds: object) -> TensorSpec:
    fields = {"name": "ids", "datatype": "INT64", "shape": shape, "bounds": bounds}
    return TensorSpec.model_validate(fields)


def test_older_manifests_open_without_task_and_bounds() -> None:
    """The committed bundles were built before these fields existed."""
    manifest = Bundle.open(SERVED_BUNDLES / "cnn").manifest
    assert (manifest.task, manifest.preprocessing) == (None, None)
    assert [spec.bounds for spec in manifest.inputs] == [{}]


def test_variable_axes_survive_json() -> None:
    """Axes survive a JSON round trip, although JSON keys are strings."""
    spec = _spec([-1, -1, 3], {"1": [1, 512]})
    assert TensorSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.sample_bounds == ((1, 512), (3, 3))
    assert spec.largest_sample == (512, 3)
    manifest = Bundle.open(SERVED_BUNDLES / "cnn").manifest.model_copy(update={"inputs": (spec,)})
    assert Manifest.model_validate_json(manifest.model_dump_json()).inputs == (spec,)


@pytest.mark.parametrize(
    ("shape", "bounds", "words"),
    [
        ([-1, -1], {}, r"expected bounds for the axes of size -1 .*: \[1\]"),
        ([-1, 4], {"1": [1, 8]}, r"bounds for the axes \[1\]; expected .*: \[\]"),
        ([-1, -1], {"0": [1, 8]}, r"bounds for the axes \[0\]"),
        ([-1, -1], {"1": [0, 8]}, "the bounds 0 to 8 for axis 1"),
        ([-1, -1], {"1": [9, 8]}, "the bounds 9 to 8 for axis 1"),
    ],
)
def test_variable_axes_need_sensible_bounds(
    shape: list[int], bounds: dict[str, list[int]], words: str
) -> None:
    """For invalid bounds, the message says what came and what was expected."""
    with pytest.raises(ValidationError, match=words):
        _spec(shape, bounds)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": [0.5]}, "mean has 1 numbers and std 3; expected 3"),
        ({"std": [1, 0, 1]}, "expected numbers above 0"),
        ({"std": [1, float("nan"), 1]}, "finite"),
        ({"crop": [0, 224]}, "expected a height and a width of at least 1"),
        ({"resize": 200}, "expected a resized picture that is at least as large"),
        ({"layout": "NHW"}, "layout NHW has one channel, not 3"),
        ({"layout": "CHW"}, "NCHW"),
        ({"crop_size": 3}, "Extra inputs"),
    ],
)
def test_a_preprocessing_must_fit_together(changes: dict[str, Any], words: str) -> None:
    """For inconsistent values, the message says what came and what was expected."""
    with pytest.raises(ValidationError, match=words):
        ImagePreprocessing.model_validate(IMAGENET | changes)


@pytest.mark.parametrize(
    ("layout", "channels", "shape"),
    [("NCHW", 3, (3, 8, 6)), ("NHWC", 3, (8, 6, 3)), ("NHW", 1, (8, 6)), ("NCHW", 1, (1, 8, 6))],
)
def test_a_layout_orders_the_axes(layout: str, channels: int, shape: tuple[int, ...]) -> None:
    """The crop gives height and width, the layout the order of axes."""
    fields = IMAGENET | {"crop": [8, 6], "layout": layout, "channels": channels}
    fields |= {"mean": [0] * channels, "std": [1] * channels}
    assert ImagePreprocessing.model_validate(fields).sample_shape == shape
