"""Output files appear complete or not at all, on local and other file systems."""

import subprocess
import sys
from pathlib import Path

import pytest

from service.score.errors import ScoreError
from service.score.output import OutputFolder, PartRecord, RunManifest
from service.score.parts import IdxPart, ParquetPart, UnreadableFile

PARTS = (IdxPart("part-000000", "a", 0, 5), ParquetPart("part-000001", "b", 0, 5, 0, 1))
MANIFEST = RunManifest({"bundle": "x"}, 5, b"key", PARTS, (UnreadableFile("c", "torn"),))


def _record(name: str, size_bytes: int) -> PartRecord:
    return PartRecord(name, 4, 1, size_bytes, "cpu", "CPUExecutionProvider", 0.5, 1)


@pytest.fixture(params=["local", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> OutputFolder:
    """A run's folder on a disk, or on a file system without renames."""
    where = str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path}"
    folder = OutputFolder(where)
    assert folder.read_manifest() is None
    with folder.lock():
        folder.write_manifest(MANIFEST)
    return folder


def test_what_was_written_is_read_again(output: OutputFolder) -> None:
    """A manifest with parts of every kind and the records of finished parts can be read again."""
    assert OutputFolder(output.url).read_manifest() == MANIFEST
    output.write("part-000000.parquet", b"12345")
    output.finish_part(_record("part-000000", 5))
    assert output.read_records(PARTS) == {"part-000000": _record("part-000000", 5)}


def test_a_part_whose_file_is_gone_or_shorter_is_not_finished(output: OutputFolder) -> None:
    """A part is finished only if its file has the size in the record."""
    output.finish_part(_record("part-000000", 5))
    assert not output.read_records(PARTS)
    output.write("part-000000.parquet", b"1234")
    assert not output.read_records(PARTS)


def test_a_file_whose_writing_fails_does_not_appear(output: OutputFolder) -> None:
    """A failed write leaves no new file, and an earlier file stays as it was."""
    output.write("part-000000.parquet", b"whole")

    def write_half() -> None:
        with output.stage("part-000000.parquet") as path:
            path.write_bytes(b"half")
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        write_half()
    assert output.size("part-000000.parquet") == 5
    if "memory" not in output.url:
        assert not list(Path(output.url).glob("_score/tmp/*"))


def test_the_quarantine_is_collected_in_the_order_of_the_parts(output: OutputFolder) -> None:
    """Unreadable files come first, then the rows of each part."""
    output.write("_score/quarantine/part-000001.jsonl", b"second\n")
    output.write("_score/quarantine/part-000000.jsonl", b"first\n")
    output.collect_quarantine(MANIFEST)
    expected = b'{"file":"c","reason":"torn"}\nfirst\nsecond\n'
    assert output.size("_quarantine.jsonl") == len(expected)


def test_removing_a_run_leaves_what_is_not_its_own(output: OutputFolder) -> None:
    """--restart removes parts, records and summary, but no other file."""
    for name in ("part-000000.parquet", "_summary.json", "_quarantine.jsonl", "notes.txt"):
        output.write(name, b"12345")
    output.finish_part(_record("part-000000", 5))
    output.remove_run()
    assert not output.read_records(PARTS)
    assert output.size("notes.txt") == 5
    with pytest.raises(ScoreError, match=r"contains notes.txt but no _score/manifest.json"):
        output.read_manifest()


def test_a_damaged_manifest_is_named(output: OutputFolder) -> None:
    """The message says how to start again."""
    output.write("_score/manifest.json", b"{")
    with pytest.raises(ScoreError, match=r"manifest.json is damaged: .* start again"):
        output.read_manifest()


def test_a_second_run_is_kept_away_until_the_first_one_ends(tmp_path: Path) -> None:
    """A lock excludes a second run and ends with its process in any case."""
    url = str(tmp_path / "out")
    program = (
        "import os\nfrom service.score.output import OutputFolder\n"
        f"with OutputFolder({url!r}).lock(): print('locked', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ScoreError, match="another run is writing to"), OutputFolder(url).lock():
            pass
        other.kill()
    with OutputFolder(url).lock():
        pass


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    """Nothing in it is overwritten, and it does not become a run's folder."""
    (tmp_path / "precious.parquet").write_bytes(b"1")
    with pytest.raises(ScoreError, match=r"contains precious.parquet .* is not overwritten"):
        OutputFolder(str(tmp_path)).read_manifest()
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(ScoreError, match="is a file; expected a folder"):
        OutputFolder(str(tmp_path / "file")).read_manifest()


def test_a_folder_that_cannot_be_made_is_refused_in_words(tmp_path: Path) -> None:
    """The message names the folder."""
    (tmp_path / "file").write_bytes(b"1")
    folder = OutputFolder(str(tmp_path / "file" / "out"))
    with pytest.raises(ScoreError, match=r"the output .*file/out cannot be created"), folder.lock():
        pass
