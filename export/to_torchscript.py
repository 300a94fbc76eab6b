"""TorchScript by tracing. Deprecated by PyTorch in favour of torch.export; kept for its readers."""

import warnings
from pathlib import Path

import torch

from export.servable import ServableModel, example_images


def export_torchscript(model: ServableModel, path: Path) -> None:
    """Trace the model and save it; any batch size can be run.

    Args:
        model: In evaluation mode, on the CPU, float32.
        path: Where to; its stem becomes a part of the content, so keep it fixed.
    """
    # Class names in the file count how many traces the process has seen: start from none, so
    # that the same checkpoint gives the same bytes.
    torch._C._jit_clear_class_registry()
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
    torch.jit._state._clear_class_state()
    with warnings.catch_warnings():
        # Every entry to TorchScript warns of its deprecation; the manifest's reader is told too.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(model, (example_images(),))
        torch.jit.save(traced, str(path))
