"""Measure a comparison from checkpoints and images; ``report`` writes it as a page.

Shape suffixes: N images, C channels (1), H and W 28 pixels, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.compare.calibration import calibrate, reliability
from training.compare.cost import measure_costs
from training.compare.groups import CheckpointGroup, read_groups, single_seeds, unfair_conditions
from training.compare.learning_curve import check_learning_curve, run_learning_curve
from training.compare.robustness import DISTORTIONS, distorted_curve
from training.compare.schema import (
    Alternative,
    ComparePlan,
    Comparison,
    Cost,
    Curve,
    Group,
    Network,
)
from training.compare.significance import Predictions, group_pairs, holm, welch
from training.data import Dataset, LabelledImages, split_validation, to_pixels
from training.device import device_name
from training.evaluation.classification import accuracy_per_digit, confusion_matrix
from training.evaluation.grouping import LoadedCheckpoint, conditions
from training.evaluation.prediction import predict_logits
from training.evaluation.statistics import spread, wilson
from training.provenance import commit, versions

CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Logits:
    """A network's logits, float [N, K], for the validation images and for the test images."""

    validation: Tensor
    test: Tensor


def compare(
    checkpoints: Sequence[Path],
    dataset: Dataset,
    plan: ComparePlan | None = None,
    *,
    folder: Path | None = None,
    device: torch.device = CPU,
    say: Callable[[str], None] = lambda text: None,
    on_measured: Callable[[Comparison], object] = lambda comparison: None,
) -> Comparison:
    """Compare digit checkpoints, with several seeds of each model.

    Args:
        checkpoints: Folders; checkpoints whose configs differ only in the seed form a group.
        dataset: The images that all checkpoints were trained on.
        plan: What to measure; None for the default plan.
        folder: An existing folder for the cached runs of ``plan.sizes``; not needed without sizes.
        device: Where to compute.
        say: Called with a line about each stage.
        on_measured: Called with all other results before ``plan.sizes`` are trained.

    Raises:
        CheckpointError: A checkpoint is broken or cannot be compared with the others.
        ValueError: The plan does not fit the checkpoints or the data.
    """
    plan = plan or ComparePlan()
    groups = read_groups(checkpoints, dataset)
    base = _base(plan, groups, dataset, folder)
    say(f"classifying {len(dataset.test):,} test images with {len(checkpoints)} networks")
    held_out = groups[0].config.validation_images
    _, validation = split_validation(dataset.train, held_out)
    logits = _predict_all(groups, validation, dataset.test, device)
    say("timing, in interleaved rounds")
    costs = measure_costs({g.name: g.modules[0] for g in groups}, base, plan.timing_rounds)
    measured = [
        _group(group, logits[group.name], validation, dataset.test, costs[group.name])
        for group in groups
    ]
    distorted = evenly(dataset.test, plan.images)
    comparison = Comparison(
        **_surroundings(dataset, device),
        validation_images=held_out,
        distorted_images=len(distorted),
        base=base,
        warnings=unfair_conditions(groups) + single_seeds(groups) + _changed(groups, measured),
        groups=measured,
        alternatives=_alternatives(measured, base),
        pairs=group_pairs(_predictions(groups, logits), dataset.test.labels, plan.differing_shown),
        curves=_curves(groups, distorted, say),
        sizes=[],
        picture_index=plan.picture_index,
    )
    if not plan.sizes or folder is None:
        return comparison
    on_measured(comparison)
    runs, failures = run_learning_curve(
        groups, dataset, plan.sizes, plan.size_epochs, folder=folder, device=device, say=say
    )
    return comparison.model_copy(update={"sizes": runs, "warnings": comparison.warnings + failures})


def evenly(data: LabelledImages, images: int | None) -> LabelledImages:
    """Select ``images`` images, evenly spaced; all of them if None or if there are no more.

    The first images of MNIST's test set are easier than the last: results on the first N alone
    would be too good.
    """
    if images is None or images >= len(data):
        return data
    return data.select(torch.arange(images) * len(data) // images)


def _base(
    plan: ComparePlan, groups: Sequence[CheckpointGroup], dataset: Dataset, folder: Path | None
) -> str:
    """Return the base group's name, after checking that the plan fits groups and data."""
    names = [group.name for group in groups]
    if plan.base is not None and plan.base not in names:
        raise ValueError(f"--base {plan.base}: no such group; the groups are: {', '.join(names)}")
    if plan.picture_index >= len(dataset.test):
        raise ValueError(
            f"--picture {plan.picture_index}: the test images are 0 to {len(dataset.test) - 1}"
        )
    if plan.sizes and folder is None:
        raise ValueError(
            "plan.sizes trains networks, which needs a folder for their results; pass folder"
        )
    if plan.sizes and folder is not None:
        check_learning_curve(groups, dataset, plan.sizes, folder)
    return plan.base or names[0]


def _predict_all(
    groups: Sequence[CheckpointGroup],
    validation: LabelledImages,
    test: LabelledImages,
    device: torch.device,
) -> dict[str, list[_Logits]]:
    return {
        group.name: [
            _Logits(
                *(predict_logits(module.to(device), part.images) for part in (validation, test))
            )
            for module in group.modules
        ]
        for group in groups
    }


def _predictions(
    groups: Sequence[CheckpointGroup], logits: Mapping[str, Sequence[_Logits]]
) -> dict[str, Predictions]:
    return {
        group.name: {
            checkpoint.record.config.seed: one.test.argmax(1)
            for checkpoint, one in zip(group.checkpoints, logits[group.name], strict=True)
        }
        for group in groups
    }


def _curves(
    groups: Sequence[CheckpointGroup], data: LabelledImages, say: Callable[[str], None]
) -> list[Curve]:
    modules = {group.name: group.modules for group in groups}
    curves = []
    for distortion in DISTORTIONS:
        say(f"{distortion.name}: {len(data):,} images at {len(distortion.levels)} levels")
        curves.append(distorted_curve(distortion, modules, to_pixels(data.images), data.labels))
    return curves


def _group(
    group: CheckpointGroup,
    logits: Sequence[_Logits],
    validation: LabelledImages,
    test: LabelledImages,
    cost: Cost,
) -> Group:
    networks = [
        _network(*pair, validation, test) for pair in zip(group.checkpoints, logits, strict=True)
    ]
    test_logits = [one.test for one in logits]
    temperatures = [network.calibration.temperature for network in networks]
    return Group(
        name=group.name,
        model=group.config.model,
        architecture=group.config.model_dump(mode="json")["architecture"],
        conditions=conditions(group.config),
        networks=networks,
        accuracy=spread([network.accuracy for network in networks]),
        error_before=spread([network.calibration.error_before for network in networks]),
        error_after=spread([network.calibration.error_after for network in networks]),
        reliability_before=reliability(test_logits, test.labels, [1.0] * len(networks)),
        reliability_after=reliability(test_logits, test.labels, temperatures),
        cost=cost,
    )


def _network(
    checkpoint: LoadedCheckpoint,
    logits: _Logits,
    validation: LabelledImages,
    test: LabelledImages,
) -> Network:
    predicted = logits.test.argmax(1)
    correct = int((predicted == test.labels).sum())
    confusion = confusion_matrix(test.labels, predicted)
    return Network(
        checkpoint=str(checkpoint.folder),
        seed=checkpoint.record.config.seed,
        weights_sha256=checkpoint.record.weights.sha256,
        accuracy=correct / len(test),
        interval=wilson(correct, len(test)),
        accuracy_per_digit=accuracy_per_digit(confusion),
        confusion=confusion.tolist(),
        calibration=calibrate(logits.validation, validation.labels, logits.test, test.labels),
    )


def _changed(groups: Sequence[CheckpointGroup], measured: Sequence[Group]) -> list[str]:
    """A warning for each network whose accuracy differs from its checkpoint's record."""
    lines = []
    for group, figures in zip(groups, measured, strict=True):
        for checkpoint, network in zip(group.checkpoints, figures.networks, strict=True):
            recorded = checkpoint.record.test
            if abs(network.accuracy - recorded.accuracy) > 1 / recorded.images:
                lines.append(
                    f"{network.checkpoint} classifies {network.accuracy:.2%} correctly here, but "
                    f"{recorded.accuracy:.2%} according to its record: another device or version "
                    "may compute other values"
                )
    return lines


def _alternatives(groups: Sequence[Group], base_name: str) -> list[Alternative]:
    base = next(group for group in groups if group.name == base_name)
    by_seed = {group.name: [network.accuracy for network in group.networks] for group in groups}
    tests = [
        None if name == base_name else welch(by_seed[base_name], by_seed[name]) for name in by_seed
    ]
    p_values = [test and test.p_value for test in tests]
    return [
        Alternative(
            name=group.name,
            difference=group.accuracy.mean - base.accuracy.mean,
            interval=test and test.interval,
            p_value=test and test.p_value,
            p_holm=corrected,
            parameters_ratio=group.cost.parameters / base.cost.parameters,
            multiply_adds_ratio=group.cost.multiply_adds / base.cost.multiply_adds,
        )
        for group, test, corrected in zip(groups, tests, holm(p_values), strict=True)
    ]


def _surroundings(dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """The fields of ``Comparison`` that identify the images, the machine and the code."""
    return {
        "data_name": dataset.name,
        "test_name": dataset.test_name,
        "data_sha256": dataset.sha256,
        "test_images": len(dataset.test),
        "device": device_name(device),
        "versions": versions(["torch", "numpy", "scipy"]),
        "commit": commit(),
    }
