"""Measures the out-of-distribution guard: false alarms on digits and detection of other images.

    python -m tests.export.guarded artifacts/bundles/cnn --data-dir DIR --fashion DIR

This runs a bundle's guard on MNIST's test images, on other images, and on the drawings of
``tests.service.drawn``, converted to 28x28 as in the service. An image is flagged if its p-value
is below the guard's bound. Debian's package dataset-fashion-mnist has Fashion-MNIST.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from export.bundle.metrics import Array
from export.bundle.session import OnnxModel
from export.bundle.store import Bundle
from export.mnist.ood_detector import OodDetector
from service.adapters.digits import convert_picture
from tests.service.drawn import KINDS, made, pictures, read_idx, read_test_set, some
from training.evaluation.statistics import wilson

FASHION = Path("/usr/share/datasets/fashion-mnist")
TIMED, ROUNDS = (1, 64, 512), 200
LEAST_SHOWN = 0.01


def strange(digits_NHW: Array, fashion_NHW: Array | None) -> Iterator[tuple[str, Array]]:
    """Images that are not digits on paper, by name, each uint8 [N, 28, 28]."""
    generator = np.random.default_rng(0)
    shape = digits_NHW.shape
    if fashion_NHW is not None:
        yield "Fashion-MNIST's test images", fashion_NHW
    yield "noise, uniform", generator.integers(0, 256, shape, np.uint8)
    normal = generator.normal(128, 64, shape)
    yield "noise, normal (mean 128, deviation 64)", normal.clip(0, 255).astype(np.uint8)
    like_mnist = generator.normal(33.3, 78.6, shape)
    yield "noise, normal, of MNIST's mean and deviation", like_mnist.clip(0, 255).astype(np.uint8)
    yield "blank, every grey", np.repeat(np.arange(256, dtype=np.uint8), 784).reshape(-1, 28, 28)
    yield "digits, inverted", 255 - digits_NHW
    yield "digits, divided by 255", np.rint(digits_NHW / 255).astype(np.uint8)
    yield "digits, at a quarter of their brightness", digits_NHW // 4
    pixels = digits_NHW.reshape(len(digits_NHW), -1)
    yield "digits, each one's pixels shuffled", generator.permuted(pixels, axis=1).reshape(shape)
    yield "digits, moved by 6 pixels", np.roll(digits_NHW, 6, axis=2)
    yield "digits, turned by 90 degrees", np.rot90(digits_NHW, axes=(1, 2))
    yield "digits, mirrored", digits_NHW[:, :, ::-1]


def share(found: int, of: int) -> str:
    """A share with its 95% interval."""
    interval = wilson(found, of)
    return f"{found / of:.2%} ({interval.low:.2%} to {interval.high:.2%})"


def row(guard: OodDetector, name: str, images_NHW: Array) -> list[str]:
    """The guard's result: number of images, number flagged and the most frequent reason."""
    verdicts = guard.judge(images_NHW)
    reasons = Counter(verdict.reason for verdict in verdicts if not verdict.usual)
    told = sum(reasons.values())
    shares = [(words, n / told) for words, n in reasons.most_common(2) if n >= LEAST_SHOWN * told]
    most = ", ".join(f"{words} {part:.0%}" for words, part in shares)
    return [name, f"{len(verdicts):,}", share(told, len(verdicts)), most]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each kind of images, and the cost of a verdict."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.export.guarded",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="a bundle of digits with a guard")
    parser.add_argument(
        "--data-dir", type=Path, default=os.environ.get("MNIST_DIR"), help="MNIST's IDX files"
    )
    parser.add_argument(
        "--fashion", type=Path, default=FASHION, help="Fashion-MNIST's; default: %(default)s"
    )
    parser.add_argument("--images", type=int, default=10_000, help="drawn; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the drawings")
    arguments = parser.parse_args(argv)
    bundle = Bundle.open(arguments.bundle)
    guard, model = (
        OodDetector.load(bundle.path("guard")),
        OnnxModel(bundle.model_path("onnx"), "cpu"),
    )
    digits = read_test_set(arguments.data_dir)[0]
    (to_draw,) = some(arguments.images, arguments.seed, digits)
    packed = arguments.fashion / "t10k-images-idx3-ubyte.gz"
    if not packed.exists():
        print(f"left out: {packed} is not there", file=sys.stderr)  # noqa: T201
    fashion = read_idx(packed) if packed.exists() else None
    _print_row(["images", "", "told to be unusual (95% interval)", "mostly as"])
    _print_row(["---"] * 4)
    _print_row(row(guard, "MNIST's test images", digits))
    for name, images in strange(digits, fashion):
        _print_row(row(guard, name, images))
    for name, how in KINDS.items():
        if how is not None:
            formed, refused = made(pictures(to_draw, how, arguments.seed), convert_picture)
            kept = formed[formed.any(axis=(1, 2))]
            _print_row(row(guard, f"drawn: {name} ({refused} refused)", kept))
    for count in TIMED:
        print(f"{count} images at a time: {_cost(guard, model, digits[:count]):.2f} x the model")  # noqa: T201
    return 0


def _cost(guard: OodDetector, model: OnnxModel, images_NHW: Array) -> float:
    """Time of a verdict beside the model's own answer, as medians of alternating rounds."""
    timed_s: list[list[float]] = []
    for _ in range(ROUNDS):
        start_s = time.perf_counter()
        guard.judge(images_NHW)
        between_s = time.perf_counter()
        model({"images": images_NHW})
        timed_s.append([between_s - start_s, time.perf_counter() - between_s])
    guards_s, models_s = np.median(timed_s, axis=0)
    return float(guards_s / models_s)


def _print_row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
