"""Conversion of Arrow columns to a model's inputs, and the errors for unsuitable columns."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from export.bundle.manifest import Manifest
from export.bundle.metrics import Array, Arrays
from export.bundle.store import Bundle
from service.adapters.image_classification import ImageClassificationAdapter
from service.score.columns import check_columns, read_rows
from service.score.errors import ScoreError
from tests.service.made_bundles import make_rgb_bundle, make_text_bundle, make_vector_bundle
from tests.service.score.made_inputs import CNN, as_binary, as_lists, make_digits

DIGITS = make_digits(5)
NESTED = pa.array(DIGITS.tolist(), pa.list_(pa.list_(pa.uint8())))


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A model of x FP32 [-1, 4]."""
    return make_vector_bundle(tmp_path_factory.mktemp("bundles")).manifest


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A model of ids INT64 and mask FP32, both [-1, 1..16]."""
    return make_text_bundle(tmp_path_factory.mktemp("bundles")).manifest


@pytest.fixture(scope="module")
def digits() -> Manifest:
    """The CNN: images UINT8 [-1, 28, 28]."""
    return Bundle.open(CNN).manifest


def _no_picture(content: bytes) -> Arrays:
    raise AssertionError("no picture is in this column")


def _read(
    manifest: Manifest, columns: dict[str, Any], **mapping: tuple[str, ...]
) -> tuple[dict[str, Array], dict[int, str]]:
    """Check and convert some rows of one shape."""
    batch = pa.RecordBatch.from_pydict(columns)
    whole = {spec.name: mapping.get(spec.name, (spec.name,)) for spec in manifest.inputs}
    check_columns("a.parquet", batch.schema, manifest, whole, None)
    groups, reasons = read_rows(batch, manifest, whole, _no_picture)
    assert len(groups) <= 1
    return (groups[0].inputs if groups else {}), reasons


@pytest.mark.parametrize(
    "column",
    [
        as_binary(DIGITS),
        as_lists(DIGITS),
        NESTED,
        pa.array(DIGITS.reshape(5, -1).tolist(), pa.large_list(pa.uint8())),
        pa.FixedShapeTensorArray.from_numpy_ndarray(DIGITS),
    ],
    ids=["fixed-size binary", "fixed-size lists", "nested lists", "flat lists", "tensors"],
)
def test_every_form_of_a_column_gives_the_same_images(column: pa.Array, digits: Manifest) -> None:
    """Bytes, flat and nested lists and tensors become the same array, sliced or not."""
    inputs, reasons = _read(digits, {"images": column})
    assert not reasons
    assert inputs["images"].dtype == np.uint8
    np.testing.assert_array_equal(inputs["images"], DIGITS)
    inputs, _ = _read(digits, {"images": column.slice(2, 2)})
    np.testing.assert_array_equal(inputs["images"], DIGITS[2:4])


def test_columns_of_numbers_make_one_input(vectors: Manifest) -> None:
    """--inputs x=a,b,c,d combines four columns, and float16 becomes float32."""
    rows = np.arange(12, dtype=np.float16).reshape(3, 4)
    columns = {name: pa.array(rows[:, i]) for i, name in enumerate("abcd")}
    inputs, reasons = _read(vectors, columns, x=("a", "b", "c", "d"))
    assert not reasons
    assert inputs["x"].dtype == np.float32
    np.testing.assert_array_equal(inputs["x"], rows)


def test_binary_values_of_a_model_without_pictures_are_its_bytes(vectors: Manifest) -> None:
    """Values are little-endian, and a row of another length is skipped with a reason."""
    rows = np.arange(8, dtype="<f4").reshape(2, 4)
    column = pa.array([rows[0].tobytes(), b"short", rows[1].tobytes()], pa.binary())
    inputs, reasons = _read(vectors, {"x": column})
    np.testing.assert_array_equal(inputs["x"], rows)
    assert reasons == {1: "x has 5 bytes; expected 16 for a sample of x=FP32[-1,4]"}


def test_rows_that_do_not_fit_are_left_out_with_their_reasons(vectors: Manifest) -> None:
    """Nulls, wrong lengths and non-finite values are skipped, and other rows are kept."""
    good = [1.0, 2.0, 3.0, 4.0]
    rows = [good, None, good[:3], [1.0, None, 3.0, 4.0], good, [1.0, float("nan"), 3.0, 4.0]]
    inputs, reasons = _read(vectors, {"x": pa.array(rows, pa.list_(pa.float32()))})
    np.testing.assert_array_equal(inputs["x"], np.array([good, good], np.float32))
    assert reasons == {
        1: "x is null; expected float32 values",
        2: "x contains a list of length 3; expected a list of length 4 there for a sample of "
        "x=FP32[-1,4]",
        3: "x contains a null; expected numbers",
        5: "x contains NaN or infinite values; expected finite ones",
    }


def test_a_nested_list_with_one_short_row_names_its_length(digits: Manifest) -> None:
    """An image whose 4th row has 27 pixels is skipped, and the other images are kept."""
    images = DIGITS[:3].tolist()
    images[1][3].pop()
    inputs, reasons = _read(digits, {"images": pa.array(images, NESTED.type)})
    np.testing.assert_array_equal(inputs["images"], DIGITS[[0, 2]])
    assert list(reasons) == [1]
    assert "a list of length 27; expected a list of length 28" in reasons[1]


def test_rows_of_several_lengths_are_grouped_by_their_shape(text: Manifest) -> None:
    """Groups have rows of one length, and refused rows have the service's reason."""
    ids = [[1, 2], [3], [4, 5], [6, 7, 8], [500]]
    masks = [[1, 1], [1], [1, 0], [1, 1], [1]]
    batch = pa.RecordBatch.from_pydict(
        {
            "ids": pa.array(ids, pa.list_(pa.int64())),
            "mask": pa.array(masks, pa.list_(pa.float32())),
        }
    )
    mapping = {"ids": ("ids",), "mask": ("mask",)}
    check_columns("a.parquet", batch.schema, text, mapping, None)
    groups, reasons = read_rows(batch, text, mapping, _no_picture)
    assert [group.index.tolist() for group in groups] == [[0, 2], [1]]
    np.testing.assert_array_equal(groups[0].inputs["ids"], [[1, 2], [4, 5]])
    assert "the axis tokens has the size 3 in ids and 2 in mask" in reasons[3]
    assert reasons[4] == "ids contains 500; expected tokens from 0 to 99"


def test_pictures_are_decoded_and_damaged_ones_left_out(tmp_path: Path) -> None:
    """An image classifier's binary column contains PNG files; a dot selects a struct's field."""
    manifest = make_rgb_bundle(tmp_path).manifest
    png = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(png, "PNG")
    cells = [{"bytes": png.getvalue()}, {"bytes": b"no picture"}, None]
    batch = pa.RecordBatch.from_pydict({"image": pa.array(cells)})
    mapping = {"pixels": ("image.bytes",)}
    check_columns("a.parquet", batch.schema, manifest, mapping, None)
    adapter = ImageClassificationAdapter(manifest)
    groups, reasons = read_rows(
        batch, manifest, mapping, lambda content: adapter.decode_image(content, 10_000)
    )
    assert groups[0].index.tolist() == [0]
    assert groups[0].inputs["pixels"].shape == (1, 3, 8, 8)
    assert "not a PNG or JPEG image" in reasons[1]
    assert reasons[2] == "pixels is null; expected float32 values"


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"y": [[1.0]]}, "has no column x for the input x=FP32[-1,4]; its columns are y (list"),
        ({"x": [["a"]]}, "has the type list<item: string>; expected float32 values"),
        ({"x": [[1.0] * 4]}, "values of the type double, not all of which fit FP32"),
        ({"x": pa.array([1.0], pa.float32())}, "has 1 values per row; expected [4]"),
        ({"x": pa.array([b"12"], pa.binary(2))}, "has values of 2 bytes; expected 16"),
        ({"x": pa.array([[1] * 3], pa.list_(pa.float32(), 3))}, "lists of lengths [3]"),
        ({"x": pa.array([[[1]]], pa.list_(pa.list_(pa.float32())))}, "lists nested 2 deep"),
    ],
    ids=["name", "type", "precision", "number", "bytes", "length", "depth"],
)
def test_a_column_that_cannot_be_the_input_is_refused_in_words(
    columns: dict[str, Any], said: str, vectors: Manifest
) -> None:
    """The message says what the file contains, what is expected and what to do."""
    schema = pa.table(columns).schema
    with pytest.raises(ScoreError) as refused:
        check_columns("a.parquet", schema, vectors, {"x": ("x",)}, None)
    assert said in str(refused.value)
    assert "a.parquet" in str(refused.value)


def test_a_key_that_is_no_column_is_refused(vectors: Manifest) -> None:
    """The message lists the available columns."""
    schema = pa.schema([("x", pa.list_(pa.float32())), ("id", pa.int64())])
    with pytest.raises(ScoreError, match=r"no column uid, which --key names; .* id \(int64\)"):
        check_columns("a.parquet", schema, vectors, {"x": ("x",)}, "uid")
