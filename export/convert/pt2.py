"""Export a module with torch.export and save the .pt2 file; the ONNX file is made from it too."""

import copy
import warnings
from pathlib import Path

import torch
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from export.bundle.manifest import SubjectError
from export.model.sizes import variable_axes
from export.model.under_test import FIXED_SIZE, ModelUnderTest

BATCH = torch.export.Dim("batch", min=1)


def export_program(subject: ModelUnderTest) -> torch.export.ExportedProgram:
    """Export the module as a graph; the batch and the axes declared variable are free.

    Raises:
        ValueError: A part of the module is in training mode, so that dropout would be exported.
        SubjectError: The module cannot be exported; the message says why.
    """
    training = [name for name, module in subject.module.named_modules() if module.training]
    if training:
        raise ValueError(f"in training mode; call eval() first: {', '.join(training)}")
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Recurrent layers keep a list of their parameters, which export swaps temporarily.
            warnings.filterwarnings("ignore", message="The tensor attributes? .*_flat_weights")
            program = torch.export.export(
                subject.module, subject.example, dynamic_shapes=free_axes(subject)
            )
    except Exception as error:  # torch.export's errors share no public base class
        raise SubjectError(_refusal(subject, str(error))) from error
    returned = next(node for node in program.graph.nodes if node.op == "output").args[0]
    for spec, node in zip(subject.outputs, returned, strict=True):
        if isinstance(node, Node) and free_unbacked_symbols(node.meta["val"].shape):
            raise SubjectError(f"the size of the output {spec} depends on values. {FIXED_SIZE}")
    return program


def _refusal(subject: ModelUnderTest, error: str) -> str:
    axes = ", ".join(["batch", *variable_axes(subject.inputs)])
    advice = ""
    if "data-dependent" in error.lower():
        advice = f" {FIXED_SIZE}."
    elif "constraints violated" in error.lower() and axes != "batch":
        advice = (
            " Axes that must be equal need one name (--input NAME=DATATYPE[-1,NAME=LOW..HIGH]); "
            "an axis whose size must be a multiple of a number, or is fixed, as a recurrent "
            "layer's steps are, cannot be variable: declare its size, and pad the samples to it."
        )
    return (
        f"torch.export cannot export {subject.name} with the dynamic axes {axes}.{advice} Its "
        f"message: {error}"
    )


def free_axes(subject: ModelUnderTest) -> tuple[object, ...]:
    """The free axes of each input: the first axis, which is the batch, and the declared ones."""
    sizes = {
        name: torch.export.Dim(name, min=low, max=high)
        for name, (low, high) in variable_axes(subject.inputs).items()
    }
    axes: tuple[object, ...] = tuple(
        {0: BATCH} | {index: sizes[name] for index, name in spec.axes.items()}
        for spec in subject.inputs
    )
    # A forward(*inputs) has one parameter, which is a tuple.
    return (axes,) if subject.factory else axes


def save_pt2(program: torch.export.ExportedProgram, path: Path) -> None:
    """Save the program without the paths of the machine that exported it.

    Args:
        program: From ``export_program``.
        path: The file to write; its stem becomes a part of the content, so keep it fixed.
    """
    program = copy.deepcopy(program)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    with warnings.catch_warnings():
        # This warns of a constant that is a view of a larger tensor; on the CPU it is harmless.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(program, path)
