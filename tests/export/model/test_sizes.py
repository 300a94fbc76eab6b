"""Samples for every size that must be proven: given ones, or larger ones cropped to it."""

from pathlib import Path

import numpy as np
import pytest

from export.bundle.manifest import SubjectError
from export.model.domains import parse_input
from export.model.sizes import block_sizes, sizes_to_prove, with_sizes
from export.model.under_test import Samples, read_samples

IDS, MASK = parse_input("ids=INT64[-1,t=2..8]"), parse_input("mask=INT64[-1,t=2..8]:mask")


def _samples(size: int, name: str = "given") -> Samples:
    ids = np.tile(np.arange(size), (5, 1))
    return Samples({"ids": ids, "mask": np.ones_like(ids)}, name, "0" * 64)


def test_both_ends_and_between_are_proven_and_each_axis_alone() -> None:
    """One axis gives three sizes, two give five pairs, and no axis gives none."""
    assert sizes_to_prove({"t": (2, 8)}) == [{"t": 8}, {"t": 2}, {"t": 5}]
    assert sizes_to_prove({"t": (3, 3)}) == [{"t": 3}]
    pairs = sizes_to_prove({"h": (2, 8), "w": (4, 6)})
    assert [tuple(p.values()) for p in pairs] == [(8, 6), (2, 4), (5, 5), (2, 6), (8, 4)]
    assert sizes_to_prove({}) == []


def test_samples_of_missing_sizes_are_cropped_from_larger_ones() -> None:
    """Inputs that share an axis are cropped alike, and given sizes are not made again."""
    found = with_sizes([IDS, MASK], [_samples(8), _samples(2, "short")])
    assert [s.sizes for s in found.others] == ["t=2", "t=5"]
    assert found.others[0].name == "short"
    assert found.others[1].arrays["ids"][0].tolist() == [0, 1, 2, 3, 4]
    assert found.others[1].arrays["mask"].shape == (5, 5)
    assert found.sizes == ""


def test_lengths_are_cut_with_the_axis_that_they_count() -> None:
    """A length of 8 becomes 5 on an axis of 5."""
    lengths = parse_input("lengths=INT64[-1]:length=1..8")
    samples = Samples({"ids": np.zeros((4, 8), int), "lengths": np.array([8, 3, 1, 6])}, "", "")
    cropped = with_sizes([IDS, lengths], [samples]).others[-1]
    assert (cropped.sizes, cropped.arrays["lengths"].tolist()) == ("t=5", [5, 3, 1, 5])


def test_samples_too_small_to_crop_are_refused() -> None:
    """Sizes must include the largest, stay within the bounds and be shared."""
    with pytest.raises(SubjectError, match="no samples of the size t=8"):
        with_sizes([IDS, MASK], [_samples(5)])
    with pytest.raises(SubjectError, match=r"the size 9 on the axis t; expected 2\.\.8"):
        with_sizes([IDS, MASK], [_samples(9)])
    unequal = _samples(8).arrays | {"mask": np.ones((5, 7), int)}
    with pytest.raises(SubjectError, match="the same size wherever the axis occurs"):
        block_sizes([IDS, MASK], unequal)
    with pytest.raises(SubjectError, match="several files, but no axis is variable"):
        with_sizes([parse_input("ids=INT64[-1,8]")], [_samples(8), _samples(8)])
    other = parse_input("mask=INT64[-1,t=2..9]")
    with pytest.raises(SubjectError, match="one range for one name"):
        with_sizes([IDS, other], [_samples(8)])


def test_several_files_are_samples_of_several_sizes(tmp_path: Path) -> None:
    """Files must have the same arrays, and have one common fingerprint."""
    for size in (8, 2):
        np.savez(tmp_path / f"{size}.npz", allow_pickle=False, **_samples(size).arrays)
    long, short = read_samples([tmp_path / "8.npz", tmp_path / "2.npz"])
    assert long.name == short.name == "8.npz, 2.npz"
    alone = [read_samples([tmp_path / f"{size}.npz"])[0].sha256 for size in (8, 2)]
    assert len({long.sha256, short.sha256, *alone}) == 3
    np.savez(tmp_path / "odd.npz", allow_pickle=False, ids=np.zeros((4, 3)))
    with pytest.raises(SubjectError, match="expected those of"):
        read_samples([tmp_path / "8.npz", tmp_path / "odd.npz"])
