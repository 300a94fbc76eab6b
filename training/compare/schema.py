"""The fields of a comparison's JSON, and the plan of what is measured.

Accuracies, calibration errors, confidences and shares are in 0..1, losses in nats, times in
microseconds. Lists "by seed" have the order of the group's networks.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from training.evaluation.statistics import Interval, Spread

SCHEMA_VERSION = 1


class ComparePlan(BaseModel):
    """Everything that decides a comparison, besides checkpoints, data and machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int | None = Field(
        default=None,
        ge=1,
        description="test images that are distorted, evenly taken; None: all. Accuracy, "
        "calibration and McNemar's test always use all",
    )
    base: str | None = Field(
        default=None, description="the group that the others are compared with; None: the first"
    )
    sizes: tuple[PositiveInt, ...] = Field(
        default=(), description="training-set sizes, images; none: no network is trained"
    )
    size_epochs: int = Field(
        default=5, ge=1, le=1_000, description="epochs of each such run, of the largest size each"
    )
    timing_rounds: int = Field(default=15, ge=1, le=1_000, description="interleaved rounds")
    differing_shown: int = Field(
        default=24, ge=0, le=200, description="images, for each group beside the base"
    )
    picture_index: int = Field(
        default=0, ge=0, description="the test image whose feature maps are drawn"
    )


class Part(BaseModel):
    """A part of the result; unknown fields are refused, so that a misspelt one is noticed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Bin(Part):
    """A bin of the reliability diagram: images, mean confidence, and the share that is correct."""

    images: int
    confidence: float
    accuracy: float


class Calibration(Part):
    """How far a network's probabilities may be believed, on the test images.

    Attributes:
        temperature: What logits are divided by: it gives the validation images the least loss.
        at_bound: No least loss lies between the bounds of the search (few images, all
            correct): ``temperature`` is a bound, and no estimate.
        error_before: Expected calibration error (15 bins) of the network as it is.
        error_after: The same after temperature scaling.
        loss_before: Negative log-likelihood (mean cross-entropy), nats, as it is.
        loss_after: The same after temperature scaling.
        brier_before: Brier score, 0..2, as it is; None in older results.
        brier_after: The same after temperature scaling.
    """

    temperature: float
    at_bound: bool
    error_before: float
    error_after: float
    loss_before: float
    loss_after: float
    brier_before: float | None = None
    brier_after: float | None = None


class Network(Part):
    """One checkpoint on the test images.

    Attributes:
        checkpoint: Its folder, as it was given.
        seed: Of its run.
        weights_sha256: Which weights these are.
        accuracy: Share of test images classified correctly.
        interval: Wilson's, for other test images like these.
        accuracy_per_digit: For each digit; None if it does not occur.
        confusion: Row: digit; column: predicted digit; images.
        calibration: See there.
    """

    checkpoint: str
    seed: int
    weights_sha256: str
    accuracy: float
    interval: Interval
    accuracy_per_digit: list[float | None]
    confusion: list[list[int]]
    calibration: Calibration


class BatchTime(Part):
    """The time of one image in batches of ``batch`` images, median of interleaved rounds.

    ``ratio`` is over the base group's time in the same round, median of rounds; ``interval``
    spans the middle half of the rounds' ratios (no confidence interval).
    """

    batch: int
    us_per_image: float
    ratio: float
    interval: Interval


class Cost(Part):
    """What one image costs: trainable parameters, multiply-adds as ``describe`` counts, times."""

    parameters: int
    multiply_adds: int
    times: list[BatchTime]


class Group(Part):
    """Networks that differ in their seed alone.

    Attributes:
        name: The model's or variant's, with what differs from others of that name.
        model: A key of ``training.models.ARCHITECTURES``.
        architecture: Its numbers.
        conditions: How it was trained: the config without model, numbers and seed.
        networks: One for each seed.
        accuracy: Over seeds.
        error_before: Expected calibration error, over seeds.
        error_after: The same after temperature scaling.
        reliability_before: Bins of all networks' answers together; empty ones are left out.
        reliability_after: The same after temperature scaling, each network by its own.
        cost: Of the first network; all have the same shape.
    """

    name: str
    model: str
    architecture: dict[str, Any]
    conditions: dict[str, Any]
    networks: list[Network]
    accuracy: Spread
    error_before: Spread
    error_after: Spread
    reliability_before: list[Bin]
    reliability_after: list[Bin]
    cost: Cost

    @property
    def size(self) -> int:
        """The number of networks."""
        return len(self.networks)


class SeedPair(Part):
    """McNemar's exact test of two networks on the same test images.

    Attributes:
        first_seed: Of the first group's network.
        second_seed: Of the second group's.
        only_first: Images that the first alone classifies correctly.
        only_second: Images that the second alone classifies correctly.
        p_value: Probability of a division at least so uneven between equally good networks.
    """

    first_seed: int
    second_seed: int
    only_first: int
    only_second: int
    p_value: float


class Differing(Part):
    """A test image on which groups differ, and each network's prediction, by group and by seed."""

    index: int
    digit: int
    readings: dict[str, list[int]]


class GroupPair(Part):
    """Two groups, every network of the first against every one of the second.

    Of a group and itself (``first`` equals ``second``): every two of its seeds, which shows how
    much the seed alone changes.

    Attributes:
        first: A group's name.
        second: Another's.
        pairs: Each pair of networks.
        significant: Share of pairs with a p value below 0.05.
        differing_images: Test images whose share of correct networks differs between the groups;
            0 of a group and itself.
        differing: The first of them, the greatest difference first.
    """

    first: str
    second: str
    pairs: list[SeedPair]
    significant: float
    differing_images: int
    differing: list[Differing]


class Alternative(Part):
    """What a group buys and costs against the base group.

    Attributes:
        name: The group.
        difference: Mean accuracy less the base's.
        interval: Welch's, over seeds, of this comparison alone; None if a group has one seed or
            all seeds of both groups agree.
        p_value: Welch's two-sided test of the same difference; None as above.
        p_holm: The same corrected for the number of groups (Holm); None as above.
        parameters_ratio: Over the base's.
        multiply_adds_ratio: Over the base's.
    """

    name: str
    difference: float
    interval: Interval | None
    p_value: float | None = None
    p_holm: float | None = None
    parameters_ratio: float
    multiply_adds_ratio: float


class GroupCurve(Part):
    """A group under a distortion, one entry a level.

    Attributes:
        name: The group.
        accuracy: Over seeds.
        unchanged: Share of images that keep the label of the undistorted image, mean over seeds.
        falls_below: Where the mean accuracy falls below 90%, between levels by a straight line:
            the nearest place to the undistorted image below it and above it; None if it does not.
    """

    name: str
    accuracy: list[Spread]
    unchanged: list[float]
    falls_below: tuple[float | None, float | None]


class Curve(Part):
    """Accuracy on distorted test images.

    Attributes:
        distortion: Its name.
        unit: Of its levels.
        how: What was done to the image, in words.
        neutral: The level that changes nothing.
        levels: Ascending.
        ink_kept: Mean share of the undistorted images' ink that is there, one entry a level: no
            network can use what has left the picture. Above 1 where a distortion adds ink.
        groups: One for each group.
    """

    distortion: str
    unit: str
    how: str
    neutral: float
    levels: list[float]
    ink_kept: list[float]
    groups: list[GroupCurve]


class SizeRun(Part):
    """One network trained on a part of the training images.

    Attributes:
        group: Whose config it has.
        seed: Of the run.
        size: Labelled images that the run may use, a tenth of them for validation.
        epochs: Of ``epoch_images`` images each, the part being repeated as often as it takes.
        epoch_images: Images an epoch.
        accuracy: On all test images.
        key: Hash of the config, the data, the size and the rule; the key of the cache.
    """

    group: str
    seed: int
    size: int
    epochs: int
    epoch_images: int
    accuracy: float
    key: str


class Comparison(Part):
    """All figures of a comparison.

    Attributes:
        schema_version: Of this record.
        data_name: What the images are.
        test_name: What a figure on the test images may be called.
        data_sha256: Fingerprint of all images.
        test_images: How many.
        validation_images: How many the temperatures were fitted on.
        distorted_images: How many test images were distorted.
        base: The group that the others are compared with.
        warnings: What makes the comparison less fair, in words.
        groups: In the order given.
        alternatives: One for each group, the base among them.
        pairs: Every two groups, then every group and itself.
        curves: One for each distortion.
        sizes: Runs on parts of the training images; empty without ``ComparePlan.sizes``.
        picture_index: The test image whose feature maps are drawn.
        device: Where it was measured, with its number of threads.
        versions: Of the packages that computed.
        commit: Of the code.
    """

    schema_version: int = SCHEMA_VERSION
    data_name: str
    test_name: str
    data_sha256: str
    test_images: int
    validation_images: int
    distorted_images: int
    base: str
    warnings: list[str]
    groups: list[Group]
    alternatives: list[Alternative]
    pairs: list[GroupPair]
    curves: list[Curve]
    sizes: list[SizeRun]
    picture_index: int
    device: str
    versions: dict[str, str]
    commit: str

    def group(self, name: str) -> Group:
        """The group of that name."""
        return next(group for group in self.groups if group.name == name)
