"""Several processes that train one network together, as ``torchrun`` starts them.

    torchrun --nproc-per-node 2 -m training train --model cnn

Each process takes an equal share of every batch; gradients are averaged (DistributedDataParallel),
so that an update is the one that a single process makes of the whole batch, but for the order of
its sums. What cannot be the same: dropout draws for each share by itself (each process seeds its
layers), and batch normalisation
takes its statistics from a share (the first process's running figures are kept).

Every process reads the data and, with ``--resume``, the state of the run: on several machines the
checkpoint's folder must be one that all of them see. Only the first process writes and speaks.
"""

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
class World:
    """The processes of a run, and which of them this one is.

    Attributes:
        rank: Of this process, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Is this the process that writes and speaks?"""
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

    def must_divide(self, batch_size: int) -> None:
        """Refuse a batch that gives no equal shares.

        Raises:
            ValueError: It does not.
        """
        if batch_size % self.size:
            raise ValueError(
                f"batch_size {batch_size} gives no equal shares to {self.size} processes: take a "
                f"multiple of {self.size}"
            )


ALONE = World()


def current() -> World:
    """The world that this process has joined."""
    if not distributed.is_initialized():
        return ALONE
    return World(distributed.get_rank(), distributed.get_world_size())


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Join the processes that torchrun started; alone without it.

    Args:
        device: What was asked for.

    Yields:
        The world, and this process's own device.
    """
    size = int(os.environ.get(SIZE, "1"))
    if size == 1:
        yield ALONE, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ[LOCAL_RANK]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield current(), device
    finally:
        distributed.destroy_process_group()
