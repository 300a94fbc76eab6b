"""Every figure of a comparison, as its JSON holds them.

Accuracies and shares are in 0..1, as everywhere here. "Points" are hundredths of accuracy. What
is "by seed" has the order of the group's networks.
"""

from training.compare.group_result import Group, Part
from training.evaluation.statistics import Interval, Spread

SCHEMA_VERSION = 1


class SeedPair(Part):
    """McNemar's exact test of two networks on the same test images.

    Attributes:
        first_seed: Of the first group's network.
        second_seed: Of the second group's.
        only_first: Images that the first alone reads rightly.
        only_second: Images that the second alone reads rightly.
        p_value: How often chance alone would part two equally good networks at least so unevenly.
    """

    first_seed: int
    second_seed: int
    only_first: int
    only_second: int
    p_value: float


class Differing(Part):
    """A test image on which groups differ, and what each network read, by group and by seed."""

    index: int
    digit: int
    readings: dict[str, list[int]]


class GroupPair(Part):
    """Two groups, every network of the first against every one of the second.

    Of a group and itself (``first`` equals ``second``): every two of its seeds, the yardstick of
    what the seed alone does.

    Attributes:
        first: A group's name.
        second: Another's.
        pairs: Each pair of networks.
        significant: Share of pairs with a p value below 0.05.
        differing_images: Test images that some networks read and whose share of right networks
            differs between the groups; 0 of a group and itself.
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
        ink_kept: Mean share of the undistorted images' ink that is there, one entry a level: what
            leaves the picture no network can read. Above 1 where a distortion adds ink.
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
        key: Hash of the config, the data, the size and the rule; what the cache knows it by.
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
        sizes: Runs on parts of the training images; empty if none was asked for.
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
