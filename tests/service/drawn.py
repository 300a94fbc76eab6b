"""Measures a served model's accuracy on drawings with and without conversion to MNIST's form.

    python -m tests.service.drawn artifacts/bundles/cnn --data-dir DIR

This draws MNIST's test digits large, as people and cameras do, and prints how many of them the
model classifies correctly: if pictures are only scaled to 28x28, and if they are converted to
MNIST's form. The last row has digits that no network here is trained on: the 1,797 test digits of
Alpaydin and Kaynak's "Optical Recognition of Handwritten Digits" (UCI, 1998), from scikit-learn.
"""

import argparse
import gzip
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from sklearn.datasets import load_digits

from export.bundle.metrics import Array
from export.bundle.session import OnnxModel
from export.bundle.store import Bundle
from service.adapters.digits import convert_picture
from service.protocol.errors import NothingDrawnError

BATCH, SIDE = 500, 28


@dataclass(frozen=True)
class Drawn:
    """Ranges of a drawing's random properties; each picture has its own draws.

    Attributes:
        sides: Range of height and width in pixels, each drawn separately.
        share: Range of the size of the digit's 28x28, relative to the shorter side.
        pen: Stroke width relative to MNIST's; below 1 is thinner.
        paper: Whether ink is dark on light paper.
        light: Greatest loss of brightness from one corner to the opposite one.
        noise: Standard deviation of camera noise, grey levels.
        contrast: Range of the ink's depth, grey levels.
    """

    sides: tuple[int, int] = (100, 600)
    share: tuple[float, float] = (0.3, 0.95)
    pen: float = 1.0
    paper: bool = False
    light: float = 0.0
    noise: float = 0.0
    contrast: tuple[int, int] = (255, 255)


KINDS: dict[str, Drawn | None] = {
    "28x28 as they are": None,
    "on a canvas of 280x280, in its middle": Drawn(sides=(280, 280), share=(0.9, 0.9)),
    "any size and place": Drawn(),
    "any size and place, small, a seventh to a third of the picture": Drawn(share=(1 / 7, 1 / 3)),
    "any size and place, by a thin pen": Drawn(pen=0.35),
    "any size and place, by a thick pen": Drawn(pen=1.6),
    "any size and place, dark ink on white paper": Drawn(paper=True),
    "any size and place, a photo: paper, light from one side, noise": Drawn(
        paper=True, light=0.5, noise=8, contrast=(90, 200)
    ),
    "any size and place, a bad photo: darker, noisier, faint ink": Drawn(
        paper=True, light=0.7, noise=16, contrast=(60, 140)
    ),
}


def draw(digit: Array, how: Drawn, generator: np.random.Generator) -> Image.Image:
    """Draw a picture of a digit.

    Args:
        digit: uint8 [28, 28], 255 = ink.
        how: The ranges of the random properties.
        generator: The random generator.
    """
    width, height = generator.integers(*how.sides, 2, endpoint=True).tolist()
    large = max(SIDE // 2, round(generator.uniform(*how.share) * min(width, height)))
    ink = _thickened(Image.fromarray(digit), how.pen).resize(
        (large, large), Image.Resampling.BICUBIC
    )
    depth = generator.uniform(*how.contrast) / 255
    place = [
        int(generator.integers(0, free, endpoint=True)) for free in (width - large, height - large)
    ]
    canvas = Image.new("L", (width, height), 0)
    canvas.paste(ink, (place[0], place[1]))
    pixels = np.asarray(canvas, np.float32) * depth
    if how.paper:
        pixels = 255 - pixels
    if how.light:
        pixels = pixels * _shade(width, height, generator.uniform(0, how.light), generator)
    if how.noise:
        pixels = pixels + generator.normal(0, how.noise, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _thickened(digit: Image.Image, pen: float) -> Image.Image:
    """Thin or thicken strokes by this factor, with sharp edges, on an eightfold enlargement."""
    large = digit.resize((8 * SIDE, 8 * SIDE), Image.Resampling.BICUBIC)
    if pen == 1:
        return large
    ink = large.point(lambda v: 255 * (v > 127))
    stroke = 2.5 * 8  # pixels; MNIST's usual stroke width at this size
    size = 1 + 2 * round(abs(pen - 1) * stroke / 4)
    # Ink beyond the box would be cut off by the picture's edge otherwise.
    return ink.filter((ImageFilter.MinFilter if pen < 1 else ImageFilter.MaxFilter)(size))


def _shade(width: int, height: int, loss: float, generator: np.random.Generator) -> Array:
    angle = generator.uniform(0, 2 * np.pi)
    x, y = np.linspace(-0.5, 0.5, width), np.linspace(-0.5, 0.5, height)[:, None]
    along = (np.cos(angle) * x + np.sin(angle) * y) / np.sqrt(0.5)
    return np.asarray(1 - loss * (0.5 + along / 2))


def fitted(image: Image.Image) -> Array:
    """The plain way: invert if the edge is light, then scale the whole to 28x28 and centre it."""
    pixels = np.asarray(image)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = int(np.median(rim))
    if ground > 127:
        image, ground = ImageOps.invert(image), 255 - ground
    longer = max(image.size)
    width, height = (max(1, round(side * SIDE / longer)) for side in image.size)
    filter_ = Image.Resampling.BOX if longer > SIDE else Image.Resampling.BICUBIC
    square = Image.new("L", (SIDE, SIDE), ground)
    square.paste(
        image.resize((width, height), filter_), ((SIDE - width) // 2, (SIDE - height) // 2)
    )
    return np.array(square)


def read_idx(path: Path) -> Array:
    """Read an IDX file of bytes (MNIST's format), compressed or not."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    shape = np.frombuffer(content, ">i4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def made(images: Sequence[Image.Image], way: Callable[[Image.Image], Array]) -> tuple[Array, int]:
    """Pictures as uint8 [N, 28, 28], and how many were refused (replaced by black images)."""
    forms, refused = [], 0
    for image in images:
        try:
            forms.append(way(image))
        except NothingDrawnError:
            forms.append(np.zeros((SIDE, SIDE), np.uint8))
            refused += 1
    return np.stack(forms), refused


def pictures(digits: Array, how: Drawn | None, seed: int) -> list[Image.Image]:
    """Draw each digit once; without ``how``, return it as it is."""
    generator = np.random.default_rng(seed)
    return [Image.fromarray(d) if how is None else draw(d, how, generator) for d in digits]


def right(model: OnnxModel, images_NHW: Array, labels: Array) -> int:
    """Number of images that the model classifies correctly."""
    starts = range(0, len(images_NHW), BATCH)
    answers = [
        model({"images": images_NHW[i : i + BATCH]})["logits"].argmax(axis=1) for i in starts
    ]
    return int((np.concatenate(answers) == labels).sum())


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each way of drawing."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.service.drawn",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="a bundle of digits")
    parser.add_argument(
        "--data-dir", type=Path, default=os.environ.get("MNIST_DIR"), help="MNIST's IDX files"
    )
    parser.add_argument("--images", type=int, default=10_000, help="digits; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of digits, places, sizes and noise")
    arguments = parser.parse_args(argv)
    digits, labels = some(arguments.images, arguments.seed, *read_test_set(arguments.data_dir))
    model = OnnxModel(Bundle.open(arguments.bundle).model_path("onnx"), "cpu")
    _print_row(["drawn", "fitted into 28x28", "made into MNIST's form", "refused"])
    _print_row(["---"] * 4)
    for name, how in KINDS.items():
        _print_accuracy(name, model, pictures(digits, how, arguments.seed), labels)
    name = "UCI's 8x8 digits, all 1,797, enlarged to 160x160 on a canvas of 280x280"
    _print_accuracy(name, model, *uci_digits())
    return 0


def uci_digits() -> tuple[list[Image.Image], Array]:
    """UCI's 8x8 digits (ink 0 to 16), enlarged in the middle of a picture, with labels."""
    images, labels = load_digits(return_X_y=True)
    drawn = []
    for pixels in images.reshape(-1, 8, 8):
        canvas = Image.new("L", (280, 280), 0)
        small = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8))
        canvas.paste(small.resize((160, 160), Image.Resampling.BICUBIC), (60, 60))
        drawn.append(canvas)
    return drawn, labels


def _print_accuracy(
    name: str, model: OnnxModel, drawn: Sequence[Image.Image], labels: Array
) -> None:
    plain, _ = made(drawn, fitted)
    formed, refused = made(drawn, convert_picture)
    shares = [f"{right(model, images, labels) / len(labels):.2%}" for images in (plain, formed)]
    _print_row([name, *shares, str(refused)])


def some(count: int, seed: int, *arrays: Array) -> list[Array]:
    """A random sample of each array's rows: MNIST's first test images are unlike its last."""
    chosen = np.random.default_rng(seed).permutation(len(arrays[0]))[:count]
    return [array[chosen] for array in arrays]


def _print_row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)  # noqa: T201


def read_test_set(folder: Path | None) -> tuple[Array, Array]:
    """Read MNIST's test images and labels from the folder or from its MNIST/raw."""
    if folder is None:
        raise SystemExit("name the folder of MNIST's IDX files with --data-dir or MNIST_DIR")
    raw = next((p for p in (Path(folder) / "MNIST" / "raw", Path(folder)) if p.is_dir()), None)
    if raw is None:
        raise SystemExit(f"there is no folder {folder}")
    return read_idx(raw / "t10k-images-idx3-ubyte"), read_idx(raw / "t10k-labels-idx1-ubyte")


if __name__ == "__main__":
    sys.exit(main())
