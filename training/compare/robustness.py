"""Test images shifted, rotated, scaled, blurred and noised, and what networks still read.

Shape suffixes: N images, C channels (1), H and W pixels, A the 2x3 of an affine map.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.compare.figures import falls_below
from training.compare.result import Curve, GroupCurve
from training.data import standardise
from training.evaluation.statistics import spread

BATCH_IMAGES = 1_000
FALL = 0.9  # the accuracy whose place is told
NOISE_SEED = 20_132
BLUR_REACH = 3  # standard deviations of the Gaussian on each side


class Distortion(NamedTuple):
    """A way to spoil images.

    Attributes:
        name: For headings.
        unit: Of the levels.
        how: What is done, in words.
        neutral: The level that changes nothing.
        levels: Ascending, the neutral one among them.
        versions: float [N, 1, H, W] in 0..1 and a level to the pictures that count alike (a
            shift's four directions).
    """

    name: str
    unit: str
    how: str
    neutral: float
    levels: tuple[float, ...]
    versions: Callable[[Tensor, float], Iterator[Tensor]]


@torch.inference_mode()
def read_pixels(module: nn.Module, pixels_NCHW: Tensor) -> Tensor:
    """Logits, float32 [N, 10] on the CPU, of pixels in 0..1, float [N, 1, 28, 28].

    The module must be in evaluation mode.
    """
    device = next(module.parameters()).device
    batches = pixels_NCHW.split(BATCH_IMAGES)
    return torch.cat([module(standardise(batch.to(device))).cpu() for batch in batches])


def shifted(pixels_NCHW: Tensor, right: int, down: int) -> Tensor:
    """Whole pixels to the right and down (negative: left, up); ground (0) comes in."""
    height, width = pixels_NCHW.shape[-2:]
    moved = torch.zeros_like(pixels_NCHW)
    rows_to, rows_from = slice(max(0, down), height + min(0, down)), _source(down, height)
    columns_to, columns_from = slice(max(0, right), width + min(0, right)), _source(right, width)
    moved[..., rows_to, columns_to] = pixels_NCHW[..., rows_from, columns_from]
    return moved


def _source(offset: int, size: int) -> slice:
    return slice(max(0, -offset), size - max(0, offset))


def affine(pixels_NCHW: Tensor, angle_deg: float, size: float) -> Tensor:
    """Turned by degrees, counter-clockwise, and ``size`` times as large, about the centre."""
    angle = math.radians(angle_deg)
    cos, sin = math.cos(angle) / size, math.sin(angle) / size
    # The map leads from a place in the result to the place in the source.
    map_NA = torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]]).expand(len(pixels_NCHW), 2, 3)
    grid = functional.affine_grid(map_NA, list(pixels_NCHW.shape), align_corners=False)
    return functional.grid_sample(
        pixels_NCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


def blurred(pixels_NCHW: Tensor, sigma_px: float) -> Tensor:
    """Convolved with a Gaussian of this standard deviation, which sums to 1."""
    reach = math.ceil(BLUR_REACH * sigma_px)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    line = torch.exp(-(offsets**2) / (2 * sigma_px**2))
    line = line / line.sum()
    down = functional.conv2d(pixels_NCHW, line.reshape(1, 1, -1, 1), padding=(reach, 0))
    return functional.conv2d(down, line.reshape(1, 1, 1, -1), padding=(0, reach))


def noised(pixels_NCHW: Tensor, deviation: float) -> Tensor:
    """Gaussian noise of this standard deviation added, cut off at 0 and 1; always the same draw."""
    generator = torch.Generator().manual_seed(NOISE_SEED)
    noise = torch.randn(pixels_NCHW.shape, generator=generator)
    return (pixels_NCHW + deviation * noise).clamp(0, 1)


def _shifts(pixels_NCHW: Tensor, level: float) -> Iterator[Tensor]:
    step = int(level)
    for right, down in ((step, 0), (-step, 0), (0, step), (0, -step)):
        yield shifted(pixels_NCHW, right, down)


def _rotations(pixels_NCHW: Tensor, level: float) -> Iterator[Tensor]:
    for angle in (level, -level):
        yield affine(pixels_NCHW, angle, 1.0)


def _scales(pixels_NCHW: Tensor, level: float) -> Iterator[Tensor]:
    yield affine(pixels_NCHW, 0.0, level)


def _blurs(pixels_NCHW: Tensor, level: float) -> Iterator[Tensor]:
    yield blurred(pixels_NCHW, level)


def _noises(pixels_NCHW: Tensor, level: float) -> Iterator[Tensor]:
    yield noised(pixels_NCHW, level)


DISTORTIONS = (
    Distortion(
        name="shift",
        unit="pixels",
        how="moved left, right, up and down; the mean of the four is shown",
        neutral=0.0,
        levels=tuple(float(step) for step in range(9)),
        versions=_shifts,
    ),
    Distortion(
        name="rotation",
        unit="degrees",
        how="turned about the centre, both ways; the mean is shown",
        neutral=0.0,
        levels=(0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0),
        versions=_rotations,
    ),
    Distortion(
        name="scale",
        unit="times the size",
        how="made smaller or larger about the centre",
        neutral=1.0,
        levels=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5),
        versions=_scales,
    ),
    Distortion(
        name="blur",
        unit="pixels",
        how="convolved with a Gaussian of this standard deviation",
        neutral=0.0,
        levels=(0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0),
        versions=_blurs,
    ),
    Distortion(
        name="noise",
        unit="of full ink",
        how="given Gaussian noise of this standard deviation, cut off at paper and full ink",
        neutral=0.0,
        levels=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8),
        versions=_noises,
    ),
)


def examples(distortion: Distortion, pixels_NCHW: Tensor) -> list[Tensor]:
    """The first version of the images at every level, each float [N, 1, 28, 28] in 0..1."""
    return [
        pixels_NCHW
        if level == distortion.neutral
        else next(distortion.versions(pixels_NCHW, level))
        for level in distortion.levels
    ]


def distorted_curve(
    distortion: Distortion,
    groups: Mapping[str, Sequence[nn.Module]],
    pixels_NCHW: Tensor,
    labels: Tensor,
) -> Curve:
    """Accuracy of every network at every level of one distortion.

    Args:
        distortion: What is done to the images.
        groups: Networks in evaluation mode, by group and by seed.
        pixels_NCHW: float [N, 1, 28, 28] in 0..1, on the CPU, with some ink in it.
        labels: int64 [N].
    """
    modules = [(name, module) for name, seeds in groups.items() for module in seeds]
    plain = [read_pixels(module, pixels_NCHW).argmax(1) for _, module in modules]
    # [level][network]: share right, and share of labels that stay.
    right: list[list[float]] = []
    same: list[list[float]] = []
    ink: list[float] = []
    for level in distortion.levels:
        neutral = level == distortion.neutral
        versions = [pixels_NCHW] if neutral else list(distortion.versions(pixels_NCHW, level))
        ink.append(sum(float(one.sum()) for one in versions) / len(versions))
        read = [[read_pixels(module, one).argmax(1) for one in versions] for _, module in modules]
        right.append([_share([one == labels for one in seen]) for seen in read])
        same.append(
            [_share([o == first for o in seen]) for seen, first in zip(read, plain, strict=True)]
        )
    whole = float(pixels_NCHW.sum())
    return Curve(
        distortion=distortion.name,
        unit=distortion.unit,
        how=distortion.how,
        neutral=distortion.neutral,
        levels=list(distortion.levels),
        ink_kept=[one / whole for one in ink],
        groups=[
            _group_curve(
                distortion, name, *(_columns(table, modules, name) for table in (right, same))
            )
            for name in groups
        ],
    )


def _share(hits: Sequence[Tensor]) -> float:
    return float(torch.cat(list(hits)).double().mean())


def _columns(
    table: Sequence[Sequence[float]], modules: Sequence[tuple[str, nn.Module]], name: str
) -> list[list[float]]:
    """Of [level][network], the networks of one group."""
    return [
        [value for value, (group, _) in zip(row, modules, strict=True) if group == name]
        for row in table
    ]


def _group_curve(
    distortion: Distortion, name: str, right: list[list[float]], same: list[list[float]]
) -> GroupCurve:
    accuracy = [spread(values) for values in right]
    means = [point.mean for point in accuracy]
    return GroupCurve(
        name=name,
        accuracy=accuracy,
        unchanged=[spread(values).mean for values in same],
        falls_below=falls_below(distortion.levels, means, distortion.neutral, FALL),
    )
