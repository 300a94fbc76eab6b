"""TorchScript by tracing. Deprecated by PyTorch in favour of torch.export; kept for its readers."""

import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from export.servable import ServableModel, example_images


def export_torchscript(model: ServableModel, path: Path) -> None:
    """Trace the model in a fresh process and save it; any batch size can be run.

    The names of the classes in the file count the traces that a process has made, and nothing
    sets that count back: only a process's first trace gives the same bytes each time.

    Args:
        model: In evaluation mode, on the CPU, float32.
        path: Where to; its stem becomes a part of the content, so keep it fixed.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as fresh_process:
        fresh_process.submit(_trace_and_save, model, path).result()


def _trace_and_save(model: ServableModel, path: Path) -> None:
    with warnings.catch_warnings():
        # Every entry to TorchScript warns of its deprecation; this module's docstring says it.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        with torch.no_grad():
            traced = torch.jit.trace(model, (example_images(),))
        torch.jit.save(traced, str(path))
