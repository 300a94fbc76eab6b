"""Random distortion of a whole batch at once: one map an image, one ``grid_sample``.

Shape suffixes: N images, C channels, H and W pixels, A the 2x3 of an affine map.
"""

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from training.config import AugmentConfig
from training.parallel import ALONE, World

ELASTIC_POINTS = 5  # a side


def distorted(
    pixels_NCHW: Tensor, config: AugmentConfig, generator: torch.Generator, world: World = ALONE
) -> Tensor:
    """Rotate, scale, shear, shift and bend each image by its own draw; ground (0) fills the rim.

    Args:
        pixels_NCHW: float [N, C, H, W] in 0..1, H = W.
        config: The limits of the draws.
        generator: What to draw from, on the tensor's device.
        world: The processes that share the batch which these images are a part of: what is drawn
            for an image does not depend on their number.

    Returns:
        float [N, C, H, W] in 0..1, a new tensor (the given one if all limits are zero).
    """
    if config.is_off:
        return pixels_NCHW
    count, size = pixels_NCHW.shape[0], pixels_NCHW.shape[-1]
    whole = torch.rand(6, count * world.size, device=pixels_NCHW.device, generator=generator)
    draws = whole[:, world.rank :: world.size] * 2 - 1
    angle = draws[0] * math.radians(config.rotation_deg)
    scale_x = 1 + draws[1] * config.scale
    scale_y = 1 + draws[2] * config.scale
    shear = draws[3] * config.shear
    # affine_grid's coordinates run from -1 to 1 over the image: a pixel is 2 / size of them.
    shift_x, shift_y = draws[4:] * config.shift_px * 2 / size
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.stack([cos * scale_x, (cos * shear - sin) * scale_y, shift_x], dim=1)
    row_y = torch.stack([sin * scale_x, (sin * shear + cos) * scale_y, shift_y], dim=1)
    map_NA = torch.stack([row_x, row_y], dim=1)
    grid = functional.affine_grid(map_NA, list(pixels_NCHW.shape), align_corners=False)
    if config.elastic_px:
        grid = grid + _bent(count, size, generator, world) * (config.elastic_px * 2 / size)
    moved_NCHW = functional.grid_sample(
        pixels_NCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    if not config.clean_share:
        return moved_NCHW
    lots = torch.rand(count * world.size, device=pixels_NCHW.device, generator=generator)
    clean_N = lots[world.rank :: world.size] < config.clean_share
    return torch.where(clean_N[:, None, None, None], pixels_NCHW, moved_NCHW)


def _bent(count: int, size: int, generator: torch.Generator, world: World) -> Tensor:
    """Smooth displacements, float [N, H, W, 2]: standard normal ones at a few points, joined."""
    shape = (count * world.size, 2, ELASTIC_POINTS, ELASTIC_POINTS)
    device = generator.device
    points = torch.randn(shape, device=device, generator=generator)[world.rank :: world.size]
    curves = _curves(size, device)  # a product with them is ten times as fast as `interpolate`
    return torch.einsum("hp,ncpq,wq->nhwc", curves, points, curves)


@cache
def _curves(size: int, device: torch.device) -> Tensor:
    """What each point adds along an axis, float [size, ELASTIC_POINTS]: a bicubic curve."""
    unit = torch.eye(ELASTIC_POINTS, device=device)[None, None]
    to = (size, ELASTIC_POINTS)
    return functional.interpolate(unit, to, mode="bicubic", align_corners=True)[0, 0]
