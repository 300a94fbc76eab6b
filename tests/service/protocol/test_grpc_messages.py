"""gRPC messages of the Open Inference Protocol are decoded, and violations are named."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from tritonclient.grpc import service_pb2 as triton

from export.bundle.golden import Golden
from export.bundle.manifest import DTYPES, TensorSpec
from export.bundle.metrics import Arrays
from export.bundle.store import Bundle
from service.protocol.errors import InvalidInputError, PayloadTooLargeError
from service.protocol.grpc_messages import (
    CONTENTS,
    DESCRIPTORS,
    MESSAGES,
    encode_model_infer,
    parse_message,
    read_model_infer,
)
from service.settings import Limits
from tests.tiny import SERVED_BUNDLES

MANIFEST = Bundle.open(SERVED_BUNDLES / "cnn").manifest
IMAGES = Golden.load(SERVED_BUNDLES / "cnn" / "golden.npz").inputs["images"][:2]
LIMITS = Limits(10)


def _manifest(datatype: Any) -> Any:
    """A model with one input and one output of three values of the datatype."""
    tensor = TensorSpec(name="x", datatype=datatype, shape=(-1, 3))
    return MANIFEST.model_copy(update={"inputs": (tensor,), "outputs": (tensor,)})


def _typed(datatype: str, values: list[Any], field: str | None = None) -> Any:
    """A request of one sample in typed contents."""
    message = triton.ModelInferRequest(model_name="cnn")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[1, 3])
    getattr(tensor.contents, field or CONTENTS[datatype]).extend(values)
    return message


def _raw(**changes: Any) -> Any:
    """A request of two images in raw contents."""
    message = triton.ModelInferRequest(model_name="cnn", raw_input_contents=[IMAGES.tobytes()])
    tensor = {"name": "images", "datatype": "UINT8", "shape": IMAGES.shape} | changes
    message.inputs.add(**tensor)
    return message


def _read(message: Any, manifest: Any = MANIFEST) -> Any:
    own = parse_message("ModelInferRequest", message.SerializeToString())
    return read_model_infer(own, manifest, LIMITS)


def test_the_compiled_messages_are_the_proto_file(tmp_path: Path) -> None:
    """Compiling open_inference.proto again gives the bytes that the service uses."""
    compiled = tmp_path / "again.binpb"
    folder = DESCRIPTORS.parent
    command = [f"-I{folder}", "open_inference.proto", f"--descriptor_set_out={compiled}"]
    assert protoc.main(["protoc", *command]) == 0
    assert compiled.read_bytes() == DESCRIPTORS.read_bytes()


def test_the_messages_are_those_of_tritons_client() -> None:
    """Every field has the name, number, type and label that Triton's client was compiled with."""
    theirs = descriptor_pb2.FileDescriptorProto()
    triton.DESCRIPTOR.CopyToProto(theirs)
    known = {message.name: message for message in theirs.message_type}
    own = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file[0]
    assert len(own.message_type) == 14
    for message in own.message_type:
        assert _fields(message) == _fields(known[message.name]), message.name
        inner = {nested.name: nested for nested in known[message.name].nested_type}
        for nested in message.nested_type:
            assert _fields(nested) == _fields(inner[nested.name]), nested.name
    methods = {method.name: method for method in theirs.service[0].method}
    for method in own.service[0].method:
        expected = methods[method.name]
        assert (method.input_type, method.output_type) == (
            expected.input_type,
            expected.output_type,
        )


def _fields(message: Any) -> list[tuple[Any, ...]]:
    return sorted(
        (field.number, field.name, field.type, field.label, field.type_name)
        for field in message.field
    )


def test_raw_values_are_read_without_a_change() -> None:
    """Two images are read as bytes, and all outputs are requested as bytes."""
    asked = _read(_raw())
    assert np.array_equal(asked.inputs["images"], IMAGES)
    assert asked.outputs == {"logits": True, "probabilities": True}
    assert asked.id is None


@pytest.mark.parametrize("datatype", CONTENTS)
def test_typed_values_make_the_way_there_and_back(datatype: str) -> None:
    """Each datatype's field is read, and a typed request gets typed outputs."""
    dtype = DTYPES[datatype]  # type: ignore[index]
    values = np.array([1, 0, 1], dtype)
    manifest = _manifest(datatype)
    message = _typed(datatype, values.tolist())
    message.id = "7"
    asked = _read(message, manifest)
    assert asked.inputs["x"].dtype == dtype
    assert np.array_equal(asked.inputs["x"], [values])
    response = triton.ModelInferResponse.FromString(
        encode_model_infer({"x": asked.inputs["x"]}, asked, manifest)
    )
    assert (response.model_name, response.model_version) == (manifest.name, manifest.version)
    assert response.id == "7"
    assert not response.raw_output_contents
    output = response.outputs[0]
    assert (output.name, output.datatype, list(output.shape)) == ("x", datatype, [1, 3])
    assert list(getattr(output.contents, CONTENTS[datatype])) == values.tolist()


def test_half_precision_comes_and_goes_raw() -> None:
    """FP16 has no typed contents: they are refused, and outputs are returned raw."""
    manifest = _manifest("FP16")
    values = np.array([[0.5, 1, 2]], np.float16)
    message = _typed("FP16", [0.5], "fp32_contents")
    with pytest.raises(InvalidInputError, match="fp32_contents; expected raw_input_contents"):
        _read(message, manifest)
    message.inputs[0].ClearField("contents")
    with pytest.raises(InvalidInputError, match=r"FP16.*send its values as raw_input_contents"):
        _read(message, manifest)
    message.raw_input_contents.append(values.tobytes())
    asked = _read(message, manifest)
    response = triton.ModelInferResponse.FromString(
        encode_model_infer({"x": values}, asked, manifest)
    )
    assert list(response.raw_output_contents) == [values.tobytes()]
    mixed = manifest.model_copy(update={"inputs": _manifest("FP32").inputs})
    assert _read(_typed("FP32", [1, 2, 3]), mixed).outputs == {"x": True}


def test_only_the_requested_outputs_are_returned() -> None:
    """A request for one of two outputs gets only its bytes."""
    message = _raw()
    message.outputs.add(name="probabilities")
    asked = _read(message)
    outputs: Arrays = {"logits": np.zeros((2, 10)), "probabilities": np.ones((2, 10), np.float32)}
    response = MESSAGES["ModelInferResponse"].FromString(
        encode_model_infer(outputs, asked, MANIFEST)
    )
    assert [output.name for output in response.outputs] == ["probabilities"]
    assert list(response.raw_output_contents) == [outputs["probabilities"].tobytes()]


def _spoil(message: Any, spoiling: str) -> Any:
    tensor = message.inputs[0]
    if spoiling == "both":
        tensor.contents.uint_contents.append(1)
    elif spoiling == "two blobs":
        message.raw_input_contents.append(b"1")
    elif spoiling == "short":
        message.raw_input_contents[0] = b"1"
    elif spoiling == "shared memory":
        tensor.parameters["shared_memory_region"].string_param = "here"
    elif spoiling == "shared output":
        output = message.outputs.add(name="logits")
        output.parameters["shared_memory_region"].string_param = "here"
    elif spoiling == "output":
        message.outputs.add(name="labels")
    elif spoiling == "id":
        message.id = "x" * 1025
    elif spoiling == "nothing":
        del message.raw_input_contents[:]
    return message


@pytest.mark.parametrize(
    ("spoiling", "words"),
    [
        ("both", "'images' has uint_contents although the request has raw_input_contents"),
        ("two blobs", "raw_input_contents has 2 elements for 1 inputs; expected one for each"),
        (
            "short",
            "has the binary_data_size 1 and 1 bytes follow; its shape [2, 28, 28] needs 1568",
        ),
        ("shared memory", "'images' is in shared memory, which is not supported"),
        ("shared output", "'logits' is in shared memory, which is not supported"),
        ("output", "output 'labels' is not known; cnn has the outputs logits, probabilities"),
        ("id", "id has 1,025 characters"),
        ("nothing", "images has 0 values, its shape [2, 28, 28] needs 1568"),
    ],
)
def test_a_broken_rule_is_named(spoiling: str, words: str) -> None:
    """The message says what came, what was expected and what to do."""
    with pytest.raises(InvalidInputError, match=re.escape(words)):
        _read(_spoil(_raw(), spoiling))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "pictures"}, "input 'pictures' is not known"),
        ({"datatype": "BYTES"}, "BYTES (strings) are not supported"),
        ({"shape": [2, 784]}, "shape [2, 784], expected [N, 28, 28]"),
        ({"shape": [-2, 28, 28]}, "shape [-2, 28, 28], expected [N, 28, 28]"),
        ({"shape": []}, "shape [], expected [N, 28, 28]"),
    ],
)
def test_an_input_that_does_not_fit_the_model_is_named(changes: dict[str, Any], words: str) -> None:
    """An input with another name, datatype or shape than the model's is refused."""
    with pytest.raises(InvalidInputError, match=re.escape(words)):
        _read(_raw(**changes))


def test_values_out_of_the_datatypes_range_are_refused() -> None:
    """256 fits the message's field but not UINT8, and too many samples are refused."""
    with pytest.raises(InvalidInputError, match="x contains 256; expected 0 to 255"):
        _read(_typed("UINT8", [0, 1, 256]), _manifest("UINT8"))
    with pytest.raises(InvalidInputError, match="NaN or infinite"):
        _read(_typed("FP32", [0, 1, float("nan")]), _manifest("FP32"))
    with pytest.raises(PayloadTooLargeError, match="11 samples in one request, at most 10"):
        _read(_raw(shape=[11, 28, 28]))


def test_bytes_that_are_no_message_are_refused() -> None:
    """Garbage is a client error that states its length."""
    with pytest.raises(InvalidInputError, match="5 bytes received are not a ModelInferRequest"):
        parse_message("ModelInferRequest", b"\xff\xff\xff\xff\x01")
