"""TorchScript by tracing. Deprecated by PyTorch in favour of torch.export; kept for its readers."""

import copy
import multiprocessing
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from export.servable import ServableModel, example_images


@contextmanager
def exported_torchscript(model: ServableModel, path: Path) -> Iterator[None]:
    """Trace the model in a fresh process while the block runs; after it, the file is there.

    The names of the classes in the file count the traces that a process has made, and nothing
    sets that count back: only a process's first trace gives the same bytes each time.

    Args:
        model: In evaluation mode, on the CPU, float32; any batch size can be run afterwards.
        path: Where to; its stem becomes a part of the content, so keep it fixed.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as fresh_process:
        # A copy of its own: it is sent by a thread, while the block may export the original.
        traced = fresh_process.submit(_trace_and_save, copy.deepcopy(model), path)
        yield
        traced.result()


def _trace_and_save(model: ServableModel, path: Path) -> None:
    with warnings.catch_warnings():
        # Every entry to TorchScript warns of its deprecation; this module's docstring says it.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        with torch.no_grad():
            traced = torch.jit.trace(model, (example_images(),))
        torch.jit.save(traced, str(path))
