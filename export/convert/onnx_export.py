"""Export ONNX through torch.export: opset 20, one file, a free batch axis, no local paths.

The result is checked: an exporter that cannot satisfy an option often silently ignores it.
"""

import json
import warnings
from dataclasses import dataclass

import onnx
import torch

from export.bundle.manifest import SubjectError
from export.convert.pt2 import free_axes
from export.model.under_test import ModelUnderTest
from export.parity.structure import OPSET, structure_problems

# A protobuf message must be smaller than 2 GiB; the graph needs a little of that too.
PROTOBUF_BYTES = 2**31 - 2**24


class ExportError(RuntimeError):
    """The exporter's model has another structure than requested."""


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX model and the program whose nodes have the same names as the model's values.

    ``program`` is the exporter's version of torch.export's program, with operators decomposed; its
    nodes still refer to the module and the source line.
    """

    model: onnx.ModelProto
    program: torch.export.ExportedProgram


def translate(subject: ModelUnderTest, program: torch.export.ExportedProgram) -> OnnxExport:
    """Translate a program into an ONNX model.

    Args:
        subject: The model that the program was exported from.
        program: From ``export.convert.pt2.export_program``.

    Raises:
        ExportError: The opset, names or batch axis are not as requested; the message lists them.
        SubjectError: The weights are too large for one file.
    """
    _refuse_too_large(subject)
    with warnings.catch_warnings():
        # Two inputs share one batch axis, and the first one's name for it is used, as intended.
        warnings.filterwarnings("ignore", message=".*axis name: .* will not be used")
        # PyTorch's own code causes these while it decomposes a recurrent layer.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
        warnings.filterwarnings("ignore", message="_check_is_size", category=FutureWarning)
        translated = torch.onnx.export(
            program,
            subject.example,
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.name for spec in subject.inputs],
            output_names=[spec.name for spec in subject.outputs],
            dynamic_shapes=free_axes(subject),
            external_data=False,
            verbose=False,
        )
    if translated is None or translated.exported_program is None:
        raise ExportError("torch.onnx.export returned nothing")
    model = translated.model_proto
    _strip(model)
    problems = structure_problems(model, subject.inputs, subject.outputs)
    if problems:
        raise ExportError(
            f"the exported model differs from what was requested: {'; '.join(problems)}"
        )
    onnx.checker.check_model(model, full_check=True)
    return OnnxExport(model, translated.exported_program)


def _refuse_too_large(subject: ModelUnderTest) -> None:
    tensors = [*subject.module.parameters(), *subject.module.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > PROTOBUF_BYTES:
        raise SubjectError(
            f"the weights of {subject.name} have {size / 1e9:.1f} GB; expected at most "
            f"{PROTOBUF_BYTES / 1e9:.1f} GB, since an ONNX file is one protobuf message and a "
            "bundle has no external data file: split the network, or serve it by other means"
        )


def set_metadata(
    model: onnx.ModelProto, subject: ModelUnderTest, version: str, variant: str
) -> None:
    """Describe the model in the file's own metadata, for use without the bundle.

    ONNX Runtime reads the metadata with ``session.get_modelmeta().custom_metadata_map``.
    """
    kept = {
        "name": subject.name,
        "version": version,
        "variant": variant,
        "inputs": ", ".join(map(str, subject.inputs)),
        "outputs": ", ".join(f"{spec} ({spec.kind})" for spec in subject.outputs),
        "labels": json.dumps(subject.labels),
        "proven_on": subject.samples.name,
    }
    if subject.training is not None:
        softmax = any(spec.kind == "probabilities" for spec in subject.outputs)
        kept["pixels"] = "0 = ground, 255 = ink; " + (
            "scaling and softmax are in the graph" if softmax else "scaling is in the graph"
        )
        if subject.training.test_accuracy is not None:
            kept["test_accuracy"] = f"{subject.training.test_accuracy:.4f}"
    del model.metadata_props[:]
    for key, value in sorted(kept.items()):
        model.metadata_props.add(key=key, value=value)


def model_bytes(model: onnx.ModelProto) -> bytes:
    """The content of the model's file; the same model gives the same bytes."""
    return bytes(model.SerializeToString(deterministic=True))


def _strip(model: onnx.ModelProto) -> None:
    """Remove stack traces and scopes: they hold local paths, so files would differ by machine."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
