"""ONNX through torch.export: opset 20, one file, a free batch axis, nothing of this machine in it.

What comes out is asserted, not assumed: an exporter that cannot meet a wish often grants another.
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

# A protobuf message has less than 2 GiB; the graph beside the weights needs a little of it.
PROTOBUF_BYTES = 2**31 - 2**24


class ExportError(RuntimeError):
    """The exporter gave something else than what was asked for."""


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX model and the program whose nodes bear the names of its values.

    ``program`` is what the exporter made of torch.export's program (operators taken apart); its
    nodes still know module and source line.
    """

    model: onnx.ModelProto
    program: torch.export.ExportedProgram


def translate(subject: ModelUnderTest, program: torch.export.ExportedProgram) -> OnnxExport:
    """Translate a program into an ONNX model.

    Args:
        subject: What the program was exported from.
        program: From ``export.convert.pt2.export_program``.

    Raises:
        ExportError: Opset, names or the batch axis are not what was asked for; names which.
        SubjectError: The weights are too large for one file.
    """
    _refuse_too_large(subject)
    with warnings.catch_warnings():
        # Of two inputs with one batch axis, the second's name for it is the first's: as wanted.
        warnings.filterwarnings("ignore", message=".*axis name: .* will not be used")
        # PyTorch's own, while it takes a recurrent layer apart.
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
        raise ExportError(f"the exporter gave something else: {'; '.join(problems)}")
    onnx.checker.check_model(model, full_check=True)
    return OnnxExport(model, translated.exported_program)


def _refuse_too_large(subject: ModelUnderTest) -> None:
    tensors = [*subject.module.parameters(), *subject.module.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > PROTOBUF_BYTES:
        raise SubjectError(
            f"the weights of {subject.name} have {size / 1e9:.1f} GB; expected at most "
            f"{PROTOBUF_BYTES / 1e9:.1f} GB, since an ONNX file is one protobuf message and a "
            "bundle has no second file: split the network, or serve it by other means"
        )


def set_metadata(
    model: onnx.ModelProto, subject: ModelUnderTest, version: str, variant: str
) -> None:
    """Let the file say by itself what it is, for who meets it without its bundle.

    ONNX Runtime reads it with ``session.get_modelmeta().custom_metadata_map``.
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
    """The file's content: the same model gives the same bytes."""
    return bytes(model.SerializeToString(deterministic=True))


def _strip(model: onnx.ModelProto) -> None:
    """Remove stack traces and scopes: they hold paths, and two machines' files would differ."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
