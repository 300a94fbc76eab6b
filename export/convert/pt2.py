"""torch.export's program, the source of the ONNX file too, and its .pt2 file."""

import copy
from pathlib import Path

import torch

from export.bundle.manifest import SubjectError
from export.model.under_test import ModelUnderTest

BATCH = torch.export.Dim("batch", min=1)


def export_program(subject: ModelUnderTest) -> torch.export.ExportedProgram:
    """The module as a graph with a free batch axis.

    Raises:
        ValueError: A part of the module is in training mode: dropout would be exported.
        SubjectError: The module cannot be exported; says why.
    """
    training = [name for name, module in subject.module.named_modules() if module.training]
    if training:
        raise ValueError(f"in training mode, call eval() first: {', '.join(training)}")
    try:
        with torch.no_grad():
            return torch.export.export(
                subject.module, subject.example, dynamic_shapes=batch_axes(subject)
            )
    except Exception as error:  # torch.export's errors share no public base class
        raise SubjectError(
            f"torch.export cannot make a graph of {subject.name}, its batch axis free: {error}"
        ) from error


def batch_axes(subject: ModelUnderTest) -> tuple[object, ...]:
    """The first axis of each input is the batch, and free."""
    axes: tuple[object, ...] = tuple({0: BATCH} for _ in subject.inputs)
    # A forward(*inputs) has one parameter, which is a tuple.
    return (axes,) if subject.factory else axes


def save_pt2(program: torch.export.ExportedProgram, path: Path) -> None:
    """Save the program without the paths of the machine that exported it.

    Args:
        program: From ``export_program``.
        path: Where to; its stem becomes a part of the content, so keep it fixed.
    """
    program = copy.deepcopy(program)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    torch.export.save(program, path)
