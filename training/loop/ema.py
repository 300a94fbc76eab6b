"""An exponential moving average of a network's weights, which is evaluated and saved instead."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged_model(module: nn.Module, decay: float) -> AveragedModel:
    """Copy a module; ``update_parameters`` moves the copy's weights towards the module's.

    Each update sets an average to ``decay`` times its old value plus 1 - ``decay`` times the new
    value, so it spans about 1 / (1 - decay) updates. It spans fewer at the beginning: before
    update n the decay is at most (1 + n) / (10 + n), as in TensorFlow's
    ``ExponentialMovingAverage(num_updates=n)``. Running statistics of batch normalisation are
    averaged like weights; values that are not floats (its count of batches) are copied.

    Args:
        module: The module that is trained, on its device.
        decay: Decay of the average, 0..1.
    """

    def update(averages: Sequence[Tensor], values: Sequence[Tensor], _: Tensor | int) -> None:
        if not averages[0].is_floating_point():
            torch._foreach_copy_(list(averages), list(values))
            return
        # ``n_averaged`` is on the CPU, whatever the module's device, so no step waits for it.
        updates = int(averaged.n_averaged)
        weight = 1 - min(decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(list(averages), list(values), weight)

    averaged = AveragedModel(module, multi_avg_fn=update, use_buffers=True)
    return averaged
