"""Listing of an input's files, and their division into parts."""

import gzip
import os
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pyarrow as pa
import pytest

from export.bundle.store import Bundle
from service.score.errors import ScoreError
from service.score.parts import ImagesPart, ParquetPart, Plan, plan_parts
from service.score.source import find_source
from tests.service.score.made_inputs import (
    CNN,
    as_binary,
    make_digits,
    write_idx,
    write_parquet,
)

MANIFEST = Bundle.open(CNN).manifest
DIGITS = make_digits(250)
COLUMNS = {"images": as_binary(DIGITS)}


def _plan(input_: Path, part_rows: int = 200, key: str | None = None) -> Plan:
    source = find_source(str(input_), None)
    return plan_parts(source, MANIFEST, {"images": ("images",)}, key, part_rows)


def test_adjacent_row_groups_make_parts_of_at_most_the_asked_rows(tmp_path: Path) -> None:
    """Row groups of 100, 100 and 50 rows make parts of 200 and 50, and are never split."""
    write_parquet(tmp_path / "a.parquet", COLUMNS)
    write_parquet(tmp_path / "b.parquet", COLUMNS)
    assert _plan(tmp_path).parts == [
        ParquetPart("part-000000", "a.parquet", 0, 200, 0, 2),
        ParquetPart("part-000001", "a.parquet", 200, 50, 2, 1),
        ParquetPart("part-000002", "b.parquet", 0, 200, 0, 2),
        ParquetPart("part-000003", "b.parquet", 200, 50, 2, 1),
    ]
    small = _plan(tmp_path / "a.parquet", part_rows=10).parts
    assert [part.rows for part in small] == [100, 100, 50]


def test_the_parts_of_an_idx_file_are_ranges_of_rows(tmp_path: Path) -> None:
    """IDX files, compressed or not, are recognised by suffix or, if single, by content."""
    write_idx(tmp_path / "images-idx3-ubyte", DIGITS)
    packed = tmp_path / "images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress((tmp_path / "images-idx3-ubyte").read_bytes()))
    named_otherwise = tmp_path / "images"
    named_otherwise.write_bytes((tmp_path / "images-idx3-ubyte").read_bytes())
    for file in (tmp_path / "images-idx3-ubyte", packed, named_otherwise):
        parts = _plan(file).parts
        assert [(part.name, part.rows) for part in parts] == [
            ("part-000000", 200),
            ("part-000001", 50),
        ]


def test_images_are_taken_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Images come from all subfolders, in any case of suffix; other and hidden files do not."""
    for name in ("b/2.png", "a/1.JPG", "3.jpeg", ".hidden/4.png", "_old/5.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = find_source(str(tmp_path), None)
    assert source.format == "images"
    assert [file.name for file in source.files] == ["3.jpeg", "a/1.JPG", "b/2.png"]
    assert source.skipped == 1
    assert _plan(tmp_path, part_rows=2).parts == [
        ImagesPart("part-000000", 0, 2),
        ImagesPart("part-000001", 2, 1),
    ]


def test_an_input_may_be_a_pattern_or_a_url_of_fsspec(tmp_path: Path) -> None:
    """A pattern selects files of a folder, and a chained URL reads within an archive."""
    for name in ("a1", "a2", "b1"):
        write_parquet(tmp_path / f"{name}.parquet", COLUMNS)
    found = find_source(f"{tmp_path}/a*.parquet", None)
    assert [file.name for file in found.files] == ["a1.parquet", "a2.parquet"]
    with ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "b1.parquet", "inside/b1.parquet")
    url = f"zip://inside::file://{tmp_path}/all.zip"
    source = find_source(url, None)
    assert [file.name for file in source.files] == ["b1.parquet"]
    plan = plan_parts(source, MANIFEST, {"images": ("images",)}, None, 1000)
    assert [part.rows for part in plan.parts] == [250]


def test_a_truncated_file_among_others_is_named_and_the_others_are_divided(tmp_path: Path) -> None:
    """A truncated file is reported; without any readable file the run is refused."""
    whole = write_parquet(tmp_path / "a.parquet", COLUMNS).read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.parquet").write_bytes(b"")
    plan = _plan(tmp_path)
    assert {part.file for part in plan.parts if isinstance(part, ParquetPart)} == {"a.parquet"}
    assert [file.file for file in plan.unreadable] == ["b.parquet", "c.parquet"]
    assert all("not a complete Parquet file" in file.reason for file in plan.unreadable)
    with pytest.raises(ScoreError, match=r"no file of the input .* can be read: b.parquet"):
        _plan(tmp_path / "b.parquet")


def test_the_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    """Another file, size or modification time changes the fingerprint."""
    file = write_parquet(tmp_path / "a.parquet", COLUMNS)
    seen = [find_source(str(tmp_path), None).sha256]
    assert find_source(str(tmp_path), None).sha256 == seen[0]
    os.utime(file, (1, 1))
    seen.append(find_source(str(tmp_path), None).sha256)
    write_parquet(tmp_path / "a.parquet", {"images": as_binary(DIGITS[:9])})
    os.utime(file, (1, 1))
    seen.append(find_source(str(tmp_path), None).sha256)
    write_parquet(tmp_path / "b.parquet", COLUMNS)
    seen.append(find_source(str(tmp_path), None).sha256)
    assert len(set(seen)) == 4


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "there is no file at the input"),
        (
            {"a.csv": b"1,2"},
            "cannot be determined from the names of its files: a.csv; set it with --format",
        ),
        ({"a.png": b"", "b.parquet": b""}, "several formats (1 of parquet, 1 of images)"),
    ],
)
def test_an_input_that_is_none_is_refused_in_words(
    files: dict[str, bytes], said: str, tmp_path: Path
) -> None:
    """A missing input, an unknown format and mixed formats are refused."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ScoreError) as refused:
        find_source(str(tmp_path), None)
    assert said in str(refused.value)


def test_an_unknown_kind_of_url_is_refused_in_words() -> None:
    """The message names the package that fsspec needs, or says that it knows none."""
    with pytest.raises(ScoreError, match=r"the input nosuch://x cannot be listed: .*nosuch"):
        find_source("nosuch://x", None)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((3, 28, 27), np.uint8), "contains uint8 [3, 28, 27]; cnn takes images, UINT8"),
        (np.zeros(3, np.uint8), "contains uint8 [3]"),
    ],
)
def test_an_idx_file_of_another_shape_is_refused(values: Any, said: str, tmp_path: Path) -> None:
    """Labels beside the images are named in the error, with what to do."""
    with pytest.raises(ScoreError) as refused:
        _plan(write_idx(tmp_path / "some-ubyte", values))
    assert said in str(refused.value)
    assert "select the right ones with a pattern" in str(refused.value)


def test_files_whose_keys_have_several_types_are_refused(tmp_path: Path) -> None:
    """Keys of several types are refused, because an output column has one type."""
    ids = np.arange(250)
    write_parquet(tmp_path / "a.parquet", {**COLUMNS, "id": pa.array(ids, pa.int64())})
    write_parquet(tmp_path / "b.parquet", {**COLUMNS, "id": pa.array(ids, pa.int32())})
    with pytest.raises(ScoreError, match=r"b.parquet has a key of the type int32 .* of int64"):
        _plan(tmp_path, key="id")
    assert _plan(tmp_path / "a.parquet", key="id").key == pa.field("id", pa.int64())
