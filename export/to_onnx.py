"""ONNX through torch.export: opset 20, one file, a free batch axis, nothing of this machine in it.

What comes out is asserted, not assumed: an exporter that cannot meet a wish often grants another.
"""

from pathlib import Path

import onnx
import torch

from export.servable import INPUT_NAME, OUTPUT_NAMES, example_images
from export.to_pt2 import BATCH_AXIS

OPSET = 20


class ExportError(RuntimeError):
    """The exporter gave something else than what was asked for."""


def export_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """Translate a program and write one file.

    Args:
        program: From ``export.to_pt2.export_program``.
        path: Where to.

    Raises:
        ExportError: Opset, names or the batch axis are not what was asked for; names which.
    """
    translated = torch.onnx.export(
        program,
        (example_images(),),
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT_NAME],
        output_names=list(OUTPUT_NAMES),
        dynamic_shapes=BATCH_AXIS,
        external_data=False,
        verbose=False,
    )
    if translated is None:
        raise ExportError("torch.onnx.export returned nothing")
    model = translated.model_proto
    _strip(model)
    _assert_as_asked(model)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _strip(model: onnx.ModelProto) -> None:
    """Remove stack traces and scopes: they hold paths, and two machines' files would differ."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")


def _assert_as_asked(model: onnx.ModelProto) -> None:
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    names = [value.name for value in (*model.graph.input, *model.graph.output)]
    batch_axes = [
        value.type.tensor_type.shape.dim[0].dim_param
        for value in (*model.graph.input, *model.graph.output)
    ]
    wishes = {
        "opset": (opsets, {"ai.onnx": OPSET}),
        "names": (names, [INPUT_NAME, *OUTPUT_NAMES]),
        "free batch axis": (batch_axes, ["batch"] * len(names)),
    }
    for wish, (found, asked) in wishes.items():
        if found != asked:
            raise ExportError(f"{wish}: asked for {asked}, the exporter gave {found}")
