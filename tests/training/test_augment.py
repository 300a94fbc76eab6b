"""Augmentation moves ink as far as it says and no further."""

import torch

from training.augment import random_affine
from training.config import AFFINE, AugmentConfig


def test_no_augmentation_changes_nothing() -> None:
    """With all limits at zero the very tensor comes back."""
    pixels = torch.rand(4, 1, 28, 28)
    assert random_affine(pixels, AugmentConfig()) is pixels


def test_a_shift_moves_each_image_by_its_own_draw_within_the_limit() -> None:
    """The centre of mass moves by at most the limit, differently for each image."""
    torch.manual_seed(0)
    pixels = torch.zeros(200, 1, 28, 28)
    pixels[:, :, 12:16, 12:16] = 1
    moved = random_affine(pixels, AugmentConfig(shift_px=3))
    grid = torch.arange(28.0)
    centre_x = (moved.sum(dim=(1, 2)) * grid).sum(1) / moved.sum(dim=(1, 2, 3))
    offset = (centre_x - 13.5).abs()
    assert offset.max() <= 3.01
    assert offset.max() > 2.5
    assert centre_x.std() > 1


def test_values_stay_pixels_and_batches_repeat_with_the_seed() -> None:
    """Pixels stay within 0..1, and the same seed draws the same distortions."""
    pixels = torch.rand(64, 1, 28, 28)
    torch.manual_seed(5)
    first = random_affine(pixels, AFFINE)
    torch.manual_seed(5)
    assert torch.equal(first, random_affine(pixels, AFFINE))
    assert first.min() >= 0
    assert first.max() <= 1
    assert not torch.equal(first, pixels)
