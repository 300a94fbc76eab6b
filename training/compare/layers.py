"""Extract the first layer's weights as pictures, and the first layers' outputs for an image.

Shape suffixes: N images, C channels, H and W pixels, U units, M maps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from training.data import IMAGE_SHAPE, standardise, to_pixels


class FirstLayer(NamedTuple):
    """The weights of a network's first layer as pictures.

    Attributes:
        name: The layer's name in the network.
        weights: float [U, H, W]: a convolution's kernels for its first input channel, or the 784
            weights of each unit of a dense layer as an image of 28x28.
        is_kernel: Whether the weights are a convolution's kernels.
    """

    name: str
    weights: Tensor
    is_kernel: bool


class Response(NamedTuple):
    """A layer's output for one image: float [M, H, W] maps, or float [U] units."""

    name: str
    values: Tensor


def first_layer(module: nn.Module) -> FirstLayer | None:
    """The weights of the first executed layer that has any; None if they cannot be drawn.

    They can be drawn if the layer is a 2D convolution or a dense layer of the 784 pixels.
    """
    found = _executed(module, torch.zeros(1, *IMAGE_SHAPE, dtype=torch.uint8))
    for name, layer, _ in found:
        if isinstance(layer, nn.Conv2d):
            return FirstLayer(name, layer.weight.detach()[:, 0].cpu(), True)
        if isinstance(layer, nn.Linear) and layer.in_features == IMAGE_SHAPE[0] * IMAGE_SHAPE[1]:
            return FirstLayer(name, layer.weight.detach().reshape(-1, *IMAGE_SHAPE).cpu(), False)
        if getattr(layer, "weight", None) is not None:
            return None
    return None


def responses(module: nn.Module, image_HW: Tensor, most: int) -> list[Response]:
    """Outputs of the first ``most`` ReLUs for an image, uint8 [28, 28], in order of execution."""
    found = _executed(module, image_HW.unsqueeze(0))
    relus = [(name, output[0]) for name, layer, output in found if isinstance(layer, nn.ReLU)]
    return [Response(name, output.cpu()) for name, output in relus[:most]]


def _executed(module: nn.Module, images_NHW: Tensor) -> Sequence[tuple[str, nn.Module, Tensor]]:
    """Run a module; returns name, leaf module and output in the order of execution."""
    names = {layer: name for name, layer in module.named_modules() if not any(layer.children())}
    seen: list[tuple[str, nn.Module, Tensor]] = []

    def note(layer: nn.Module, _: object, output: Tensor) -> None:
        if layer in names:
            seen.append((names[layer], layer, output.detach().clone()))

    device = next(module.parameters()).device
    with torch.no_grad(), register_module_forward_hook(note):
        module(standardise(to_pixels(images_NHW.to(device))))
    return seen
