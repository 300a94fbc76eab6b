"""Measure the time to reach an accuracy, compared with the MNIST script of PyTorch's examples.

    python -m training speed --rounds 3
    python -m training speed --device cuda --precision bfloat16 --compiled --epochs 2

Both train on the same images and machine, one after the other in each round. The time runs from
the first batch to the end of the epoch after which the accuracy on the 10,000 test images reaches
the target; measuring the accuracy is not counted. The example is measured after each epoch. A run
of this project is measured once, at the end of its one-cycle schedule of ``--epochs``. On a CPU,
only the ratio is printed, because such machines are shared; on a GPU, seconds are printed, too. On
a GPU or with ``--compiled``, a warm-up first loads and compiles kernels, for both.
"""

# Shape suffixes: N images, C channels, H and W pixels, K classes.

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, median_low
from typing import get_args

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from training.cli import Commands, add_command, add_common, add_precision, model_name
from training.config import Preset, TrainConfig, preset
from training.data import (
    PIXEL_MEAN,
    PIXEL_STD,
    Dataset,
    LabelledImages,
    load_dataset,
    split_validation,
    validation_size,
)
from training.device import chosen_device, device_name
from training.evaluation.classification import evaluate
from training.loop.fit import fit

# The example's default arguments (pytorch/examples, mnist/main.py), deliberately not tuned.
EXAMPLE_EPOCHS, EXAMPLE_BATCH, EXAMPLE_RATE, EXAMPLE_GAMMA = 14, 64, 1.0, 0.7


@dataclass(frozen=True)
class Reached:
    """The result of a run.

    Attributes:
        seconds: Training time, without the evaluation on test images.
        epochs: Number of epochs trained.
        accuracy: Accuracy on the test images at the end, 0..1.
    """

    seconds: float
    epochs: int
    accuracy: float


class ExampleNet(nn.Module):
    """The example's network: two 3x3 convolutions, a pooling, two dense layers; 1.2M parameters."""

    def __init__(self) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Standardised images, float [N, 1, 28, 28], to log probabilities, float [N, 10]."""
        x_NCHW = functional.relu(self.conv2(functional.relu(self.conv1(x_NCHW))))
        x_NF = self.dropout1(functional.max_pool2d(x_NCHW, 2)).flatten(1)
        x_NF = self.dropout2(functional.relu(self.fc1(x_NF)))
        return functional.log_softmax(self.fc2(x_NF), dim=1)


class _OneByOne(TorchDataset[tuple[Tensor, int]]):
    """Converts images one by one with PIL and the transforms, as torchvision's data set does."""

    def __init__(self, data: LabelledImages) -> None:
        self._data = data
        self._transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((PIXEL_MEAN,), (PIXEL_STD,))]
        )

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self._data.images[index].numpy())
        return self._transform(image), int(self._data.labels[index])


def example(dataset: Dataset, target: float, seed: int, device: torch.device) -> Reached:
    """Train as the example does, until it reaches the target accuracy or its last epoch.

    Args:
        dataset: The images; all training images are trained on.
        target: Accuracy on the test images, 0..1.
        seed: Seed of all random numbers.
        device: Where to compute; images are copied there batch by batch.
    """
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(mode=False)
    batches = DataLoader(_OneByOne(dataset.train), EXAMPLE_BATCH, shuffle=True)
    module = ExampleNet().to(device)
    optimizer = torch.optim.Adadelta(module.parameters(), lr=EXAMPLE_RATE)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=EXAMPLE_GAMMA)
    seconds, accuracy, epoch = 0.0, 0.0, 0
    while accuracy < target and epoch < EXAMPLE_EPOCHS:
        begun = time.perf_counter()
        module.train()
        for x_NCHW, labels_N in batches:
            optimizer.zero_grad()
            x_NCHW, labels_N = x_NCHW.to(device), labels_N.to(device)
            functional.nll_loss(module(x_NCHW), labels_N).backward()
            optimizer.step()
        scheduler.step()
        _finish(device)
        seconds += time.perf_counter() - begun
        epoch, accuracy = epoch + 1, evaluate(module, dataset.test, "test").accuracy
    return Reached(seconds, epoch, accuracy)


def ours(dataset: Dataset, config: TrainConfig, device: torch.device) -> Reached:
    """Train as ``python -m training train`` does, including validation and saving of the state.

    Args:
        dataset: The images; validation images are held out from its training images.
        config: Config of a digit classifier.
        device: Where to compute.
    """
    held_out = validation_size(config.validation_images, len(dataset.train))
    train, validation = split_validation(dataset.train, held_out)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        fitted = fit(
            config.with_changes(validation_images=held_out),
            train,
            validation,
            device=device,
            folder=Path(folder),
            data_sha256=dataset.sha256,
        )
        _finish(device)
        seconds = time.perf_counter() - begun
    return Reached(seconds, config.epochs, evaluate(fitted.module, dataset.test, "test").accuracy)


def _finish(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _round(
    dataset: Dataset, config: TrainConfig, target: float, device: torch.device
) -> tuple[Reached, Reached]:
    """Run the example and ours with the config's seed; ours runs first if the seed is odd."""
    if config.seed % 2:
        own = ours(dataset, config, device)
        return example(dataset, target, config.seed, device), own
    theirs = example(dataset, target, config.seed, device)
    return theirs, ours(dataset, config, device)


def _warm_up(dataset: Dataset, config: TrainConfig, device: torch.device) -> None:
    """Run both for one epoch of a few batches, to load kernels and, if requested, compile."""
    few = LabelledImages(dataset.train.images[:4096], dataset.train.labels[:4096])
    little = Dataset("few", "few", dataset.source, few, few)
    example(little, 0.0, 0, device)
    ours(little, config.with_changes(epochs=1), device)


def add_speed(commands: Commands) -> None:
    """Add the command ``speed``.

    Args:
        commands: From ``ArgumentParser.add_subparsers``.
    """
    speed = add_command(
        commands,
        "speed",
        _speed,
        description=__doc__,
    )
    speed.add_argument(
        "--model",
        default="cnn",
        type=model_name,
        metavar="NAME",
        help="the network to train (default: %(default)s)",
    )
    speed.add_argument(
        "--preset",
        choices=get_args(Preset),
        default="quick",
        help="its preset (default: %(default)s)",
    )
    speed.add_argument(
        "--epochs",
        type=int,
        default=2,
        metavar="N",
        help="epochs of its training (default: %(default)s)",
    )
    speed.add_argument(
        "--target",
        type=float,
        default=99.0,
        metavar="PERCENT",
        help="accuracy to reach on the test images (default: %(default)s)",
    )
    speed.add_argument(
        "--rounds",
        type=int,
        default=3,
        metavar="N",
        help="how often to train both (default: %(default)s)",
    )
    add_precision(speed)
    add_common(speed)


def _speed(arguments: argparse.Namespace) -> int:
    if arguments.rounds < 1 or not 0 < arguments.target < 100:  # noqa: PLR2004 - percent
        raise ValueError(
            f"--rounds {arguments.rounds} --target {arguments.target:g}: --rounds must be at least "
            "1, and --target between 0 and 100 percent"
        )
    dataset, device = load_dataset(arguments.data_dir), chosen_device(arguments.device)
    config = preset(arguments.model, arguments.preset).with_changes(
        epochs=arguments.epochs, precision=arguments.precision, compiled=arguments.compiled
    )
    if device.type == "cuda" or config.compiled:
        _warm_up(dataset, config, device)
    say, target = sys.stdout.write, arguments.target / 100
    say(f"to {arguments.target:g}% of {dataset.test_name}, {device_name(device)}\n\n")
    say("| round | example, epochs | accuracy | ours, epochs | accuracy | times as fast |\n")
    say("|---|---|---|---|---|---|\n")
    rounds: list[tuple[Reached, Reached]] = []
    for seed in range(arguments.rounds):
        both = _round(dataset, config.with_changes(seed=seed), target, device)
        rounds.append(both)
        cells = [f"{run.epochs} | {100 * run.accuracy:.2f}%" for run in both]
        ratio = times_as_fast(*both, target)
        told = f"{ratio:.1f} x" if 0 < ratio < math.inf else "not reached"
        say(f"| {seed + 1} | {' | '.join(cells)} | {told} |\n")
        sys.stdout.flush()
    say(f"\n{verdict([times_as_fast(*both, target) for both in rounds])}\n")
    if device.type == "cuda":
        theirs_s, own_s = (
            median(run.seconds if run.accuracy >= target else math.inf for run in runs)
            for runs in zip(*rounds, strict=True)
        )
        say(f"median seconds: example {theirs_s:.1f}, ours {own_s:.2f}\n")
    return 0 if all(run.accuracy >= target for both in rounds for run in both) else 1


def times_as_fast(theirs: Reached, own: Reached, target: float) -> float:
    """How many times as fast ours was: 0 if ours missed the target, infinite if the example did."""
    if own.accuracy < target:
        return 0.0
    return theirs.seconds / own.seconds if theirs.accuracy >= target else math.inf


def verdict(ratios: Sequence[float]) -> str:
    """The median and the range of the rounds' ratios as a sentence, including missed rounds.

    A round in which ours missed the target ranks as slower than all others, although its ratio is
    not known. If any round missed, the median of an even number of rounds is the lower one of the
    two in the middle, because their mean is not known either.
    """
    reached = [ratio for ratio in ratios if 0 < ratio < math.inf]
    missed = len(ratios) - len(reached)
    middle = median_low(ratios) if missed else median(ratios)
    if not 0 < middle < math.inf:
        return f"{missed} of {len(ratios)} rounds missed the target: no ratio can be given"
    text = f"median of {len(ratios)} rounds: {middle:.1f} times as fast"
    if len(ratios) > 1:
        text += f" ({min(reached):.1f} to {max(reached):.1f} where reached)"
    return f"{text}; {missed} missed the target" if missed else text
