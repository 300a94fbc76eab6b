"""Random distortion of a whole batch at once: one map an image, one ``grid_sample``.

Shape suffixes: N images, C channels, H and W pixels, A the 2x3 of an affine map.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from training.config import AugmentConfig

ELASTIC_POINTS = 5  # a side


def augment(
    pixels_NCHW: Tensor,
    config: AugmentConfig,
    generator: torch.Generator,
    processes: int = 1,
    share: Callable[[Tensor], Tensor] = lambda draws: draws,
) -> Tensor:
    """Rotate, scale, shear, shift and bend each image by its own draw; ground (0) fills the rim.

    Args:
        pixels_NCHW: float [N, C, H, W] in 0..1, H = W.
        config: The limits of the draws.
        generator: What to draw from, on the tensor's device.
        processes: How many share the batch which these images are a part of: what is drawn for an
            image does not depend on their number.
        share: Takes these images' part of what was drawn for the whole batch, first axis.

    Returns:
        float [N, C, H, W] in 0..1, a new tensor (the given one if all limits are zero).
    """
    if config.is_off:
        return pixels_NCHW
    batch, size, device = len(pixels_NCHW) * processes, pixels_NCHW.shape[-1], pixels_NCHW.device
    whole = torch.rand(6, batch, device=device, generator=generator)
    grid = _affine_grid(share(whole.T).T * 2 - 1, config, pixels_NCHW)
    if config.elastic_px:
        shape = (batch, 2, ELASTIC_POINTS, ELASTIC_POINTS)
        points = share(torch.randn(shape, device=device, generator=generator))
        grid = grid + elastic_field(points, size) * (config.elastic_px * 2 / size)
    moved_NCHW = functional.grid_sample(
        pixels_NCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    if not config.clean_share:
        return moved_NCHW
    clean_N = share(torch.rand(batch, device=device, generator=generator)) < config.clean_share
    return torch.where(clean_N[:, None, None, None], pixels_NCHW, moved_NCHW)


def _affine_grid(draws: Tensor, config: AugmentConfig, pixels_NCHW: Tensor) -> Tensor:
    """Where each pixel is taken from, float [N, H, W, 2]; draws float [6, N] in -1..1."""
    angle = draws[0] * math.radians(config.rotation_deg)
    scale_x = 1 + draws[1] * config.scale
    scale_y = 1 + draws[2] * config.scale
    shear = draws[3] * config.shear
    # affine_grid's coordinates run from -1 to 1 over the image: a pixel is 2 / size of them.
    shift_x, shift_y = draws[4:] * config.shift_px * 2 / pixels_NCHW.shape[-1]
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.stack([cos * scale_x, (cos * shear - sin) * scale_y, shift_x], dim=1)
    row_y = torch.stack([sin * scale_x, (sin * shear + cos) * scale_y, shift_y], dim=1)
    map_NA = torch.stack([row_x, row_y], dim=1)
    return functional.affine_grid(map_NA, list(pixels_NCHW.shape), align_corners=False)


def elastic_field(points: Tensor, size: int) -> Tensor:
    """Smooth displacements, float [N, size, size, 2], through those of a few points.

    Args:
        points: float [N, 2, ELASTIC_POINTS, ELASTIC_POINTS].
        size: Pixels a side.
    """
    curves = _curves(size, points.device)  # ten times as fast as `interpolate`
    return torch.einsum("hp,ncpq,wq->nhwc", curves, points, curves)


@cache
def _curves(size: int, device: torch.device) -> Tensor:
    """What each point adds along an axis, float [size, ELASTIC_POINTS]: a bicubic curve."""
    unit = torch.eye(ELASTIC_POINTS, device=device)[None, None]
    to = (size, ELASTIC_POINTS)
    return functional.interpolate(unit, to, mode="bicubic", align_corners=True)[0, 0]
