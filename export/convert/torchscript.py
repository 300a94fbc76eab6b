"""Export TorchScript, traced and frozen. PyTorch deprecates it in favour of torch.export.

It is kept for programs that load it today (libtorch in C++, older services); new ones should load
ONNX or .pt2.
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
    """The module cannot be traced; the message says why."""


@contextmanager
def exported_torchscript(
    subject: ModelUnderTest, traced: Path, frozen: Path, worker: Worker
) -> Iterator[None]:
    """Trace and freeze in a fresh process while the block runs; the files exist when it ends.

    The class names in the file contain the number of traces that the process has made, which cannot
    be reset: only the first trace of a process gives the same bytes each time.

    Args:
        subject: The model to trace; the files run with any batch size.
        traced: The traced file; its stem becomes a part of the content, so keep it fixed.
        frozen: The frozen file, likewise: its parameters are constants, and BatchNorm is folded
            into the convolution before it.
        worker: A process that has not traced anything yet.

    Raises:
        TracingError: The module cannot be traced.
    """
    with ThreadPoolExecutor(max_workers=1) as lane:
        # A thread pickles this copy, while the block may export the original.
        arguments = (copy.deepcopy(subject.module), subject.example, traced, frozen)
        saved = lane.submit(worker.call, _trace_and_save, *arguments, timeout_s=CONVERSION_S)
        yield
        try:
            saved.result()
        except Exception as error:  # pickling and tracing raise many classes
            raise TracingError(
                f"{subject.name} cannot be traced to TorchScript in a new process ({error})"
            ) from error


def _trace_and_save(
    module: nn.Module, example: tuple[Tensor, ...], traced_path: Path, frozen_path: Path
) -> None:
    with warnings.catch_warnings():
        # Every call to TorchScript warns of its deprecation; see this module's docstring.
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

    PyTorch has no option for this. Its own reader and writer are used, so that the alignment and
    the archive's id are the ones that PyTorch writes.
    """
    reader = torch._C.PyTorchFileReader(str(path))
    records = {
        name: reader.get_record(name)
        for name in reader.get_all_records()
        # The writer adds the last two itself.
        if not name.endswith((".debug_pkl", "version", ".data/serialization_id"))
    }
    # With an older format version, operators would behave as they did then: x / 255 of integers
    # was rounded down.
    format_version = int(reader.get_record("version"))
    del reader
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.set_min_version(format_version)
    for name, content in records.items():
        writer.write_record(name, content, len(content))
    writer.write_end_of_file()
