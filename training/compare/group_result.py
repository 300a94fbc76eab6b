"""Figures of one network and of one group, as the comparison's JSON holds them.

Accuracies, calibration errors, confidences and shares are in 0..1, losses in nats, times in
microseconds.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from training.evaluation.statistics import Interval, Spread


class Part(BaseModel):
    """A part of the result; unknown fields are refused, so that a misspelt one is noticed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Bin(Part):
    """A bin of the reliability diagram: images, their mean confidence, the share read rightly."""

    images: int
    confidence: float
    accuracy: float


class Calibration(Part):
    """How far a network's probabilities may be believed, on the test images.

    Attributes:
        temperature: What logits are divided by: it gives the validation images the least loss.
        at_bound: No least loss lies between the bounds of the search (few images, all read
            rightly): ``temperature`` is a bound, and no estimate.
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
        accuracy: Share read rightly.
        interval: Wilson's, for other test images like these.
        accuracy_per_digit: For each digit; None if it does not occur.
        confusion: Row: digit; column: what it was read as; images.
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
        name: The model's or variant's, with what tells it from others of that name.
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
