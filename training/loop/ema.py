"""An exponential moving average of a network's weights, measured and kept in the weights' place."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged_model(module: nn.Module, decay: float) -> AveragedModel:
    """A copy of a module whose weights follow the module's at each ``update_parameters``.

    An average is ``decay`` times itself and 1 - ``decay`` times the new value, so that it spans
    about 1 / (1 - decay) updates. Of the first updates the average has to span fewer: before
    update n the decay is at most (1 + n) / (10 + n), as in TensorFlow's
    ``ExponentialMovingAverage(num_updates=n)``. Running statistics of batch normalisation are
    averaged as weights are; numbers that are no floats (its count of batches) are copied.

    Args:
        module: What is trained; on its device.
        decay: 0..1.
    """

    def update(averages: Sequence[Tensor], values: Sequence[Tensor], _: Tensor | int) -> None:
        if not averages[0].is_floating_point():
            torch._foreach_copy_(list(averages), list(values))
            return
        # On the CPU, whatever the module's device: a step waits for nothing.
        updates = int(averaged.n_averaged)
        weight = 1 - min(decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(list(averages), list(values), weight)

    averaged = AveragedModel(module, multi_avg_fn=update, use_buffers=True)
    return averaged
