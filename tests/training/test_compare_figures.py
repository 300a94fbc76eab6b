"""The statistics, distortions and plots of a comparison, checked against known results."""

import math

import pytest
import torch
from torch import Tensor, nn

from training.compare.calibration import calibrate, fit_temperature, reliability
from training.compare.cost import measure_costs
from training.compare.layers import first_layer, responses
from training.compare.learning_curve import part_of
from training.compare.measure import evenly
from training.compare.robustness import (
    DISTORTIONS,
    affine,
    blurred,
    distorted_curve,
    falls_below,
    noised,
    shifted,
)
from training.compare.significance import group_pairs, holm, mcnemar, welch
from training.data import PIXEL_MEAN, PIXEL_STD, LabelledImages
from training.evaluation.calibration import calibration_error
from training.evaluation.statistics import spread, wilson
from training.models import build_model


def _image() -> Tensor:
    return torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_wilson_interval_is_the_published_one() -> None:
    """81 of 263 gives 0.2553 to 0.3662 (Newcombe 1998, table I), and 0 of 10 starts at 0."""
    found = wilson(81, 263)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 10).low == 0


def test_mcnemar_is_the_binomial_of_the_discordant_images() -> None:
    """Only discordant images count: 1 against 9 gives 2 * (1 + 10) / 2^10, and none gives 1."""
    first = torch.tensor([True] * 1 + [False] * 9 + [True] * 50 + [False] * 3)
    second = torch.tensor([False] * 1 + [True] * 9 + [True] * 50 + [False] * 3)
    assert mcnemar(first, second) == pytest.approx((1, 9, 22 / 1024))
    assert mcnemar(second, first) == pytest.approx((9, 1, 22 / 1024))
    assert mcnemar(first, first) == (0, 0, 1.0)


def test_intervals_over_seeds() -> None:
    """Welch's interval has 2.94 degrees of freedom for variances 1 and 4; one seed has none."""
    found = welch([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert found is not None
    reach = 3.2182 * math.sqrt(5 / 3)  # Student's 97.5% point at 50 / 17 degrees of freedom
    assert (found.interval.low, found.interval.high) == pytest.approx(
        (2 - reach, 2 + reach), abs=2e-3
    )
    assert welch([1.0], [2.0, 3.0]) is None
    assert spread([1.0, 3.0]).deviation == pytest.approx(math.sqrt(2))
    assert spread([1.0]).deviation is None


def test_seeds_that_agree_give_no_interval() -> None:
    """Without spread on either side there is no interval, because its width would be zero."""
    assert welch([0.5, 0.5, 0.5], [0.6, 0.6]) is None
    assert welch([0.1, 0.1, 0.1], [0.1, 0.1, 0.1]) is None
    one_side = welch([0.5, 0.5, 0.5], [0.6, 0.7, 0.8])
    assert one_side is not None
    reach = 4.3027 * 0.1 / math.sqrt(3)  # Student's 97.5% point at 2 degrees of freedom
    assert (one_side.interval.low, one_side.interval.high) == pytest.approx(
        (0.2 - reach, 0.2 + reach), abs=1e-5
    )


def test_holm_multiplies_the_least_p_value_the_most() -> None:
    """The smallest p value is multiplied by 3, corrected values never decrease, and None stays."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([None, 0.04]) == [None, 0.04]
    assert holm([0.9, 0.8]) == [1, 1]


def test_where_a_curve_falls_below_its_bound() -> None:
    """The crossing is interpolated linearly on both sides, and is None if the curve stays above."""
    levels = [0.5, 1.0, 1.5, 2.0]
    assert falls_below(levels, [0.8, 1.0, 1.0, 0.6], 1.0) == pytest.approx((0.75, 1.625))
    assert falls_below(levels, [0.95, 1.0, 1.0, 0.95], 1.0) == (None, None)
    assert falls_below(levels, [0.1, 0.2, 1.0, 1.0], 1.0) == (1.0, 1.0)


def test_the_temperature_is_found_on_validation_images_alone() -> None:
    """Logits 2.5 times too large give a temperature of 2.5, independent of the test images."""
    generator = torch.Generator().manual_seed(0)
    true_NK = 2 * torch.randn(20_000, 10, generator=generator)
    labels = torch.multinomial(true_NK.softmax(1), 1, generator=generator).squeeze(1)
    temperature, at_bound = fit_temperature(2.5 * true_NK, labels)
    assert temperature == pytest.approx(2.5, abs=0.08)
    assert not at_bound
    half = slice(None, 10_000), slice(10_000, None)
    found = calibrate(
        *(2.5 * true_NK[half[0]], labels[half[0]], 2.5 * true_NK[half[1]], labels[half[1]])
    )
    assert found.error_after < 0.02 < 0.1 < found.error_before
    assert found.loss_after < found.loss_before
    assert found.brier_before is not None
    assert found.brier_after is not None
    assert found.brier_after < found.brier_before
    half_NK = torch.tensor([[0.0, 0.0]])
    even = calibrate(half_NK, torch.tensor([0]), half_NK, torch.tensor([0]))
    assert (even.brier_before, even.loss_before) == pytest.approx((0.5, math.log(2)))
    shuffled = calibrate(
        *(2.5 * true_NK[half[0]], labels[half[0]], true_NK[half[1]], labels[half[0]])
    )
    assert shuffled.temperature == found.temperature
    assert fit_temperature(torch.eye(10), torch.arange(10)) == (0.05, True)


def test_reliability_bins_add_up_to_the_calibration_error() -> None:
    """The bins contain all images, and their weighted gaps sum to the calibration error."""
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(500, 10, generator=generator)
    labels = torch.randint(10, (500,), generator=generator)
    bins = reliability([logits], labels, [1.0])
    confidence, read_as = logits.softmax(1).max(1)
    gaps = sum(one.images * abs(one.accuracy - one.confidence) for one in bins) / 500
    assert gaps == pytest.approx(calibration_error(confidence, read_as == labels))
    assert sum(one.images for one in reliability([logits] * 3, labels, [1.0, 2.0, 3.0])) == 1_500


def _versions(name: str, pixels: Tensor, level: float) -> list[Tensor]:
    distortion = next(one for one in DISTORTIONS if one.name == name)
    return list(distortion.versions(pixels, level))


def test_distortions_do_what_they_say() -> None:
    """Shifts and quarter turns are exact, blur keeps the ink, and noise stays in 0..1."""
    image = _image()
    moved = shifted(image, 2, -3)
    assert torch.equal(moved[..., :-3, 2:], image[..., 3:, :-2])
    assert float(moved[..., -3:, :].sum() + moved[..., :2].sum()) == 0
    assert torch.allclose(affine(image, 90, 1.0), torch.rot90(image, 1, (2, 3)), atol=1e-4)
    square = torch.zeros(1, 1, 28, 28)
    square[..., 10:18, 10:18] = 1
    assert float(affine(square, 0, 2.0).sum()) == pytest.approx(4 * 64, rel=0.01)
    assert float(affine(square, 0, 0.5).sum()) == pytest.approx(64 / 4, rel=0.01)
    assert float(blurred(square, 1.0).sum()) == pytest.approx(64, rel=1e-4)
    assert float(blurred(square, 1.0).max()) < 1.0
    places = [tuple((one[0, 0] > 0).nonzero()[0].tolist()) for one in _versions("shift", square, 3)]
    assert sorted(places) == [(7, 10), (10, 7), (10, 13), (13, 10)]
    left, right = _versions("rotation", image, 90)
    assert torch.allclose(left, torch.rot90(right, 2, (2, 3)), atol=1e-4)
    noisy = noised(image, 0.5)
    assert 0 <= float(noisy.min()) < float(noisy.max()) <= 1
    assert torch.equal(noisy, noised(image, 0.5))


class _ReadsColumn(nn.Module):
    """Predicts the column of a single line of ink, with a tolerance in pixels."""

    def __init__(self, tolerance: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.tolerance = tolerance

    def forward(self, x_NCHW: Tensor) -> Tensor:
        ink = (x_NCHW * PIXEL_STD + PIXEL_MEAN)[:, 0].sum(1)
        places = 9 + (ink.argmax(1) - 9 + self.tolerance) // (2 * self.tolerance + 1)
        return nn.functional.one_hot((places - 9).clamp(0, 9), 10) * self.scale


def test_a_curve_shows_who_bears_shifts() -> None:
    """Vertical shifts change no prediction; sideways ones are tolerated up to the tolerance."""
    pixels = torch.zeros(1, 1, 28, 28)
    pixels[..., 9] = 1
    groups = {"exact": [_ReadsColumn(0)], "two": [_ReadsColumn(2), _ReadsColumn(2)]}
    curve = distorted_curve(DISTORTIONS[0], groups, pixels, torch.tensor([0]))
    exact, two = curve.groups
    assert [one.mean for one in two.accuracy][:3] == [1, 1, 1]
    assert two.accuracy[3].mean == two.unchanged[3] == 0.75
    assert exact.accuracy[1].mean == 0.75  # a shift to the left does not change the lowest label
    assert two.accuracy[1].deviation == 0
    assert exact.accuracy[1].deviation is None
    assert two.falls_below[0] is None
    assert two.falls_below[1] == pytest.approx(2.4)


def test_costs_count_parameters_and_multiply_adds() -> None:
    """A dense layer has one multiply-add per weight, a convolution one per weight and position."""
    dense = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    convolution = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 10))
    modules: dict[str, nn.Module] = {"dense": dense, "other": convolution}
    modules |= {name: build_model(name, {}).eval() for name in ("cnn", "cnn-batch-norm")}
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        found = measure_costs(modules, "dense", rounds=1)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert found["dense"].parameters == 7_850
    assert found["dense"].multiply_adds == 7_840
    assert found["other"].multiply_adds == 26 * 26 * 2 * 9 + 13_520
    assert found["cnn"].multiply_adds == 1_116_416  # as in describe and the README
    assert found["cnn-batch-norm"].multiply_adds == 1_127_808
    assert [(time.batch, time.ratio) for time in found["dense"].times] == [(1, 1), (64, 1)]
    assert all(time.us_per_image > 0 for time in found["other"].times)


def test_parts_of_the_training_images_are_nested_and_repeated() -> None:
    """A subset of four images is within the subset of six, and both repeat their images."""
    train = LabelledImages(torch.zeros(10, 28, 28, dtype=torch.uint8), torch.arange(10))
    (four, _), (six, _) = part_of(train, 4, 0, 12), part_of(train, 6, 0, 12)
    assert len(four) == len(six) == 12
    assert four.labels.bincount(minlength=10).tolist().count(3) == 4
    assert set(four.labels.tolist()) < set(six.labels.tolist())


def test_images_are_taken_evenly() -> None:
    """Five of twenty images are every fourth one; asking for too many gives all of them."""
    data = LabelledImages(torch.zeros(20, 28, 28, dtype=torch.uint8), torch.arange(20))
    assert evenly(data, 5).labels.tolist() == [0, 4, 8, 12, 16]
    assert len(evenly(data, 50)) == len(evenly(data, None)) == 20


def test_pairs_count_seeds_and_list_the_greatest_differences() -> None:
    """The image that all networks of one group and none of the other get right comes first."""
    labels = torch.tensor([1, 2, 3, 4])
    first = {0: torch.tensor([1, 2, 0, 0]), 1: torch.tensor([1, 2, 3, 0])}
    second = {5: torch.tensor([1, 0, 0, 4])}
    between, within = group_pairs({"a": first, "b": second}, labels, differing_shown=2)
    assert [(p.first_seed, p.second_seed, p.only_first, p.only_second) for p in between.pairs] == [
        (0, 5, 1, 1),
        (1, 5, 2, 1),
    ]
    assert between.differing_images == 3
    assert [one.index for one in between.differing] == [1, 3]
    assert between.differing[0].readings == {"a": [2, 2], "b": [0]}
    assert (within.first, within.second, len(within.pairs)) == ("a", "a", 1)
    assert between.significant == 0


def test_first_layers_are_pictures_of_the_weights() -> None:
    """The pictures are the CNN's kernels and the MLP's 28x28 weights, and no hooks remain."""
    cnn, mlp = build_model("cnn", {"n1": 3}).eval(), build_model("mlp", {"hidden": [6]}).eval()
    kernels, units = first_layer(cnn), first_layer(mlp)
    assert kernels is not None
    assert units is not None
    assert (kernels.is_kernel, tuple(kernels.weights.shape)) == (True, (3, 5, 5))
    assert torch.equal(units.weights.flatten(1), mlp.get_parameter("layers.0.weight"))
    image = torch.full((28, 28), 255, dtype=torch.uint8)
    maps = responses(cnn, image, 2)
    assert [tuple(one.values.shape) for one in maps] == [(3, 24, 24), (32, 8, 8)]
    assert all(float(one.values.min()) >= 0 for one in maps)
    assert [tuple(one.values.shape) for one in responses(mlp, image, 2)] == [(6,)]
    assert not any(module._forward_hooks for module in cnn.modules())
    assert first_layer(nn.Sequential(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 1, (1, 3, 3)))) is None
