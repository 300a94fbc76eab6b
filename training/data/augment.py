"""Random distortion of a whole batch: one map per image, applied by one ``grid_sample``.

Shape suffixes: N images, C channels, H and W pixels, A the 2x3 matrix of an affine map.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from training.config import AugmentConfig

ELASTIC_POINTS = 5  # per side
# Sides of the coarser grids in pixels. If a digit is 8 pixels high and is enlarged to MNIST's 20,
# the image's 28 pixels correspond to a grid of 11.
COARSE_SIDES = (9, 11, 13, 18)
# Shares of full ink. At the greatest contrast, less than PAPER becomes 0 and more than FULL 1.
# PAPER also limits how far a faint image is brightened; columns above FULL are a digit's width.
PAPER, FULL = 0.2, 0.6
BOX = 20  # pixels per side of the box that MNIST's digits are scaled to


def augment(
    pixels_NCHW: Tensor,
    config: AugmentConfig,
    generator: torch.Generator,
    processes: int = 1,
    share: Callable[[Tensor], Tensor] = lambda draws: draws,
) -> Tensor:
    """Distort each image by its own random draw; background (0) fills what moves into view.

    Args:
        pixels_NCHW: float [N, C, H, W] in 0..1, H = W.
        config: The limits of the draws.
        generator: The random generator, on the tensor's device.
        processes: Number of processes that share the batch; it does not affect an image's draws.
        share: Selects the draws of this process's images from the whole batch's, on the first axis.

    Returns:
        float [N, C, H, W] in 0..1: a new tensor, or the given one if all limits are zero.
    """
    if config.is_off:
        return pixels_NCHW
    batch, size, device = len(pixels_NCHW) * processes, pixels_NCHW.shape[-1], pixels_NCHW.device
    whole = torch.rand(6, batch, device=device, generator=generator)
    widths_N = torch.ones(len(pixels_NCHW), device=device)
    if config.stretch:
        draws_N = share(torch.rand(batch, device=device, generator=generator))
        widths_N = _widths(pixels_NCHW, draws_N * 4 / 3 - 1 / 3, config.stretch)
    grid = _affine_grid(share(whole.T).T * 2 - 1, widths_N, config, pixels_NCHW)
    if config.elastic_px:
        shape = (batch, 2, ELASTIC_POINTS, ELASTIC_POINTS)
        points = share(torch.randn(shape, device=device, generator=generator))
        grid = grid + elastic_field(points, size) * (config.elastic_px * 2 / size)
    moved_NCHW = functional.grid_sample(
        pixels_NCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    if config.stroke:
        draws_N = share(torch.rand(batch, device=device, generator=generator))
        moved_NCHW = _with_strokes(moved_NCHW, draws_N * 1.5 * config.stroke - 0.5 * config.stroke)
    if config.coarse_share:
        draws_N3 = share(torch.rand(batch, 3, device=device, generator=generator))
        coarse_NCHW = _coarse(moved_NCHW, draws_N3[:, 1], draws_N3[:, 2])
        moved_NCHW = _choose(draws_N3[:, 0] < config.coarse_share, coarse_NCHW, moved_NCHW)
    if not config.clean_share:
        return moved_NCHW
    clean_N = share(torch.rand(batch, device=device, generator=generator)) < config.clean_share
    return _choose(clean_N, pixels_NCHW, moved_NCHW)


def _choose(mask_N: Tensor, first_NCHW: Tensor, second_NCHW: Tensor) -> Tensor:
    """Select images of the first tensor where the mask is True, else of the second."""
    return torch.where(mask_N[:, None, None, None], first_NCHW, second_NCHW)


def _with_strokes(pixels_NCHW: Tensor, growth_N: Tensor) -> Tensor:
    """Thicken strokes (growth up to 1: one pixel on each side) or thin them (down to -1)."""
    grown = functional.max_pool2d(pixels_NCHW, 3, stride=1, padding=1)
    shrunk = -functional.max_pool2d(-pixels_NCHW, 3, stride=1, padding=1)
    growth = growth_N[:, None, None, None]
    target = torch.where(growth > 0, grown, shrunk)
    return torch.lerp(pixels_NCHW, target, growth.abs())


def _coarse(pixels_NCHW: Tensor, side_N: Tensor, contrast_N: Tensor) -> Tensor:
    """Resample through a coarser grid, normalise the ink, add contrast; draws are in 0..1."""
    matrices = _resampling(pixels_NCHW.shape[-1], pixels_NCHW.device)
    # Resampling is linear and the same along both axes: two matrix products per image.
    matrix_N1HH = matrices[(side_N * len(COARSE_SIDES)).long(), None]
    coarse = matrix_N1HH @ pixels_NCHW @ matrix_N1HH.mT
    coarse = coarse / coarse.amax((1, 2, 3), keepdim=True).clamp(min=PAPER)
    contrast = contrast_N[:, None, None, None]
    paper, full = PAPER * contrast, 1 - (1 - FULL) * contrast
    return ((coarse - paper) / (full - paper)).clamp(0, 1)


@cache
def _resampling(size: int, device: torch.device) -> Tensor:
    """Matrices that downsample and upsample an axis, float [len(COARSE_SIDES), size, size]."""
    unit = torch.eye(size, device=device)[None]
    return torch.stack(
        [
            functional.interpolate(
                functional.interpolate(unit, side, mode="area")[None],
                (size, size),
                mode="bicubic",
                align_corners=False,
            )[0, 0].T
            for side in COARSE_SIDES
        ]
    )


def _widths(pixels_NCHW: Tensor, draws_N: Tensor, limit: float) -> Tensor:
    """Factor by which each digit is widened, within MNIST's box, or narrowed; float [N].

    Args:
        pixels_NCHW: The images.
        draws_N: Draws in -1/3..1; a negative one narrows the digit by this share of ``limit``.
        limit: The greatest share by which a digit is widened; narrowing uses 1 at most.
    """
    columns_N = (pixels_NCHW.amax((1, 2)) > FULL).sum(1)
    room_N = (BOX / columns_N.clamp(min=1) - 1).clamp(0, limit)
    return 1 + torch.where(draws_N > 0, draws_N * room_N, draws_N * min(limit, 1))


def _affine_grid(
    draws: Tensor, widths_N: Tensor, config: AugmentConfig, pixels_NCHW: Tensor
) -> Tensor:
    """Source coordinates of each pixel, float [N, H, W, 2].

    Args:
        draws: float [6, N] in -1..1.
        widths_N: Factor by which each image is widened, in addition to its drawn scale.
        config: The limits.
        pixels_NCHW: The images; only their shape matters.
    """
    angle = draws[0] * math.radians(config.rotation_deg)
    scale_x = (1 + draws[1] * config.scale) / widths_N
    scale_y = 1 + draws[2] * config.scale
    shear = draws[3] * config.shear
    # affine_grid's coordinates run from -1 to 1 across the image, so one pixel is 2 / size.
    shift_x, shift_y = draws[4:] * config.shift_px * 2 / pixels_NCHW.shape[-1]
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.stack([cos * scale_x, (cos * shear - sin) * scale_y, shift_x], dim=1)
    row_y = torch.stack([sin * scale_x, (sin * shear + cos) * scale_y, shift_y], dim=1)
    map_NA = torch.stack([row_x, row_y], dim=1)
    return functional.affine_grid(map_NA, list(pixels_NCHW.shape), align_corners=False)


def elastic_field(points: Tensor, size: int) -> Tensor:
    """Smooth displacements, float [N, size, size, 2], interpolated from those of a few points.

    Args:
        points: Displacements, float [N, 2, ELASTIC_POINTS, ELASTIC_POINTS].
        size: Pixels per side.
    """
    curves = _curves(size, points.device)  # ten times as fast as `interpolate`
    return torch.einsum("hp,ncpq,wq->nhwc", curves, points, curves)


@cache
def _curves(size: int, device: torch.device) -> Tensor:
    """Bicubic weight of each point along an axis, float [size, ELASTIC_POINTS]."""
    unit = torch.eye(ELASTIC_POINTS, device=device)[None, None]
    to = (size, ELASTIC_POINTS)
    return functional.interpolate(unit, to, mode="bicubic", align_corners=True)[0, 0]
