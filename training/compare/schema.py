"""The fields of a comparison's JSON, and the plan of what to measure.

Accuracies, calibration errors, confidences and shares are in 0..1, losses in nats, times in
microseconds. Lists "by seed" have the order of the group's networks.
"""

from typing import Any

from pydantic import BaseModel, Field, PositiveInt

from training.evaluation.statistics import Interval, Spread

SCHEMA_VERSION = 1


class ComparePlan(BaseModel, frozen=True, extra="forbid"):
    """All settings of a comparison besides checkpoints, data and machine."""

    images: int | None = Field(
        default=None,
        ge=1,
        description="number of test images to distort, evenly spaced; None: all. Accuracy, "
        "calibration and McNemar's test always use all test images",
    )
    base: str | None = Field(
        default=None, description="the group that the others are compared with; None: the first"
    )
    sizes: tuple[PositiveInt, ...] = Field(
        default=(), description="training-set sizes in images; empty: no network is trained"
    )
    size_epochs: int = Field(
        default=5,
        ge=1,
        le=1_000,
        description="epochs of each such run, each with as many images as the largest size",
    )
    timing_rounds: int = Field(default=15, ge=1, le=1_000, description="interleaved timing rounds")
    differing_shown: int = Field(
        default=24, ge=0, le=200, description="most images that are listed for two groups"
    )
    picture_index: int = Field(
        default=0, ge=0, description="index of the test image whose feature maps are drawn"
    )


class Part(BaseModel, frozen=True, extra="forbid"):
    """A part of the result; unknown fields are rejected, so that a misspelt one is noticed."""


class Bin(Part):
    """A bin of the reliability diagram: number of images, mean confidence, and accuracy."""

    images: int
    confidence: float
    accuracy: float


class Calibration(Part):
    """Calibration of a network on the test images, before and after temperature scaling.

    Attributes:
        temperature: The divisor of the logits that minimises the loss on validation images.
        at_bound: Whether the loss has no minimum within the search's bounds (few images, all
            correct), so that ``temperature`` is a bound and not an estimate.
        error_before: Expected calibration error (15 bins) before temperature scaling.
        error_after: Expected calibration error after temperature scaling.
        loss_before: Negative log-likelihood (mean cross-entropy), nats, before scaling.
        loss_after: Negative log-likelihood after temperature scaling.
        brier_before: Brier score, 0..2, before temperature scaling; None in older results.
        brier_after: Brier score after temperature scaling; None in older results.
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
    """Results of one checkpoint on the test images.

    Attributes:
        checkpoint: The checkpoint's folder, as given.
        seed: Seed of the run.
        weights_sha256: sha256 of the weights file.
        accuracy: Share of test images classified correctly.
        interval: Wilson's interval of the accuracy, for other test images like these.
        accuracy_per_digit: Recall of each digit; None for a digit without images.
        confusion: Number of images by digit (row) and predicted digit (column).
        calibration: Calibration on the test images.
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

    ``ratio`` is relative to the base group's time in the same round, median of rounds.
    ``interval`` is the interquartile range of the rounds' ratios, not a confidence interval.
    """

    batch: int
    us_per_image: float
    ratio: float
    interval: Interval


class Cost(Part):
    """Cost of one image: trainable parameters, multiply-adds (from ``describe``) and times."""

    parameters: int
    multiply_adds: int
    times: list[BatchTime]


class Group(Part):
    """Networks that differ only in their seeds.

    Attributes:
        name: Name of the model or variant, and settings that differ among groups of that name.
        model: A key of ``training.models.ARCHITECTURES``.
        architecture: The model's hyperparameters.
        conditions: Training settings: the config without model, hyperparameters and seed.
        networks: The networks, one for each seed.
        accuracy: Accuracy over seeds.
        error_before: Expected calibration error over seeds, before temperature scaling.
        error_after: Expected calibration error over seeds, after temperature scaling.
        reliability_before: Bins of all networks' predictions together, without empty bins.
        reliability_after: The same bins, after scaling each network with its own temperature.
        cost: Cost of the first network; all have the same shape.
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
        first_seed: Seed of the first group's network.
        second_seed: Seed of the second group's network.
        only_first: Number of images that only the first network classifies correctly.
        only_second: Number of images that only the second network classifies correctly.
        p_value: Probability that equally good networks give a split at least this uneven.
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
    """Two groups, with every network of the first paired with every network of the second.

    If ``first`` equals ``second``, every two seeds of the group are paired, which shows how much
    the seed alone changes.

    Attributes:
        first: Name of the first group.
        second: Name of the second group.
        pairs: The test of each pair of networks.
        significant: Share of pairs with a p value below 0.05.
        differing_images: Number of test images whose share of correct networks differs between
            the groups; 0 for a group and itself.
        differing: The images with the greatest differences, the greatest first.
    """

    first: str
    second: str
    pairs: list[SeedPair]
    significant: float
    differing_images: int
    differing: list[Differing]


class Alternative(Part):
    """A group's gain in accuracy and its cost, compared with the base group.

    Attributes:
        name: Name of the group.
        difference: Mean accuracy minus that of the base.
        interval: Welch's interval of the difference over seeds, uncorrected; None if a group has
            one seed or if all seeds of both groups agree.
        p_value: p value of Welch's two-sided test of the difference; None as above.
        p_holm: The p value corrected for the number of groups (Holm); None as above.
        parameters_ratio: Number of parameters relative to the base.
        multiply_adds_ratio: Number of multiply-adds relative to the base.
    """

    name: str
    difference: float
    interval: Interval | None
    p_value: float | None = None
    p_holm: float | None = None
    parameters_ratio: float
    multiply_adds_ratio: float


class GroupCurve(Part):
    """A group's results under a distortion, one entry per level.

    Attributes:
        name: Name of the group.
        accuracy: Accuracy over seeds.
        unchanged: Share of images predicted as without distortion, mean over seeds.
        falls_below: The levels nearest below and above the neutral one at which the mean accuracy
            falls below 90%, interpolated linearly; None if it does not.
    """

    name: str
    accuracy: list[Spread]
    unchanged: list[float]
    falls_below: tuple[float | None, float | None]


class Curve(Part):
    """Accuracy on distorted test images.

    Attributes:
        distortion: Name of the distortion.
        unit: Unit of the levels.
        how: Description of what was done to the images.
        neutral: The level that changes nothing.
        levels: The levels in ascending order.
        ink_kept: Mean share of the undistorted images' ink that is left, one entry per level; no
            network can use ink that has left the picture. Above 1 where a distortion adds ink.
        groups: The results of each group.
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
        group: Name of the group whose config was trained.
        seed: Seed of the run.
        size: Number of labelled images that the run may use, including those for validation.
        epochs: Number of epochs.
        epoch_images: Number of images per epoch, for which smaller parts are repeated.
        accuracy: Accuracy on all test images.
        key: Hash of the config, data, size, largest size and rule; the key of the cache.
    """

    group: str
    seed: int
    size: int
    epochs: int
    epoch_images: int
    accuracy: float
    key: str


class Comparison(Part):
    """All results of a comparison.

    Attributes:
        schema_version: Version of this schema.
        data_name: Name of the images.
        test_name: Name of the test images in results.
        data_sha256: Fingerprint of all images.
        test_images: Number of test images.
        validation_images: Number of images that the temperatures were fitted on.
        distorted_images: Number of test images that were distorted.
        base: Name of the group that the others are compared with.
        warnings: Sentences about what makes the comparison less fair.
        groups: The groups, in the order given.
        alternatives: Each group compared with the base, including the base itself.
        pairs: Every two groups, then every group of several seeds with itself.
        curves: One curve for each distortion.
        sizes: Runs on parts of the training images; empty without ``ComparePlan.sizes``.
        picture_index: Index of the test image whose feature maps are drawn.
        device: The device that was measured on, with its number of threads.
        versions: Versions of Python and of the packages that computed.
        commit: Commit of the code.
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
        """The group with this name."""
        return next(group for group in self.groups if group.name == name)
