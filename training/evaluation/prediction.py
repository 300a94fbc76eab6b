"""Predictions of networks on uint8 images, in batches.

Shape suffixes: N images, C channels, H and W pixels, K classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.data import standardise, to_pixels

BATCH_IMAGES = 1_000


def forward_tuple(model: Callable[..., Any], inputs_NCHW: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Call a module on standardised images, one tensor per input, and always return a tuple."""
    outputs = model(*inputs_NCHW)
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


@torch.no_grad()
def predict(model: nn.Module, *inputs_NHW: Tensor) -> tuple[Tensor, ...]:
    """Run a module in evaluation mode and return all its outputs, float32 on the CPU.

    The module's previous mode is restored afterwards.

    Args:
        model: A module that maps standardised images to a tensor or a tuple of tensors.
        inputs_NHW: Images for each of the module's inputs, uint8 [N, 28, 28].
    """
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    batches = []
    for parts_NHW in zip(*(images.split(BATCH_IMAGES) for images in inputs_NHW), strict=True):
        inputs_NCHW = [standardise(to_pixels(images_NHW.to(device))) for images_NHW in parts_NHW]
        batches.append([output.cpu() for output in forward_tuple(model, inputs_NCHW)])
    model.train(was_training)
    return tuple(torch.cat(outputs) for outputs in zip(*batches, strict=True))


def predict_logits(model: nn.Module, images_NHW: Tensor) -> Tensor:
    """Logits, float32 [N, 10] on the CPU, for uint8 images [N, 28, 28], in evaluation mode."""
    (logits_NK,) = predict(model, images_NHW)
    return logits_NK
