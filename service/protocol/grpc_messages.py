"""Converts the Open Inference Protocol's gRPC messages: requests to arrays, arrays to responses.

``open_inference.proto`` defines the messages. They have a separate descriptor pool: Triton's and
KServe's clients register the same names in protobuf's default pool, where a second definition of a
name is an error.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from export.bundle.manifest import Manifest
from export.bundle.metrics import Arrays
from service.protocol.errors import InvalidInputError, quote_value
from service.protocol.oip import (
    DATATYPES,
    InferBody,
    InferParameters,
    InferRequest,
    RequestedOutput,
    check_request,
    model_metadata,
    server_metadata,
)
from service.protocol.tensors import InputTensor
from service.settings import Limits

SERVICE = "inference.GRPCInferenceService"
DESCRIPTORS = Path(__file__).with_name("open_inference.binpb")
# The field of InferTensorContents for each datatype; FP16 has none.
CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
SHARED_MEMORY = "shared_memory_region"


def _load_classes() -> dict[str, Any]:
    """Return the message classes by name."""
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file
    for file in files:
        pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{file.package}.{message.name}")
        )
        for file in files
        for message in file.message_type
    }


MESSAGES = _load_classes()


def parse_message(name: str, content: bytes) -> Any:
    """Parse a message.

    Raises:
        InvalidInputError: The bytes are not a message of this type.
    """
    try:
        return MESSAGES[name].FromString(content)
    except DecodeError as error:
        raise InvalidInputError(
            f"the {len(content)} bytes received are not a {name}; expected this message of the "
            "Open Inference Protocol"
        ) from error


def read_model_infer(message: Any, manifest: Manifest, limits: Limits) -> InferRequest:
    """Check a ``ModelInferRequest`` against the model that it names.

    Outputs are returned as raw bytes if the inputs are raw, or if a requested output is FP16.

    Raises:
        InvalidInputError: Something in the request breaks the protocol or does not fit the model.
        PayloadTooLargeError: There are more samples than allowed.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidInputError(
            f"raw_input_contents has {len(raw)} elements for {len(message.inputs)} inputs; "
            "expected one for each input, in the same order, or none"
        )
    outputs = [_read_output(output) for output in message.outputs] or None
    chosen = {output.name for output in outputs} if outputs else None
    has_fp16 = any(
        spec.datatype == "FP16" and (chosen is None or spec.name in chosen)
        for spec in manifest.outputs
    )
    asked = InferBody(
        [_read_input(tensor, raw[i] if raw else None) for i, tensor in enumerate(message.inputs)],
        message.id or None,
        InferParameters(binary_data_output=bool(raw) or has_fp16),
        outputs,
    )
    blobs = raw[0] if len(raw) == 1 else b"".join(raw)
    return check_request(asked, memoryview(blobs), manifest, limits)


def encode_model_infer(outputs: Arrays, asked: InferRequest, manifest: Manifest) -> bytes:
    """Encode the requested outputs as a ``ModelInferResponse``."""
    response = MESSAGES["ModelInferResponse"](
        model_name=manifest.name, model_version=manifest.version, id=asked.id or ""
    )
    for name, is_raw in asked.outputs.items():
        array = outputs[name]
        datatype = DATATYPES[array.dtype]
        tensor = response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        if is_raw:
            response.raw_output_contents.append(array.tobytes())
        else:
            getattr(tensor.contents, CONTENTS[datatype]).extend(array.ravel().tolist())
    return bytes(response.SerializeToString())


def encode_message(message: str, /, **fields: Any) -> bytes:
    """Encode a message with these fields."""
    return bytes(MESSAGES[message](**fields).SerializeToString())


def encode_server_metadata() -> bytes:
    """Encode the ``ServerMetadataResponse``, without the extensions, which are for HTTP bodies."""
    metadata = server_metadata()
    return encode_message(
        "ServerMetadataResponse", name=metadata["name"], version=metadata["version"]
    )


def encode_model_metadata(manifest: Manifest, versions: Sequence[str]) -> bytes:
    """Encode a model's ``ModelMetadataResponse``; ``versions`` are all served versions."""
    return encode_message("ModelMetadataResponse", **model_metadata(manifest, versions))


def _read_input(tensor: Any, raw: bytes | None) -> InputTensor:
    """Return an input for ``read_inputs``, with its values or with the size of its raw bytes."""
    _refuse_shared_memory(tensor)
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    shape = list(tensor.shape)
    if raw is not None:
        if filled:
            raise InvalidInputError(
                f"{quote_value(tensor.name)} has {filled[0]} although the request has "
                "raw_input_contents; send all inputs in one of these two ways"
            )
        return InputTensor(tensor.name, shape, tensor.datatype, {"binary_data_size": len(raw)})
    expected = CONTENTS.get(tensor.datatype)
    if strange := [field for field in filled if field != expected]:
        raise InvalidInputError(
            f"{quote_value(tensor.name)} of the datatype {quote_value(tensor.datatype)} has "
            f"{strange[0]}; expected {expected or 'raw_input_contents'}"
        )
    if tensor.datatype == "FP16":
        raise InvalidInputError(
            f"{quote_value(tensor.name)} has the datatype FP16, for which the protocol has no "
            "typed contents; send its values as raw_input_contents"
        )
    data = list(getattr(tensor.contents, expected)) if expected else []
    return InputTensor(tensor.name, shape, tensor.datatype, {}, data)


def _read_output(output: Any) -> RequestedOutput:
    _refuse_shared_memory(output)
    return RequestedOutput(output.name)


def _refuse_shared_memory(tensor: Any) -> None:
    if SHARED_MEMORY in tensor.parameters:
        raise InvalidInputError(
            f"{quote_value(tensor.name)} is in shared memory, which is not supported "
            f"({SHARED_MEMORY}); send and receive the values in the messages"
        )
