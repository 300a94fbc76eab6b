"""Augmentation moves ink as far as it says and no further."""

import torch

from training.config import AFFINE, AugmentConfig
from training.data.augment import augment


def test_no_augmentation_changes_nothing() -> None:
    """With all limits at zero the very tensor comes back."""
    pixels = torch.rand(4, 1, 28, 28)
    assert augment(pixels, AugmentConfig(), torch.Generator()) is pixels


def test_a_shift_moves_each_image_by_its_own_draw_within_the_limit() -> None:
    """The centre of mass moves by at most the limit, differently for each image."""
    pixels = torch.zeros(200, 1, 28, 28)
    pixels[:, :, 12:16, 12:16] = 1
    moved = augment(pixels, AugmentConfig(shift_px=3), torch.Generator().manual_seed(0))
    grid = torch.arange(28.0)
    centre_x = (moved.sum(dim=(1, 2)) * grid).sum(1) / moved.sum(dim=(1, 2, 3))
    offset = (centre_x - 13.5).abs()
    assert offset.max() <= 3.01
    assert offset.max() > 2.5
    assert centre_x.std() > 1


def test_values_stay_pixels_and_batches_repeat_with_the_seed() -> None:
    """Pixels stay within 0..1, and the same seed draws the same distortions."""
    pixels = torch.rand(64, 1, 28, 28)
    first, again = (augment(pixels, AFFINE, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.min() >= 0
    assert first.max() <= 1
    assert not torch.equal(first, pixels)


def test_elastic_distortion_bends_smoothly_as_far_as_it_says() -> None:
    """Every pixel moves by the deviation asked for, neighbours alike, each image by itself."""
    ramp = torch.arange(28.0).expand(1, 1, 28, 28).repeat(400, 1, 1, 1) / 28
    generator = torch.Generator().manual_seed(0)
    bent = 28 * (augment(ramp, AugmentConfig(elastic_px=0.5), generator) - ramp)
    bent = bent[:, 0, 6:22, 6:22]
    assert (
        0.35 < float(bent.std()) < 0.6
    )  # the curves' mean deviation is a little below the points'
    assert float((bent[:, 1:] - bent[:, :-1]).abs().mean()) < 0.15
    assert float(bent.mean((1, 2)).std()) > 0.1
