"""Tensors of every numeric datatype are decoded, and invalid values are refused."""

import json
from collections.abc import Sequence

import numpy as np
import pytest

from export.bundle.manifest import DTYPES, Datatype, Manifest, TensorSpec
from export.bundle.store import Bundle
from service.protocol.errors import InvalidInputError
from service.protocol.oip import decode_infer
from service.protocol.tensors import sample_bytes
from service.settings import Limits
from tests.tiny import SERVED_BUNDLES

CNN = Bundle.open(SERVED_BUNDLES / "cnn").manifest
LIMITS = Limits(10)
FLOATS: tuple[Datatype, ...] = ("FP16", "FP32", "FP64")


def _manifest(datatype: str, *shape: int, bounds: object = None) -> Manifest:
    """A model with the single input x."""
    fields = {"name": "x", "datatype": datatype, "shape": (-1, *shape), "bounds": bounds or {}}
    return CNN.model_copy(update={"inputs": (TensorSpec.model_validate(fields),)})


def _json(datatype: str, shape: list[int], data: Sequence[object]) -> bytes:
    tensor = {"name": "x", "datatype": datatype, "shape": shape, "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


def _binary(datatype: str, shape: list[int], content: bytes) -> tuple[bytes, str]:
    """A body with the values after its JSON, and the length of the JSON."""
    parameters = {"binary_data_size": len(content)}
    tensor = {"name": "x", "datatype": datatype, "shape": shape, "parameters": parameters}
    header = json.dumps({"inputs": [tensor]}).encode()
    return header + content, str(len(header))


@pytest.mark.parametrize("datatype", list(DTYPES))
def test_every_datatype_is_read_from_json_blobs_and_raw_bodies(datatype: Datatype) -> None:
    """The smallest and the largest values are read in all three forms."""
    dtype = DTYPES[datatype]
    if dtype.kind == "b":
        values = np.array([[False, True]])
    else:
        info = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        values = np.array([[info.min, info.max]], dtype)
    manifest, content = _manifest(datatype, 2), values.tobytes()
    bodies = [
        (_json(datatype, [1, 2], values.ravel().tolist()), None),
        _binary(datatype, [1, 2], content),
        (content, "0"),
    ]
    for body, length in bodies:
        found = decode_infer(body, length, manifest, LIMITS).inputs["x"]
        assert found.dtype == dtype
        assert np.array_equal(found, values)


@pytest.mark.parametrize("datatype", [name for name, d in DTYPES.items() if d.kind in "iu"])
def test_integers_that_do_not_fit_are_refused_with_both_limits(datatype: Datatype) -> None:
    """Integers out of range do not wrap around."""
    limits = np.iinfo(DTYPES[datatype])
    for value in (int(limits.min) - 1, int(limits.max) + 1):
        with pytest.raises(InvalidInputError, match=f"expected {limits.min} to {limits.max}"):
            decode_infer(_json(datatype, [1], [value]), None, _manifest(datatype), LIMITS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("datatype", FLOATS)
def test_values_that_are_not_finite_are_refused_in_every_binary_form(
    datatype: Datatype, value: float
) -> None:
    """They are refused in blobs and in raw bodies."""
    content = np.array([[1, value]], DTYPES[datatype]).tobytes()
    for body, length in (_binary(datatype, [1, 2], content), (content, "0")):
        with pytest.raises(InvalidInputError, match="x contains NaN or infinite values"):
            decode_infer(body, length, _manifest(datatype, 2), LIMITS)


@pytest.mark.parametrize("datatype", FLOATS)
def test_json_numbers_beyond_a_datatype_are_refused(datatype: Datatype) -> None:
    """Numbers that would become infinite are refused."""
    body = _json(datatype, [1], [0]).replace(b"[0]", b"[1e400]")
    with pytest.raises(InvalidInputError, match="NaN or infinite"):
        decode_infer(body, None, _manifest(datatype), LIMITS)
    with pytest.raises(InvalidInputError, match=f"number that is too large for {datatype}"):
        decode_infer(_json(datatype, [1], [10**400]), None, _manifest(datatype), LIMITS)


def test_bytes_of_bool_are_0_or_1() -> None:
    """Bytes other than 0 and 1 are refused."""
    manifest = _manifest("BOOL", 2)
    for body, length in (_binary("BOOL", [1, 2], b"\0\2"), (b"\0\2", "0")):
        with pytest.raises(InvalidInputError, match="bytes other than 0 and 1"):
            decode_infer(body, length, manifest, LIMITS)


def test_strings_are_refused() -> None:
    """The protocol's datatype BYTES is not supported."""
    with pytest.raises(
        InvalidInputError, match=r"expected FP32; BYTES \(strings\) are not supported"
    ):
        decode_infer(_json("BYTES", [1], ["a"]), None, _manifest("FP32"), LIMITS)


VARIABLE = _manifest("INT64", -1, 2, bounds={"1": [2, 4]})


@pytest.mark.parametrize("length", [2, 3, 4])
def test_variable_axes_are_read_within_their_bounds(length: int) -> None:
    """They are read in JSON and in blobs."""
    values = np.arange(3 * length * 2).reshape(3, length, 2)
    shape = list(values.shape)
    bodies = [
        (_json("INT64", shape, values.ravel().tolist()), None),
        (_json("INT64", shape, values.tolist()), None),
        _binary("INT64", shape, values.tobytes()),
    ]
    for body, json_length in bodies:
        found = decode_infer(body, json_length, VARIABLE, LIMITS).inputs["x"]
        assert np.array_equal(found, values)


@pytest.mark.parametrize("shape", [[1, 1, 2], [1, 5, 2], [1, 3, 3], [1, 2**70, 2], [1, -1, 2], [3]])
def test_other_sizes_are_refused_with_the_bounds(shape: list[int]) -> None:
    """The message gives the range of each variable axis."""
    with pytest.raises(InvalidInputError, match=r"expected \[N, 2\.\.4, 2\] with N at least 1"):
        decode_infer(_json("INT64", shape, []), None, VARIABLE, LIMITS)


def test_a_raw_body_needs_a_fixed_shape() -> None:
    """A raw body is refused for a variable shape, because it does not give a sample's length."""
    with pytest.raises(InvalidInputError, match="variable axes; send JSON with the shape"):
        decode_infer(bytes(64), "0", VARIABLE, LIMITS)


def test_the_bytes_of_a_sample_are_those_of_the_largest() -> None:
    """The body limit must be sufficient for every size."""
    assert sample_bytes(VARIABLE.inputs[0]) == 4 * 2 * 8
    assert sample_bytes(CNN.inputs[0]) == 784
