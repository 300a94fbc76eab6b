"""Scoring of a part by one actor, without Ray."""

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from export.bundle.metrics import Arrays
from export.bundle.store import Bundle
from service.score import run
from service.score.errors import ScoreError
from service.score.output import OutputFolder, PartRecord
from service.score.parts import ImagesPart, Part, plan_parts
from service.score.scorer import Job, PartScorer
from service.score.source import find_source
from tests.service.made_bundles import make_nan_bundle, make_text_bundle
from tests.service.score.made_inputs import (
    CNN,
    as_binary,
    as_lists,
    ask_model,
    make_digits,
    make_options,
    read_output,
    read_probabilities,
    write_idx,
    write_parquet,
)
from tests.tiny import SERVED_BUNDLES

PICTURE = SERVED_BUNDLES.parent / "digit.png"


def _make(input_: Path, output: Path, **further: Any) -> tuple[PartScorer, list[Part]]:
    """A scorer, and the parts of an input with their file names."""
    options = make_options(input_, output, **further)
    bundle = Bundle.open(options.bundle)
    source = find_source(options.input, options.format)
    mapping = {spec.name: (spec.name,) for spec in bundle.manifest.inputs}
    plan = plan_parts(source, bundle.manifest, mapping, options.key, options.part_rows or 1000)
    names = tuple(file.name for file in source.files)
    parts = [
        msgspec.structs.replace(part, files=names) if isinstance(part, ImagesPart) else part
        for part in plan.parts
    ]
    job = Job(
        bundle=options.bundle,
        settings=run._read_settings(options),
        proof="0" * 64,
        location=source.location,
        output=options.output,
        mapping=mapping,
        key=options.key,
        key_type=None if plan.key is None else plan.key.type,
        batch_size=options.batch_size,
    )
    return PartScorer(job), parts


def _score(input_: Path, output: Path, **further: Any) -> list[PartRecord]:
    scorer, parts = _make(input_, output, **further)
    return [scorer.score(part) for part in parts]


def _quarantined(output: Path) -> list[dict[str, Any]]:
    files = sorted(output.glob("_score/quarantine/*.jsonl"))
    return [msgspec.json.decode(line) for file in files for line in file.read_bytes().splitlines()]


def test_answers_are_the_models_bit_by_bit_in_batches_of_the_asked_size(tmp_path: Path) -> None:
    """Row groups of 100 rows are run in batches of 64, and answers equal the engine's."""
    digits = make_digits(300)
    file = write_parquet(tmp_path / "in" / "a.parquet", {"images": as_lists(digits)})
    (record,) = _score(file, tmp_path / "out")
    assert (record.rows, record.quarantined) == (300, 0)
    table = read_output(tmp_path / "out")
    np.testing.assert_array_equal(read_probabilities(table), ask_model(digits))
    assert table["row"].to_pylist() == list(range(300))
    assert table.column_names == [
        *("file", "row", "label", "probabilities", "model", "version", "proof")
    ]
    labels = [str(best) for best in ask_model(digits).argmax(axis=1)]
    assert table["label"].to_pylist() == labels
    assert set(table["file"].to_pylist()) == {"a.parquet"}
    assert set(table["proof"].to_pylist()) == {"0" * 64}


def test_rows_after_a_bad_one_close_up_so_that_batches_stay_full(tmp_path: Path) -> None:
    """A bad row leaves no gap in its batch, and its key is quarantined."""
    digits = make_digits(130)
    column = as_binary(digits).to_pylist()
    column[10] = None
    keys = [f"id-{i}" for i in range(130)]
    write_parquet(
        tmp_path / "in" / "a.parquet", {"images": pa.array(column, pa.binary(784)), "id": keys}
    )
    (record,) = _score(tmp_path / "in", tmp_path / "out", key="id")
    assert (record.rows, record.quarantined) == (129, 1)
    table = read_output(tmp_path / "out")
    good = np.delete(digits, 10, axis=0)
    np.testing.assert_array_equal(read_probabilities(table), ask_model(good))
    assert table["key"].to_pylist() == keys[:10] + keys[11:]
    (bad,) = _quarantined(tmp_path / "out")
    assert bad == {
        "file": "a.parquet",
        "row": 10,
        "rows": 1,
        "reason": "images is null; expected uint8 values",
        "key": "id-10",
    }


def test_idx_and_parquet_of_the_same_images_get_the_same_answers(tmp_path: Path) -> None:
    """The second part of an IDX file starts where the first one ends."""
    digits = make_digits(200)
    _score(write_idx(tmp_path / "in-ubyte", digits), tmp_path / "out", part_rows=128)
    table = read_output(tmp_path / "out")
    np.testing.assert_array_equal(read_probabilities(table), ask_model(digits))
    assert table["row"].to_pylist() == list(range(200))


def test_the_missing_rows_of_a_truncated_idx_file_are_quarantined(tmp_path: Path) -> None:
    """Complete rows are scored, and one entry gives the number of missing rows."""
    digits = make_digits(100)
    file = write_idx(tmp_path / "in-ubyte", digits)
    file.write_bytes(file.read_bytes()[:-1000])
    (record,) = _score(file, tmp_path / "out")
    assert (record.rows, record.quarantined) == (98, 2)
    (bad,) = _quarantined(tmp_path / "out")
    assert (bad["row"], bad["rows"]) == (98, 2)
    assert "ends before this row" in bad["reason"]


def test_pictures_are_decoded_as_the_service_does_and_damaged_ones_quarantined(
    tmp_path: Path,
) -> None:
    """Answers are keyed by file name, and a file that is no image has the service's reason."""
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(PICTURE, folder / "a.png")
    (folder / "b.png").write_bytes(PICTURE.read_bytes()[:100])
    shutil.copy(PICTURE, folder / "c.png")
    (record,) = _score(folder, tmp_path / "out")
    assert (record.rows, record.quarantined) == (2, 1)
    table = read_output(tmp_path / "out")
    assert table["file"].to_pylist() == ["a.png", "c.png"]
    (bad,) = _quarantined(tmp_path / "out")
    assert bad["file"] == "b.png"
    assert "the image is damaged" in bad["reason"]


def test_a_damaged_page_costs_only_the_rows_from_there_on(tmp_path: Path) -> None:
    """Every row is scored or quarantined, and other row groups are scored."""
    digits = make_digits(300)
    file = write_parquet(tmp_path / "in" / "a.parquet", {"images": as_binary(digits)})
    second = pq.ParquetFile(file).metadata.row_group(1).column(0)
    content = bytearray(file.read_bytes())
    middle = second.dictionary_page_offset or second.data_page_offset
    content[middle : middle + 400] = bytes(400)
    file.write_bytes(content)
    records = _score(file, tmp_path / "out", part_rows=100)
    assert [(record.rows, record.quarantined) for record in records] == [
        (100, 0),
        (0, 100),
        (100, 0),
    ]
    (bad,) = _quarantined(tmp_path / "out")
    assert (bad["row"], bad["rows"]) == (100, 100)
    assert "damaged from about this row on" in bad["reason"]
    assert read_output(tmp_path / "out")["row"].to_pylist() == [*range(100), *range(200, 300)]


def test_rows_of_several_lengths_get_the_answers_of_their_own(tmp_path: Path) -> None:
    """A text model's rows are batched by length, and each row gets its own answer."""
    bundle = make_text_bundle(tmp_path)
    lengths = [1 + i % 5 for i in range(40)]
    ids = [[i] * length for i, length in enumerate(lengths)]
    masks = [[1.0] * length for length in lengths]
    write_parquet(
        tmp_path / "in" / "a.parquet",
        {
            "ids": pa.array(ids, pa.list_(pa.int64())),
            "mask": pa.array(masks, pa.list_(pa.float32())),
        },
    )
    _score(tmp_path / "in", tmp_path / "out", bundle=bundle.folder, batch_size=4)
    table = read_output(tmp_path / "out")
    assert sorted(table["row"].to_pylist()) == list(range(40))
    for row, mean in zip(table["row"].to_pylist(), table["mean"].to_pylist(), strict=True):
        assert mean == [float(row)]


def test_an_answer_that_is_not_finite_is_quarantined(tmp_path: Path) -> None:
    """A negative number's square root gets no answer, and other rows get theirs."""
    bundle = make_nan_bundle(tmp_path)
    rows = np.array([[1, 4], [-1, 4], [9, 16]], np.float32)
    write_parquet(tmp_path / "in" / "a.parquet", {"x": pa.array(list(rows))})
    (record,) = _score(tmp_path / "in", tmp_path / "out", bundle=bundle.folder)
    assert (record.rows, record.quarantined) == (2, 1)
    assert read_output(tmp_path / "out")["y"].to_pylist() == [[1, 2], [3, 4]]
    (bad,) = _quarantined(tmp_path / "out")
    assert (bad["row"], "NaN or infinity" in bad["reason"]) == (1, True)


def test_a_row_that_the_engine_cannot_compute_is_found_and_the_others_are_scored(
    tmp_path: Path,
) -> None:
    """The engine fails for batches with one image, while its golden samples are right."""
    digits = make_digits(70)
    file = write_parquet(tmp_path / "in" / "a.parquet", {"images": as_binary(digits)})
    scorer, (part,) = _make(file, tmp_path / "out")
    engine = scorer._model.engine

    def fail_on_one(inputs: Arrays) -> Arrays:
        if (inputs["images"][:, 0, 0] == 5).any() and len(inputs["images"]) < 65:
            raise RuntimeError("planted")
        return engine(inputs)

    fail_on_one.device, fail_on_one.provider = engine.device, engine.provider  # type: ignore[attr-defined]
    object.__setattr__(scorer._model, "engine", fail_on_one)
    record = scorer.score(part)
    assert (record.rows, record.quarantined) == (69, 1)
    (bad,) = _quarantined(tmp_path / "out")
    assert (bad["row"], bad["reason"]) == (5, "the model cannot compute this row: planted")
    np.testing.assert_allclose(
        read_probabilities(read_output(tmp_path / "out")),
        np.delete(ask_model(digits), 5, axis=0),
        atol=1e-5,
    )


def test_an_engine_that_fails_its_golden_samples_ends_the_run(tmp_path: Path) -> None:
    """A broken device does not quarantine all rows, and no part is recorded as finished."""
    file = write_parquet(tmp_path / "in" / "a.parquet", {"images": as_binary(make_digits(70))})
    scorer, (part,) = _make(file, tmp_path / "out")
    engine = scorer._model.engine

    def fail(inputs: Arrays) -> Arrays:
        raise RuntimeError("planted")

    fail.device, fail.provider = engine.device, engine.provider  # type: ignore[attr-defined]
    object.__setattr__(scorer._model, "engine", fail)
    with pytest.raises(ScoreError, match="the engine failed: planted; then cnn cannot compute"):
        scorer.score(part)
    assert not list(tmp_path.glob("out/*.parquet"))
    assert not OutputFolder(str(tmp_path / "out")).read_records((part,))


def test_an_actor_refuses_a_bundle_that_was_altered(served_bundle: Path, tmp_path: Path) -> None:
    """Actors make the service's checks at start: hashes, verdicts and golden samples."""
    file = write_parquet(tmp_path / "in" / "a.parquet", {"images": as_binary(make_digits(7))})
    scorer, _ = _make(file, tmp_path / "out", bundle=served_bundle)
    model = served_bundle / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ScoreError, match=r"model.onnx was altered"):
        PartScorer(scorer._job)


@contextmanager
def _largest_file(size_bytes: int) -> Iterator[None]:
    """Limit the size of this process's files, so that writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_part_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    """The message says what to do, and the same part can be scored afterwards."""
    digits = make_digits(300)
    file = write_parquet(tmp_path / "in" / "a.parquet", {"images": as_binary(digits)})
    scorer, (part,) = _make(file, tmp_path / "out")
    with (
        _largest_file(4000),
        pytest.raises(
            ScoreError, match=r"part-000000 cannot be written to .*free some space there"
        ),
    ):
        scorer.score(part)
    assert not [path for path in tmp_path.glob("out/**/*") if path.is_file()]
    assert scorer.score(part).rows == 300
    np.testing.assert_array_equal(
        read_probabilities(read_output(tmp_path / "out")), ask_model(digits)
    )


def test_a_row_group_is_not_held_in_memory_as_a_whole(tmp_path: Path) -> None:
    """Reading a row group takes less than half the memory of its values."""
    count = 60_000
    pixels = np.random.default_rng(0).integers(0, 256, count * 784, np.uint8)
    buffers = [None, pa.py_buffer(pixels)]
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(784), count, buffers)
    file = write_parquet(tmp_path / "in" / "a.parquet", {"images": column}, row_group_size=count)
    scorer, (part,) = _make(file, tmp_path / "out", part_rows=count)
    pool, peak, before = pa.default_memory_pool(), 0, pa.total_allocated_bytes()
    for _ in scorer._reader.read(part, scorer._model.manifest, scorer._model.adapter):
        peak = max(peak, pool.bytes_allocated() - before)
    assert 0 < peak < count * 784 / 2


def test_batches_stay_full_from_one_chunk_of_a_file_to_the_next(tmp_path: Path) -> None:
    """With 5,000 rows in two chunks and one bad row, only the last batch is not full."""
    digits = make_digits(5000)
    cells = as_binary(digits).to_pylist()
    cells[10] = None
    images = pa.array(cells, pa.binary(784))
    file = write_parquet(tmp_path / "in" / "a.parquet", {"images": images}, row_group_size=5000)
    scorer, (part,) = _make(file, tmp_path / "out", part_rows=5000)
    engine, sizes = scorer._model.engine, list[int]()

    def count(inputs: Arrays) -> Arrays:
        sizes.append(len(inputs["images"]))
        return engine(inputs)

    count.device, count.provider = engine.device, engine.provider  # type: ignore[attr-defined]
    object.__setattr__(scorer._model, "engine", count)
    assert scorer.score(part).rows == 4999
    assert sizes == [64] * 78 + [7]
    table = read_output(tmp_path / "out")
    assert table["row"].to_pylist() == [*range(10), *range(11, 5000)]
    np.testing.assert_array_equal(
        read_probabilities(table), ask_model(np.delete(digits, 10, axis=0))
    )


def test_the_bundle_may_come_with_the_job(tmp_path: Path) -> None:
    """An actor on another machine does not need the bundle's folder."""
    digits = make_digits(10)
    file = write_parquet(tmp_path / "in" / "a.parquet", {"images": as_binary(digits)})
    scorer, (part,) = _make(file, tmp_path / "out")
    job = run._with_bundle_files(scorer._job)
    away = PartScorer(Job(**{**vars(job), "bundle": Path("/nowhere")}))
    assert away.score(part).rows == 10
    assert CNN.is_dir()
