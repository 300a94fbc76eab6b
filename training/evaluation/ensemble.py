"""Ensembles of networks that average their probabilities or take a majority vote.

    python -m training ensemble runs/cnn-0 runs/cnn-1 runs/cnn-2
    python -m training train --model cnn --teachers runs/cnn-0 runs/cnn-1 runs/cnn-2

The first command measures an ensemble. The second distils it into one network, which can be
exported and served.
"""

# Shape suffixes: M networks, N images, K classes. ``training.loop.distillation`` distils.

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor
from torch.nn.functional import nll_loss, one_hot

from training.atomic import write_atomically
from training.checkpoint import CheckpointError
from training.cli import Commands, add_command, add_data_dir
from training.data import Dataset, LabelledImages, load_dataset, split_validation
from training.evaluation.calibration import brier_score
from training.evaluation.grouping import LoadedCheckpoint, load_comparable
from training.evaluation.prediction import predict_logits
from training.evaluation.statistics import Interval, Spread, spread, wilson

MOST_SUBSETS = 10_000


class Subsets(BaseModel, frozen=True, extra="forbid"):
    """Accuracy of all ensembles of ``size`` networks that the given networks can form.

    These ensembles share networks, so their range is narrower than that of independent ensembles.

    Attributes:
        size: Number of networks in each ensemble.
        count: Number of ensembles.
        accuracy: Accuracy of the networks' mean probabilities, over all ensembles.
    """

    size: int
    count: int
    accuracy: Spread


class Joint(BaseModel, frozen=True, extra="forbid"):
    """Metrics of an ensemble on some images; shares are in 0..1.

    Attributes:
        images_name: Name of the set of images.
        images: Number of images.
        alone: Each network's accuracy, in the order given.
        mean: Accuracy of the networks' mean probabilities.
        interval: Wilson's 95% interval of ``mean``.
        vote: Accuracy of the majority vote; the greater mean probability breaks a tie.
        any_right: Share of images that at least one network classifies correctly.
        loss: Negative log-likelihood of the mean probabilities, nats.
        brier_score: Brier score of the mean probabilities, 0..2.
        subsets: Results for all ensembles of a given number of these networks, if requested.
    """

    images_name: str
    images: int
    alone: list[float]
    mean: float
    interval: Interval
    vote: float
    any_right: float
    loss: float
    brier_score: float
    subsets: Subsets | None


class EnsembleRecord(BaseModel, frozen=True, extra="forbid"):
    """An ensemble's metrics, and the hashes of the weights that they belong to.

    Attributes:
        weights_sha256: sha256 of each network's weights file.
        validation: Metrics on the images that all networks held out for validation.
        test: Metrics on the test images.
    """

    weights_sha256: list[str]
    validation: Joint
    test: Joint


def joint(logits_MNK: Tensor, labels_N: Tensor, images_name: str, size: int | None = None) -> Joint:
    """Compute the metrics of an ensemble from its networks' logits.

    Args:
        logits_MNK: Each network's logits, float [M, N, K].
        labels_N: The digits, int64 [N].
        images_name: Name of the images in tables.
        size: If given, also measure all ensembles of this many networks, 1..M.
    """
    probabilities_MNK = logits_MNK.double().softmax(2)
    mean_NK = probabilities_MNK.mean(0)
    read_MN = logits_MNK.argmax(2)
    votes_NK = one_hot(read_MN, logits_MNK.shape[2]).sum(0)
    right_MN = read_MN == labels_N
    mean_right = int((mean_NK.argmax(1) == labels_N).sum())
    # Half a probability is less than one vote, so it only breaks ties.
    vote_right = int(((votes_NK + mean_NK / 2).argmax(1) == labels_N).sum())
    return Joint(
        images_name=images_name,
        images=len(labels_N),
        alone=[float(right.double().mean()) for right in right_MN],
        mean=mean_right / len(labels_N),
        interval=wilson(mean_right, len(labels_N)),
        vote=vote_right / len(labels_N),
        any_right=float(right_MN.any(0).double().mean()),
        loss=float(nll_loss(mean_NK.log(), labels_N)),
        brier_score=brier_score(mean_NK, labels_N),
        subsets=None if size is None else _subsets(probabilities_MNK, labels_N, size),
    )


def _require_size(size: int, members: int) -> None:
    """Raise ``ValueError`` if ``size`` is out of range or gives too many ensembles to measure."""
    if not 1 <= size <= members:
        raise ValueError(f"--size {size}: expected 1 to {members}, the number of checkpoints given")
    if math.comb(members, size) > MOST_SUBSETS:
        raise ValueError(
            f"--size {size} of {members} networks makes {math.comb(members, size):,} ensembles; "
            f"at most {MOST_SUBSETS:,} are measured; give fewer checkpoints"
        )


def _subsets(probabilities_MNK: Tensor, labels_N: Tensor, size: int) -> Subsets:
    accuracies = [
        float((probabilities_MNK[list(chosen)].sum(0).argmax(1) == labels_N).double().mean())
        for chosen in itertools.combinations(range(len(probabilities_MNK)), size)
    ]
    return Subsets(size=size, count=len(accuracies), accuracy=spread(accuracies))


def read_teachers(
    folders: Sequence[Path], dataset: Dataset, validation_images: int
) -> list[LoadedCheckpoint]:
    """Load the checkpoints that teach a run, and check that they fit its images.

    Args:
        folders: Folders of the checkpoints; without any, the result is empty.
        dataset: The images that the run is trained on.
        validation_images: Number of training images that the run holds out for validation.

    Raises:
        CheckpointError: As ``load_comparable``; or the teachers held out another number of images,
            so they may have been trained on validation images of this run.
    """
    if not folders:
        return []
    teachers = load_comparable(folders, dataset)
    held_out = teachers[0].record.data.validation_images
    if held_out != validation_images:
        raise CheckpointError(
            f"the teachers held out {held_out} validation images, this run {validation_images}: "
            "they may have been trained on some of its validation images; use the same number"
        )
    return teachers


def measure(
    members: Sequence[LoadedCheckpoint], dataset: Dataset, size: int | None = None
) -> EnsembleRecord:
    """Run each network on all validation and test images, and measure the ensemble.

    Args:
        members: The networks, from ``load_comparable``.
        dataset: The images that they were trained on.
        size: As for ``joint``.
    """
    if size is not None:
        _require_size(size, len(members))
    held_out = members[0].record.data.validation_images
    _, validation = split_validation(dataset.train, held_out)

    def of(data: LabelledImages, name: str) -> Joint:
        answers = [predict_logits(member.module, data.images) for member in members]
        return joint(torch.stack(answers), data.labels, name, size)

    return EnsembleRecord(
        weights_sha256=[member.record.weights.sha256 for member in members],
        validation=of(validation, f"{len(validation):,} validation images"),
        test=of(dataset.test, dataset.test_name),
    )


def add_ensemble(commands: Commands) -> None:
    """Add the command ``ensemble``.

    Args:
        commands: From ``ArgumentParser.add_subparsers``.
    """
    ensemble = add_command(
        commands,
        "ensemble",
        _ensemble,
        description=__doc__,
    )
    ensemble.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="folders")
    ensemble.add_argument(
        "--size",
        type=int,
        metavar="K",
        help="also measure all ensembles of K of the checkpoints: mean and range",
    )
    add_data_dir(ensemble)
    ensemble.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the metrics to this file"
    )


def _ensemble(arguments: argparse.Namespace) -> int:
    dataset = load_dataset(arguments.data_dir)
    record = measure(load_comparable(arguments.checkpoints, dataset), dataset, arguments.size)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(arguments.json, (record.model_dump_json(indent=2) + "\n").encode())
    for figures in (record.validation, record.test):
        sys.stdout.write(summary(figures))
    return 0


def summary(figures: Joint) -> str:
    """An ensemble's metrics as lines for a terminal."""
    alone = figures.alone
    low, high = figures.interval.low, figures.interval.high
    return (
        f"on {figures.images_name}, {len(alone)} networks:\n"
        f"  each alone        {100 * sum(alone) / len(alone):.2f}% ({100 * min(alone):.2f} to "
        f"{100 * max(alone):.2f})\n"
        f"  mean probability  {100 * figures.mean:.2f}% (95% interval {100 * low:.2f} to "
        f"{100 * high:.2f})\n"
        f"  majority vote     {100 * figures.vote:.2f}%\n"
        f"  any correct       {100 * figures.any_right:.2f}%\n"
        f"  negative log-likelihood of the mean probability {figures.loss:.4f} nats, "
        f"Brier score {figures.brier_score:.4f}\n"
        f"{_in_words(figures.subsets)}"
    )


def _in_words(subsets: Subsets | None) -> str:
    if subsets is None:
        return ""
    accuracy = subsets.accuracy
    return (
        f"  all {subsets.count} ensembles of {subsets.size}: mean {100 * accuracy.mean:.3f}% "
        f"({100 * accuracy.low:.2f} to {100 * accuracy.high:.2f})\n"
    )
