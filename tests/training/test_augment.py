"""Augmentation distorts images by its limits and no further."""

import torch

from training.config import AFFINE, AugmentConfig
from training.data.augment import augment


def test_no_augmentation_changes_nothing() -> None:
    """With all limits at zero, the same tensor object is returned."""
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
    """Pixels move by the given standard deviation, like their neighbours, differently per image."""
    ramp = torch.arange(28.0).expand(1, 1, 28, 28).repeat(400, 1, 1, 1) / 28
    generator = torch.Generator().manual_seed(0)
    bent = 28 * (augment(ramp, AugmentConfig(elastic_px=0.5), generator) - ramp)
    bent = bent[:, 0, 6:22, 6:22]
    assert (
        0.35 < float(bent.std()) < 0.6
    )  # the curves' mean deviation is a little below the points'
    assert float((bent[:, 1:] - bent[:, :-1]).abs().mean()) < 0.15
    assert float(bent.mean((1, 2)).std()) > 0.1


def test_strokes_grow_and_shrink_by_at_most_a_pixel_on_each_side() -> None:
    """Each image's draw thickens or thins its strokes, and no ink appears elsewhere."""
    pixels = torch.zeros(300, 1, 28, 28)
    pixels[:, :, 6:22, 12:16] = 1
    seen = augment(pixels, AugmentConfig(stroke=1.0), torch.Generator().manual_seed(0))
    width = seen[:, 0, 14].sum(1)
    assert 5.9 < float(width.max()) <= 6  # from 4: a pixel on each side
    assert 3 <= float(width.min()) < 3.1  # shrinking is half as strong
    assert 0.2 < float((width < 4).double().mean()) < 0.47  # a third of the draws
    assert not seen[:, :, :5].any()
    assert not seen[:, :, :, :11].any()


def test_a_share_of_the_images_loses_what_a_coarse_grid_cannot_hold() -> None:
    """In about a third of the images, one-pixel stripes vanish and a block keeps full ink."""
    pixels = torch.zeros(900, 1, 28, 28)
    pixels[:, :, 4:24, 4:12] = 0.5
    pixels[:, :, 4:24, 16:24:2] = 0.5
    config = AugmentConfig(coarse_share=0.3)
    seen = augment(pixels, config, torch.Generator().manual_seed(0))
    coarse = ~torch.isclose(seen, pixels, atol=1e-5).all(dim=3).all(dim=(1, 2))
    assert 0.25 < float(coarse.double().mean()) < 0.35
    rows = seen[coarse, 0, 14]
    assert float((rows[:, 17:22:2] - rows[:, 16:22:2]).abs().mean()) < 0.2  # 0.5 before
    assert float(rows[:, 6:10].mean()) > 0.9
    assert float(rows[:, :2].max()) < 0.1
    assert (float(seen.min()), float(seen.max())) == (0, 1)


def test_narrow_digits_become_wider_within_the_box_and_some_become_narrower() -> None:
    """Widths grow up to the limit or the box, or shrink; heights do not change."""
    narrow, wide = torch.zeros(2, 400, 1, 28, 28)
    narrow[:, :, 4:24, 12:16] = 1
    wide[:, :, 4:24, 4:24] = 1
    config = AugmentConfig(stretch=2.0)
    for pixels, least, most in ((narrow, 2.4, 12.1), (wide, 13.2, 20.1)):
        seen = augment(pixels, config, torch.Generator().manual_seed(0))
        widths = seen[:, 0, 14].sum(1)
        assert least < float(widths.min()) < least + 1
        assert most - 1 < float(widths.max()) < most
        before = float(pixels[0, 0, 14].sum())
        assert 0.18 < float((widths < before - 0.01).double().mean()) < 0.32  # a quarter
        assert not seen[:, :, :3].any()
        assert not seen[:, :, 25:].any()
