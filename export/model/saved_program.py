"""Use a bundle's exported program as the module under test, if the caller trusts the bundle.

``torch.export.load`` can run code from a prepared file: it unpickles constants and sample inputs,
evaluates symbolic expressions as Python and calls any function below ``torch`` by its name.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from export.bundle.manifest import BundleError
from export.bundle.store import Bundle
from export.model.sizes import with_sizes
from export.model.under_test import ModelUnderTest, read_samples

Program = torch.export.ExportedProgram
WRAPPER = "module."  # ``signature.Positional`` wraps the module whose weights were saved


def from_program(bundle: Bundle, samples: Sequence[Path]) -> tuple[ModelUnderTest, Program]:
    """Load the module and the program of a trusted bundle's model.pt2.

    Args:
        bundle: An opened bundle whose author the caller trusts.
        samples: The sample files that the bundle was proven on.

    Raises:
        BundleError: The bundle has no such program, or the program's weights are not the bundle's.
        SubjectError: The samples cannot be used.
    """
    path, manifest = bundle.model_path("pt2"), bundle.manifest
    try:
        program = torch.export.load(path)
    except Exception as error:  # PyTorch's loader raises many classes
        raise BundleError(f"{path} is not a model that can be run: {error}") from error
    _hold_the_weights(program, bundle.path("weights"), path)
    subject = ModelUnderTest(
        name=manifest.name,
        module=program.module(),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        labels=manifest.labels,
        weights=bundle.path("weights"),
        samples=with_sizes(manifest.inputs, read_samples(samples)),
        calibration=None,
        factory=manifest.factory,
    )
    return replace(subject, task=manifest.task), program


def _hold_the_weights(program: Program, weights: Path, path: Path) -> None:
    """Raise BundleError unless the program's tensors are the safetensors file's, bit for bit."""
    expected = load_file(weights)
    found = {name.removeprefix(WRAPPER): t for name, t in program.state_dict.items()}
    for name in sorted(expected.keys() | found.keys()):
        tensor = found.get(name)
        if name not in expected or tensor is None:
            where = path.name if tensor is None else weights.name
            raise BundleError(f"{name} is not in {where}: give the module itself with --model")
        if not np.array_equal(tensor.detach().numpy(), expected[name]):
            raise BundleError(
                f"{name} of {path} differs from {weights.name}; build the bundle again"
            )
