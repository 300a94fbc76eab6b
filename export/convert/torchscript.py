"""TorchScript, traced and frozen. Deprecated by PyTorch in favour of torch.export.

Kept for those who load it today (libtorch in C++, older services); a new consumer takes ONNX or
.pt2.
"""

import copy
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from export.bundle.manifest import SubjectError
from export.model.under_test import ModelUnderTest
from export.worker import CONVERSION_S, Worker


class TracingError(SubjectError):
    """The module cannot be traced; says why."""


@contextmanager
def exported_torchscript(
    subject: ModelUnderTest, traced: Path, frozen: Path, worker: Worker
) -> Iterator[None]:
    """Trace and freeze in a fresh process while the block runs; after it, the files are there.

    The names of the classes in the file count the traces that a process has made, and nothing
    sets that count back: only a process's first trace gives the same bytes each time.

    Args:
        subject: What to trace; any batch size can be run afterwards.
        traced: Where to; its stem becomes a part of the content, so keep it fixed.
        frozen: The same for the frozen one: parameters have become constants, BatchNorm is folded
            into the convolution before it.
        worker: The process, which has traced nothing yet.

    Raises:
        TracingError: The module cannot be traced.
    """
    with ThreadPoolExecutor(max_workers=1) as lane:
        # A copy of its own: it is sent by a thread, while the block may export the original.
        arguments = (copy.deepcopy(subject.module), subject.example, traced, frozen)
        saved = lane.submit(worker.call, _trace_and_save, *arguments, timeout_s=CONVERSION_S)
        yield
        try:
            saved.result()
        except Exception as error:  # of pickling, of tracing: of somebody else's module
            raise TracingError(
                f"{subject.name} cannot be traced to TorchScript in a fresh process ({error})"
            ) from error


def _trace_and_save(
    module: nn.Module, example: tuple[Tensor, ...], traced_path: Path, frozen_path: Path
) -> None:
    with warnings.catch_warnings():
        # Every entry to TorchScript warns of its deprecation; this module's docstring says it.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        with torch.no_grad():
            traced = torch.jit.trace(module, example)
        torch.jit.save(traced, str(traced_path))
        torch.jit.save(torch.jit.freeze(traced), str(frozen_path))
    for path in (traced_path, frozen_path):
        _drop_debug_records(path)


def _drop_debug_records(path: Path) -> None:
    """Rewrite an archive without its debug records: they hold this machine's source paths.

    PyTorch has no switch for it. Its own reader and writer are used, so that alignment and the
    archive's identity are as it makes them.
    """
    reader = torch._C.PyTorchFileReader(str(path))
    records = {
        name: reader.get_record(name)
        for name in reader.get_all_records()
        # The last two are written by the writer itself.
        if not name.endswith((".debug_pkl", "version", ".data/serialization_id"))
    }
    # By an older format's version operators would be read as they were then: x / 255 of integers
    # was rounded down.
    format_version = int(reader.get_record("version"))
    del reader
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.set_min_version(format_version)
    for name, content in records.items():
        writer.write_record(name, content, len(content))
    writer.write_end_of_file()
