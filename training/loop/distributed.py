"""Several processes that train one network together, as ``torchrun`` starts them.

    torchrun --nproc-per-node 2 -m training train --model cnn

Each process takes an equal share of every batch; gradients are averaged (DistributedDataParallel),
so that an update is the one that a single process makes of the whole batch, but for the order of
its sums. What cannot be the same: dropout draws for each share independently (each process seeds
its layers), and batch normalisation takes its statistics from a share (the first process's running
statistics are kept).

Every process reads the data and, with ``--resume``, the state of the run: on several machines the
checkpoint's folder must be one that all of them see. Only the first process writes and prints.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

# Set by torchrun (PyTorch's documentation, "torchrun", environment variables).
SIZE, LOCAL_RANK = "WORLD_SIZE", "LOCAL_RANK"


@dataclass(frozen=True)
class DistributedContext:
    """The processes of a run: their number, and the rank of this one, from 0."""

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
        """The sum of all processes' figures; the same in each."""
        if self.size > 1:
            distributed.all_reduce(figure)
        return figure

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The module as it must be called for gradients to be averaged."""
        return DistributedDataParallel(module) if self.size > 1 else module

    def require_equal_shares(self, batch_size: int) -> None:
        """Raise ``ValueError`` unless the processes' number divides the batch."""
        if batch_size % self.size:
            raise ValueError(
                f"batch_size {batch_size} gives no equal shares to {self.size} processes: take a "
                f"multiple of {self.size}"
            )


SINGLE = DistributedContext()


def current_context() -> DistributedContext:
    """The context that this process has joined."""
    if not distributed.is_initialized():
        return SINGLE
    return DistributedContext(distributed.get_rank(), distributed.get_world_size())


@contextmanager
def init_distributed(device: torch.device) -> Iterator[tuple[DistributedContext, torch.device]]:
    """Join the processes that torchrun started; a single process without it.

    Args:
        device: What was asked for.

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
        # DistributedDataParallel is part of reference cycles and holds the group: collected only
        # when Python ends, the group's threads would abort the process.
        gc.collect()
        distributed.destroy_process_group()
