"""Sources of images, and which images may be called MNIST."""

import gzip
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets, transforms

from training.data import (
    DataError,
    LabelledImages,
    load_dataset,
    split_validation,
    standardise,
    to_pixels,
)
from training.data import mnist as data
from training.data.mnist import IDX_FILES


def test_reads_the_four_idx_files_of_a_folder(data_dir: Path) -> None:
    """A folder of IDX files gives uint8 images and int64 labels in file order."""
    dataset = load_dataset(data_dir)
    assert (len(dataset.train), len(dataset.test)) == (1_500, 300)
    assert dataset.train.images.dtype == torch.uint8
    assert dataset.train.images.shape == (1_500, 28, 28)
    raw = (data_dir / "t10k-labels-idx1-ubyte").read_bytes()[8:]
    assert dataset.test.labels.tolist() == list(raw)


def test_does_not_call_other_images_mnist(data_dir: Path) -> None:
    """Images that are not the official ones are never named just MNIST."""
    dataset = load_dataset(data_dir)
    assert dataset.name.startswith("custom")
    assert "MNIST's 10,000" not in dataset.test_name


def test_official_files_are_known_by_their_hash(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fingerprint is the sha256 of the four concatenated files; a match is named MNIST."""
    together = b"".join((data_dir / name).read_bytes() for name in IDX_FILES)
    expected = hashlib.sha256(together).hexdigest()
    assert load_dataset(data_dir).sha256 == expected
    monkeypatch.setattr(data, "OFFICIAL_MNIST_SHA256", expected)
    assert load_dataset(data_dir).name == "MNIST"


def test_reads_packed_files(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files ending in .gz give the same images as uncompressed ones."""
    monkeypatch.setattr(data, "DOWNLOAD_DIR", tmp_path / "cache")
    packed = tmp_path / "packed"
    packed.mkdir()
    for name in IDX_FILES:
        (packed / f"{name}.gz").write_bytes(gzip.compress((data_dir / name).read_bytes()))
    assert load_dataset(packed).sha256 == load_dataset(data_dir).sha256


def test_processes_that_unpack_at_once_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may finish the same file between this one's write and rename."""
    monkeypatch.setattr(data, "DOWNLOAD_DIR", tmp_path / "cache")
    packed = tmp_path / "images.gz"
    packed.write_bytes(gzip.compress(b"pixels"))
    process, replace = os.getpid(), Path.replace

    def interfering(path: Path, target: Path) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            patch.setattr(Path, "rename", replace)
            patch.setattr(os, "getpid", lambda: process + 1)
            data._unpacked(packed)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", interfering)
    monkeypatch.setattr(Path, "rename", interfering)
    assert data._unpacked(packed).read_bytes() == b"pixels"


def test_a_download_is_seen_whole_or_not_at_all(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No downloaded file is visible to other processes until all four are complete."""
    monkeypatch.setattr(data, "DOWNLOAD_DIR", tmp_path / "cache")
    raw = tmp_path / "cache" / "MNIST" / "raw"
    seen = list[bool]()

    def slow_download(root: str, download: bool) -> None:
        assert download
        folder = Path(root) / "MNIST" / "raw"
        folder.mkdir(parents=True)
        for name in IDX_FILES:
            shutil.copy(data_dir / name, folder)
            seen.append((raw / name).exists())

    monkeypatch.setattr(datasets, "MNIST", slow_download)
    dataset = data._download()
    assert dataset is not None
    assert dataset.sha256 == load_dataset(data_dir).sha256
    assert seen == [False] * 4
    monkeypatch.setattr(datasets, "MNIST", None)
    assert data._download() is not None  # the second time nothing is downloaded
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["MNIST"]


def test_the_environment_names_the_folder(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST_DIR is used if no folder is given."""
    monkeypatch.setenv("MNIST_DIR", str(data_dir))
    assert load_dataset().source == f"folder {data_dir}"


def test_a_named_folder_without_files_is_an_error_not_a_fallback(tmp_path: Path) -> None:
    """A wrong --data-dir names the missing file, and no other source is tried."""
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        load_dataset(tmp_path)
    with pytest.raises(DataError, match="no data folder"):
        load_dataset(tmp_path / "nowhere")


def test_a_broken_packed_file_is_named(tmp_path: Path) -> None:
    """A .gz file that is not gzip is refused with its name."""
    for name in IDX_FILES:
        (tmp_path / f"{name}.gz").write_bytes(b"not packed")
    with pytest.raises(DataError, match=r"train-images.*\.gz cannot be unpacked"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not idx", b"\x00\x00\x08\x03\x00\x00\x00\x05"])
def test_a_broken_file_is_named(data_dir: Path, tmp_path: Path, content: bytes) -> None:
    """A file that is not IDX is refused with its name."""
    broken = shutil.copytree(data_dir, tmp_path / "broken")
    (broken / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte"):
        load_dataset(broken)


def test_labels_and_images_must_fit(data_dir: Path, tmp_path: Path) -> None:
    """Fewer labels than images are refused with both counts."""
    broken = shutil.copytree(data_dir, tmp_path / "broken")
    shutil.copy(data_dir / IDX_FILES[3], broken / IDX_FILES[1])
    with pytest.raises(DataError, match=r"1500.*300 labels"):
        load_dataset(broken)


def test_without_a_network_the_packaged_images_are_used_and_said_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The fallback prints a note, splits by digit and is not called MNIST's test set."""
    monkeypatch.setattr(data, "_download", lambda: None)
    dataset = load_dataset()
    assert (len(dataset.train), len(dataset.test)) == (4_000, 1_000)
    assert torch.bincount(dataset.test.labels).tolist() == [100] * 10
    assert dataset.test_name == "1,000 held-out images of MNIST's training set"
    assert any("no figure of this run is MNIST's test accuracy" in m for m in caplog.messages)


def test_the_validation_split_is_the_same_each_time_and_in_proportion() -> None:
    """The split is disjoint, stratified by digit and repeatable."""
    labels = torch.arange(10).repeat_interleave(torch.arange(30, 130, 10))
    images = torch.arange(len(labels)).to(torch.uint8)[:, None, None].expand(-1, 28, 28)
    everything = LabelledImages(images, labels)
    kept, held_out = split_validation(everything, len(labels) // 10)
    assert len(kept) + len(held_out) == len(labels)
    share = torch.bincount(held_out.labels, minlength=10) / torch.bincount(labels)
    assert ((share - 0.1).abs() < 0.03).all()
    again = split_validation(everything, len(labels) // 10)
    assert torch.equal(again[1].labels, held_out.labels)
    with pytest.raises(DataError, match="at most a third"):
        split_validation(everything, len(labels) // 2)


def test_standardisation_is_bit_equal_to_torchvisions() -> None:
    """The result is bit-equal to torchvision's ToTensor and Normalize."""
    image = np.random.default_rng(1).integers(0, 256, (28, 28), dtype=np.uint8)
    theirs = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )(image)
    ours = standardise(to_pixels(torch.from_numpy(image)[None]))[0]
    assert torch.equal(ours, theirs)
