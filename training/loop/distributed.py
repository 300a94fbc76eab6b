"""Train one network in several processes, which ``torchrun`` starts.

    torchrun --nproc-per-node 2 -m training train --model cnn

Each process takes an equal share of every batch, and gradients are averaged
(DistributedDataParallel). So an update equals that of a single process with the whole batch, up to
the order of summation. Two things differ: dropout is drawn independently for each share (each
process seeds its layers), and batch normalisation computes its statistics from one share (the
first process's running statistics are kept).

Every process reads the data and, with ``--resume``, the state of the run. On several machines, the
checkpoint's folder must be shared by all. Only the first process writes and prints.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

# Environment variables that torchrun sets (PyTorch's documentation, "torchrun").
SIZE, LOCAL_RANK = "WORLD_SIZE", "LOCAL_RANK"


@dataclass(frozen=True)
class DistributedContext:
    """The number of a run's processes, and the rank of this one, from 0."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch, along the first axis."""
        return batch[self.rank :: self.size]

    def total(self, figure: Tensor) -> Tensor:
        """The sum of a tensor over all processes; the result is the same in each."""
        if self.size > 1:
            distributed.all_reduce(figure)
        return figure

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The module to call so that gradients are averaged over the processes."""
        return DistributedDataParallel(module) if self.size > 1 else module

    def require_equal_shares(self, batch_size: int) -> None:
        """Raise ``ValueError`` unless the batch size is a multiple of the number of processes."""
        if batch_size % self.size:
            raise ValueError(
                f"batch_size {batch_size} cannot be divided equally among {self.size} processes; "
                f"use a multiple of {self.size}"
            )


SINGLE = DistributedContext()


def current_context() -> DistributedContext:
    """The context that this process has joined."""
    if not distributed.is_initialized():
        return SINGLE
    return DistributedContext(distributed.get_rank(), distributed.get_world_size())


@contextmanager
def init_distributed(device: torch.device) -> Iterator[tuple[DistributedContext, torch.device]]:
    """Join the processes that torchrun started; without torchrun, run as a single process.

    Args:
        device: The requested device.

    Yields:
        The context, and this process's own device.
    """
    if int(os.environ.get(SIZE, "1")) == 1:
        yield SINGLE, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ[LOCAL_RANK]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield current_context(), device
        distributed.barrier()  # no process leaves while another still sends to it
    finally:
        # DistributedDataParallel is part of reference cycles and holds the group. If they were
        # collected only at exit, the group's threads would abort the process.
        gc.collect()
        distributed.destroy_process_group()
