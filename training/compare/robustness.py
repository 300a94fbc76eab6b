"""Accuracy on test images that are shifted, rotated, scaled, blurred or noisy.

Shape suffixes: N images, C channels (1), H and W pixels.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from training.compare.schema import Curve, GroupCurve
from training.data import standardise
from training.evaluation.prediction import BATCH_IMAGES
from training.evaluation.statistics import spread

BOUND = 0.9  # the report states where the accuracy falls below it
NOISE_SEED = 20_132
BLUR_REACH = 3  # the kernel's reach on each side, in standard deviations of the Gaussian


class Distortion(NamedTuple):
    """A way to distort images.

    Attributes:
        name: Name of the distortion in headings.
        unit: Unit of the levels.
        how: Description of what is done to the images.
        levels: The levels in ascending order, including the neutral one.
        versions: Maps images, float [N, 1, H, W] in 0..1, and a level to the distorted images;
            several versions (a shift's four directions) are weighted equally.
        neutral: The level that changes nothing.
    """

    name: str
    unit: str
    how: str
    levels: tuple[float, ...]
    versions: Callable[[Tensor, float], list[Tensor]]
    neutral: float = 0.0

    def at(self, pixels_NCHW: Tensor, level: float) -> list[Tensor]:
        """The versions of the images at a level; at the neutral level, the images themselves."""
        return [pixels_NCHW] if level == self.neutral else self.versions(pixels_NCHW, level)


@torch.inference_mode()
def _predict(module: nn.Module, pixels_NCHW: Tensor) -> Tensor:
    """Logits, float32 [N, 10] on the CPU, for pixels in 0..1, float [N, 1, 28, 28].

    The module must be in evaluation mode.
    """
    device = next(module.parameters()).device
    batches = pixels_NCHW.split(BATCH_IMAGES)
    return torch.cat([module(standardise(batch.to(device))).cpu() for batch in batches])


def shifted(pixels_NCHW: Tensor, right: int, down: int) -> Tensor:
    """Shift images by whole pixels to the right and down (negative: left, up), filled with 0."""
    moved: Tensor = functional.affine(pixels_NCHW, 0.0, [right, down], 1.0, [0.0, 0.0])
    return moved


def affine(pixels_NCHW: Tensor, angle_deg: float, size: float) -> Tensor:
    """Rotate images counter-clockwise by degrees and scale them by ``size``, about the centre."""
    bilinear = InterpolationMode.BILINEAR
    turned: Tensor = functional.affine(pixels_NCHW, -angle_deg, [0, 0], size, [0.0, 0.0], bilinear)
    return turned


def blurred(pixels_NCHW: Tensor, sigma_px: float) -> Tensor:
    """Convolve images, padded with zeros, with a Gaussian of this standard deviation."""
    reach = math.ceil(BLUR_REACH * sigma_px)
    padded = functional.pad(pixels_NCHW, [reach])
    soft = functional.gaussian_blur(padded, [2 * reach + 1] * 2, [sigma_px] * 2)
    cropped: Tensor = functional.center_crop(soft, list(pixels_NCHW.shape[-2:]))
    return cropped


def noised(pixels_NCHW: Tensor, deviation: float) -> Tensor:
    """Add Gaussian noise of this standard deviation, always the same draw, and clip to 0..1."""
    generator = torch.Generator().manual_seed(NOISE_SEED)
    noise = torch.randn(pixels_NCHW.shape, generator=generator)
    return (pixels_NCHW + deviation * noise).clamp(0, 1)


def _four_shifts(pixels_NCHW: Tensor, level: float) -> list[Tensor]:
    step = int(level)
    directions = ((step, 0), (-step, 0), (0, step), (0, -step))
    return [shifted(pixels_NCHW, right, down) for right, down in directions]


DISTORTIONS = (
    Distortion(
        name="shift",
        unit="pixels",
        how="moved left, right, up and down; the mean of the four is shown",
        levels=tuple(float(step) for step in range(9)),
        versions=_four_shifts,
    ),
    Distortion(
        name="rotation",
        unit="degrees",
        how="rotated about the centre in both directions; the mean is shown",
        levels=(0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0),
        versions=lambda pixels, level: [affine(pixels, angle, 1.0) for angle in (level, -level)],
    ),
    Distortion(
        name="scale",
        unit="times the size",
        how="made smaller or larger about the centre",
        neutral=1.0,
        levels=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5),
        versions=lambda pixels, level: [affine(pixels, 0.0, level)],
    ),
    Distortion(
        name="blur",
        unit="pixels",
        how="convolved with a Gaussian of this standard deviation",
        levels=(0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0),
        versions=lambda pixels, level: [blurred(pixels, level)],
    ),
    Distortion(
        name="noise",
        unit="of full ink",
        how="given Gaussian noise of this standard deviation, clipped to no ink and full ink",
        levels=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8),
        versions=lambda pixels, level: [noised(pixels, level)],
    ),
)


def distorted_curve(
    distortion: Distortion,
    groups: Mapping[str, Sequence[nn.Module]],
    pixels_NCHW: Tensor,
    labels: Tensor,
) -> Curve:
    """Measure the accuracy of every network at every level of one distortion.

    Args:
        distortion: The distortion to apply.
        groups: Networks in evaluation mode, by group and by seed.
        pixels_NCHW: Images, float [N, 1, 28, 28] in 0..1, on the CPU; not all may be blank.
        labels: The digits, int64 [N].
    """
    plain = {
        name: [_predict(module, pixels_NCHW).argmax(1) for module in modules]
        for name, modules in groups.items()
    }
    # By group, level and seed: the share of correct images and of unchanged predictions.
    correct: dict[str, list[list[float]]] = {name: [] for name in groups}
    unchanged: dict[str, list[list[float]]] = {name: [] for name in groups}
    ink_kept = []
    for level in distortion.levels:
        versions = distortion.at(pixels_NCHW, level)
        ink_kept.append(float(torch.cat(versions).sum() / pixels_NCHW.sum()) / len(versions))
        for name, modules in groups.items():
            # For each seed, the predictions for each version of each image, [V, N].
            predicted = [
                torch.stack([_predict(module, one).argmax(1) for one in versions])
                for module in modules
            ]
            correct[name].append([_share(seed == labels) for seed in predicted])
            unchanged[name].append(
                [_share(s == before) for s, before in zip(predicted, plain[name], strict=True)]
            )
    return Curve(
        distortion=distortion.name,
        unit=distortion.unit,
        how=distortion.how,
        neutral=distortion.neutral,
        levels=list(distortion.levels),
        ink_kept=ink_kept,
        groups=[_group_curve(distortion, name, correct[name], unchanged[name]) for name in groups],
    )


def _share(true: Tensor) -> float:
    return float(true.double().mean())


def _group_curve(
    distortion: Distortion,
    name: str,
    correct: Sequence[Sequence[float]],
    unchanged: Sequence[Sequence[float]],
) -> GroupCurve:
    accuracy = [spread(values) for values in correct]
    means = [point.mean for point in accuracy]
    return GroupCurve(
        name=name,
        accuracy=accuracy,
        unchanged=[spread(values).mean for values in unchanged],
        falls_below=falls_below(distortion.levels, means, distortion.neutral),
    )


def falls_below(
    levels: Sequence[float], values: Sequence[float], neutral: float
) -> tuple[float | None, float | None]:
    """The nearest levels below and above the neutral one at which values fall below 0.9.

    Args:
        levels: The levels in ascending order, including the neutral one.
        values: One value per level.
        neutral: The level to start from.

    Returns:
        Levels, interpolated linearly between measured ones; None where no value is below 0.9.
        Both are the neutral level if its own value is below 0.9.
    """
    start = levels.index(neutral)
    points = list(zip(levels, values, strict=True))
    down, up = points[start::-1], points[start:]
    return _first_below(down), _first_below(up)


def _first_below(points: Sequence[tuple[float, float]]) -> float | None:
    if points[0][1] < BOUND:
        return points[0][0]
    for (near, high), (far, low) in itertools.pairwise(points):
        if low < BOUND:
            return near + (far - near) * (high - BOUND) / (high - low)
    return None
