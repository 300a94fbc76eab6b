"""torch.export's program, the source of the ONNX file too, and its .pt2 file."""

from pathlib import Path

import torch

from export.servable import ServableModel, example_images

BATCH_AXIS = {"images_NHW": {0: torch.export.Dim("batch", min=1)}}


def export_program(model: ServableModel) -> torch.export.ExportedProgram:
    """The model as a graph with a free batch axis.

    Args:
        model: In evaluation mode, on the CPU, float32.

    Raises:
        ValueError: A part of the model is in training mode: dropout would be exported.
    """
    training = [name for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(f"in training mode, call eval() first: {', '.join(training)}")
    return torch.export.export(model, (example_images(),), dynamic_shapes=BATCH_AXIS)


def save_pt2(program: torch.export.ExportedProgram, path: Path) -> None:
    """Save the program without the paths of the machine that exported it.

    Args:
        program: From ``export_program``; loses its stack traces.
        path: Where to; its stem becomes a part of the content, so keep it fixed.
    """
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    torch.export.save(program, path)
