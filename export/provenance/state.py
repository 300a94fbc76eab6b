"""Compare TorchScript and .pt2 files, which keep the tensors' names, with a checkpoint."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from export.bundle.metrics import Array, Arrays
from export.model.program import Program
from export.provenance.figures import Outcome, WeightFigures, is_float, same_bits, where


def state_arrays(module: nn.Module) -> Arrays:
    """A module's tensors by name."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}


def program_arrays(program: Program) -> Arrays:
    """All tensors of a program by name, including constants that are not in its state."""
    kept = {**program.state_dict, **program.constants}
    return {n: t.detach().numpy() for n, t in kept.items() if isinstance(t, Tensor)}


def frozen_constants(script: Any) -> Arrays:
    """The constants of a frozen TorchScript module, whose tensors have lost their names."""
    return {
        node.output().debugName(): node.t("value").detach().cpu().numpy()
        for node in script.graph.findAllNodes("prim::Constant", recurse=True)
        if node.hasAttribute("value") and node.kindOf("value") == "t"
    }


def check_state(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> WeightFigures:
    """Compare a TorchScript module's or a program's tensors with the checkpoint's, by name."""
    outcome = Outcome()
    for name, expected in wanted.items():
        if name not in found:
            outcome.problems.append(f"{name} is not in the file")
        elif found[name].shape != expected.shape:
            outcome.problems.append(
                f"{name} has the shape {found[name].shape}, expected {expected.shape}"
            )
        elif not same_bits(found[name], expected):
            difference = where(found[name], expected)
            outcome.problems.append(f"{name} differs from the checkpoint: {difference}")
        else:
            outcome.counts["equal"] += 1
            outcome.counts["consumed"] += expected.size * is_float(expected)
    return outcome.figures()
