"""Cost of an image: parameters, multiply-adds, and time relative to the base group."""

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from training.compare.schema import BatchTime, Cost
from training.describe import describe
from training.evaluation.statistics import Interval

BATCHES = (1, 64)
LEAST_S = 0.02  # shortest timing: far above the clock's resolution and the cost of one call
US_PER_S = 1_000_000
IMAGE_SHAPE = (1, 28, 28)


def measure_costs(modules: Mapping[str, nn.Module], base: str, rounds: int) -> dict[str, Cost]:
    """Measure the cost of each module, in evaluation mode on its device.

    The modules take turns within a round, each round starts with another module, and ratios are
    computed within a round, so other load on the machine affects all modules alike. One CPU thread
    is used, because threads that wait for each other would mostly measure that other load.

    Args:
        modules: The modules by name, all on one device.
        base: Name of the module that times are relative to.
        rounds: Number of rounds, at least 1.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = {batch: _rounds(modules, batch, rounds) for batch in BATCHES}
    finally:
        torch.set_num_threads(threads)
    return {
        name: Cost(
            parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
            multiply_adds=describe(module, [IMAGE_SHAPE]).totals.multiply_adds,
            times=[
                _batch_time(batch, [one[name] for one in seen], [one[base] for one in seen])
                for batch, seen in times.items()
            ],
        )
        for name, module in modules.items()
    }


def _batch_time(batch: int, own_s: Sequence[float], base_s: Sequence[float]) -> BatchTime:
    """Summarise the times of a module and of the base, in seconds per call, one per round."""
    ratios = [own / base for own, base in zip(own_s, base_s, strict=True)]
    quartiles = statistics.quantiles(ratios, method="inclusive") if len(ratios) > 1 else ratios * 3
    return BatchTime(
        batch=batch,
        us_per_image=statistics.median(own_s) / batch * US_PER_S,
        ratio=statistics.median(ratios),
        interval=Interval(low=quartiles[0], high=quartiles[2]),
    )


@torch.inference_mode()
def _rounds(modules: Mapping[str, nn.Module], batch: int, rounds: int) -> list[dict[str, float]]:
    """Time all modules in every round; returns seconds per call by name, one entry per round."""
    device = next(next(iter(modules.values())).parameters()).device
    generator = torch.Generator().manual_seed(0)
    x_NCHW = torch.randn(batch, *IMAGE_SHAPE, generator=generator).to(device)
    names = list(modules)
    calls = {name: _calls(module, x_NCHW) for name, module in modules.items()}
    seen = []
    for number in range(rounds):
        turn = number % len(names)
        one: dict[str, float] = {}
        for name in names[turn:] + names[:turn]:
            one[name] = _seconds(modules[name], x_NCHW, calls[name]) / calls[name]
        seen.append(one)
    return seen


def _calls(module: nn.Module, x_NCHW: Tensor) -> int:
    """Number of calls that take long enough to be timed; finding it warms the module up."""
    calls = 1
    while _seconds(module, x_NCHW, calls) < LEAST_S:
        calls *= 2
    return calls


def _seconds(module: nn.Module, x_NCHW: Tensor, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        module(x_NCHW)
    if x_NCHW.is_cuda:
        torch.cuda.synchronize(x_NCHW.device)
    return time.perf_counter() - start
