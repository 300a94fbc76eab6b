"""Complete runs on Ray: answers, resumption after a kill, and exit codes."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loadtest.server import free_port
from service.score import cli, pool
from service.score.__main__ import main
from service.score.errors import ScoreError
from service.score.run import score
from tests.service.answers import RAW
from tests.service.score.made_inputs import (
    BATCH,
    CNN,
    as_binary,
    ask_model,
    make_digits,
    make_options,
    read_output,
    read_probabilities,
    read_quarantine,
    write_parquet,
)

ROOT = Path(__file__).parent.parent.parent.parent
PATIENCE_S = 120


def _command(input_: Path, output: Path, *further: str) -> list[str]:
    command = [sys.executable, "-m", "service.score", str(input_), str(output)]
    return [*command, "--bundle", str(CNN), "--threads", "1", "--device", "cpu", *further]


def _check_whole(output: Path, digits: np.ndarray) -> None:
    """Check that every row is there once, with the engine's answer."""
    table = read_output(output).sort_by("row")
    assert table["row"].to_pylist() == list(range(len(digits)))
    np.testing.assert_allclose(read_probabilities(table), ask_model(digits), atol=1e-5)


def test_a_run_gives_the_services_answers(
    ray_here: None, service_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers are bit-equal in batches of the same size; the summary counts, exit code 0."""
    digits = make_digits(BATCH * 4)
    write_parquet(tmp_path / "in" / "a.parquet", {"images": as_binary(digits)}, BATCH)
    command = [str(tmp_path / "in"), str(tmp_path / "out"), "--bundle", str(CNN), "--quiet"]
    assert main([*command, "--part-rows", "64", "--threads", "1"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["quarantined_rows"], summary["parts"]) == (256, 0, 4)
    assert summary == json.loads((tmp_path / "out" / "_summary.json").read_text())
    table = read_output(tmp_path / "out")
    served = [
        _ask_service(service_url, digits[i : i + BATCH]) for i in range(0, len(digits), BATCH)
    ]
    np.testing.assert_array_equal(read_probabilities(table), np.concatenate(served))
    assert set(table["version"].to_pylist()) == {summary["version"]}
    assert set(table["proof"].to_pylist()) == {summary["proof"]}


def _ask_service(url: str, digits: np.ndarray) -> np.ndarray:
    answer = httpx.post(
        f"{url}/v2/models/cnn/infer", content=digits.tobytes(), headers=RAW, timeout=PATIENCE_S
    )
    json_length = int(answer.headers["inference-header-content-length"])
    values = np.frombuffer(answer.content[json_length:], np.float32)
    return values[len(values) // 2 :].reshape(-1, 10)


def test_actors_that_are_killed_lose_nothing_and_repeat_nothing(
    ray_here: None, tmp_path: Path
) -> None:
    """A new actor scores a killed actor's part again, and every row is there once."""
    digits = make_digits(6000)
    write_parquet(tmp_path / "in" / "a.parquet", {"images": as_binary(digits)})
    output = tmp_path / "out"
    killed = list[int]()
    ended = threading.Event()

    def kill_workers() -> None:
        while not ended.is_set() and len(killed) < 3:
            finished = len(list(output.glob("_score/finished/*.json")))
            busy = [p for p in _find_actors() if p.pid not in killed]
            if busy and finished > 5 * len(killed):
                killed.append(busy[0].pid)
                busy[0].kill()
            time.sleep(0.01)

    killer = threading.Thread(target=kill_workers)
    killer.start()
    try:
        summary = score(make_options(tmp_path / "in", output, part_rows=100, actors=2))
    finally:
        ended.set()
        killer.join()
    assert len(killed) == 3
    assert (summary.rows, summary.quarantined_rows) == (6000, 0)
    _check_whole(output, digits)
    assert not list(output.glob("_score/tmp/*"))


def _find_actors() -> list[psutil.Process]:
    """This process's actors that compute a part; Ray names their processes by task."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if ".submit" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_an_actor_that_dies_again_and_again_ends_the_run(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops after some attempts and says that the same command resumes it."""
    monkeypatch.setattr(pool, "MAX_RETRIES", 1)
    write_parquet(tmp_path / "in" / "a.parquet", {"images": as_binary(make_digits(300))})
    ended = threading.Event()

    def kill_workers() -> None:
        while not ended.is_set():
            for process in _find_actors():
                process.kill()
            time.sleep(0.01)

    killer = threading.Thread(target=kill_workers)
    killer.start()
    try:
        with pytest.raises(ScoreError, match=r"an actor could not be kept running: .*to resume"):
            score(make_options(tmp_path / "in", tmp_path / "out", actors=1))
    finally:
        ended.set()
        killer.join()


def test_a_finished_run_goes_on_only_with_what_is_missing(ray_here: None, tmp_path: Path) -> None:
    """A lost part is scored again, and the other parts' files are not touched."""
    digits = make_digits(300)
    file = write_parquet(tmp_path / "in" / "a.parquet", {"images": as_binary(digits)})
    options = make_options(tmp_path / "in", tmp_path / "out", part_rows=100)
    first = score(options)
    before = {p.name: p.stat().st_ino for p in tmp_path.glob("out/*.parquet")}
    assert score(options) == first
    (tmp_path / "out" / "part-000001.parquet").unlink()
    again = score(options)
    assert (again.parts, again.parts_of_this_run, again.rows) == (3, 1, 300)
    after = {p.name: p.stat().st_ino for p in tmp_path.glob("out/*.parquet")}
    assert {name for name in after if after[name] == before[name]} == {
        *("part-000000.parquet", "part-000002.parquet")
    }
    _check_whole(tmp_path / "out", digits)
    os.utime(file, (1, 1))
    with pytest.raises(ScoreError, match="belongs to another run: the input's files was 1 "):
        score(options)


def test_the_output_of_another_run_is_kept_unless_restart_is_asked(
    ray_here: None, tmp_path: Path
) -> None:
    """The message names every option that differs, with both values."""
    digits = make_digits(150)
    write_parquet(tmp_path / "in" / "a.parquet", {"images": as_binary(digits), "id": range(150)})
    score(make_options(tmp_path / "in", tmp_path / "out", part_rows=100))
    other: dict[str, Any] = {"batch_size": 32, "key": "id", "part_rows": 64}
    with pytest.raises(ScoreError) as refused:
        score(make_options(tmp_path / "in", tmp_path / "out", **other))
    for said in (
        "--batch-size was 64 and is 32",
        "--key was none and is id",
        "--part-rows was 100",
    ):
        assert said in str(refused.value)
    summary = score(make_options(tmp_path / "in", tmp_path / "out", restart=True, **other))
    assert summary.rows == 150
    assert read_output(tmp_path / "out")["key"].to_pylist() == list(range(150))


def test_bad_rows_and_files_are_in_the_quarantine_and_the_exit_code_is_1(
    ray_here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad rows are listed with file, row and reason, and all others have answers."""
    digits = make_digits(150)
    cells = as_binary(digits).to_pylist()
    cells[7] = cells[120] = None
    write_parquet(tmp_path / "in" / "a.parquet", {"images": pa.array(cells, pa.binary(784))})
    whole = (tmp_path / "in" / "a.parquet").read_bytes()
    (tmp_path / "in" / "b.parquet").write_bytes(whole[:-20])
    command = [str(tmp_path / "in"), str(tmp_path / "out"), "--bundle", str(CNN), "--quiet"]
    assert main(command) == cli.QUARANTINED
    said = capsys.readouterr()
    assert json.loads(said.out)["quarantined_rows"] == 2
    assert "2 rows and 1 files have no answer" in said.err
    found = [(bad["file"], bad.get("row")) for bad in read_quarantine(tmp_path / "out")]
    assert found == [("b.parquet", None), ("a.parquet", 7), ("a.parquet", 120)]
    assert read_output(tmp_path / "out").num_rows == 148
    assert main(command) == cli.QUARANTINED


def _no_bundle(folder: Path) -> list[str]:
    return ["in", "out", "--bundle", str(folder / "none")]


def _no_input(_: Path) -> list[str]:
    return ["nothing-here", "out", "--bundle", str(CNN)]


def _wrong_column(folder: Path) -> list[str]:
    write_parquet(folder / "in" / "a.parquet", {"pixels": as_binary(make_digits(3))})
    return [str(folder / "in"), str(folder / "out"), "--bundle", str(CNN)]


def _wrong_input(folder: Path) -> list[str]:
    return [*_wrong_column(folder), "--inputs", "x=pixels"]


def _no_mapping(folder: Path) -> list[str]:
    return [*_wrong_column(folder), "--inputs", "images"]


def _output_in_input(folder: Path) -> list[str]:
    _wrong_column(folder)
    return [str(folder / "in"), str(folder / "in" / "out"), "--bundle", str(CNN)]


def _no_variant(folder: Path) -> list[str]:
    return [*_wrong_column(folder), "--inputs", "images=pixels", "--variant", "onnx-int4"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_no_bundle, "is not a bundle: manifest.json is missing"),
        (_no_input, "there is no file at the input nothing-here"),
        (_wrong_column, "no column images for the input images=UINT8[-1,28,28]; its columns are "),
        (_wrong_input, "--inputs names x; the inputs of cnn are images=UINT8[-1,28,28]"),
        (_no_mapping, "--inputs images: expected NAME=COLUMN"),
        (_output_in_input, "is inside the input"),
        (_no_variant, "onnx-int4"),
    ],
)
def test_wrong_use_is_refused_before_anything_starts(
    make: Callable[[Path], list[str]],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wrong use gives exit code 2, one message on stderr and no output folder."""
    assert main(make(tmp_path)) == cli.NOT_RUN
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.startswith("score: ")
    assert printed.out == ""
    assert not (tmp_path / "out").exists()


def test_a_column_is_found_by_the_name_that_inputs_gives(ray_here: None, tmp_path: Path) -> None:
    """--inputs images=pixels reads the column pixels."""
    digits = make_digits(20)
    write_parquet(tmp_path / "in" / "a.parquet", {"pixels": as_binary(digits)})
    score(make_options(tmp_path / "in", tmp_path / "out", inputs={"images": ("pixels",)}))
    _check_whole(tmp_path / "out", digits)


@pytest.mark.slow
def test_a_killed_run_goes_on_without_repeating_finished_parts(tmp_path: Path) -> None:
    """After SIGKILL the same command completes every row once and keeps finished files."""
    digits = make_digits(20_000)
    write_parquet(tmp_path / "in" / "a.parquet", {"images": as_binary(digits)}, 200)
    output = tmp_path / "out"
    command = _command(tmp_path / "in", output, "--part-rows", "200", "--actors", "1")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as run:
        deadline_s = time.monotonic() + PATIENCE_S
        while len(list(output.glob("_score/finished/*"))) < 5:
            assert time.monotonic() < deadline_s
            assert run.poll() is None
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
    finished = {
        path.stem: (output / f"{path.stem}.parquet").stat().st_ino
        for path in output.glob("_score/finished/*")
    }
    assert 5 <= len(finished) < 100
    home = tmp_path / "home"
    home.mkdir()
    summary = _run(command, {**os.environ, "HOME": str(home)})
    assert not list(home.glob(".ray/*"))  # no token that later clusters would require
    assert summary["rows"] == 20_000
    assert 0 < summary["parts_of_this_run"] <= 100 - len(finished)
    for part, inode in finished.items():
        assert (output / f"{part}.parquet").stat().st_ino == inode
    _check_whole(output, digits)


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a command that prints nothing on stderr, and return its summary."""
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """The exit code is 2 with the reason, and with more space finished parts are kept."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only the system's administrator may make a small disk here")
    try:
        digits = make_digits(20_000)
        write_parquet(tmp_path / "in" / "a.parquet", {"images": as_binary(digits)}, 1000)
        command = _command(tmp_path / "in", disk / "out", "--part-rows", "1000")
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
        assert ran.returncode == cli.NOT_RUN
        assert "No space left on device" in ran.stderr
        assert "free some space there, then run the same command" in ran.stderr
        kept = len(list(disk.glob("out/_score/finished/*")))
        assert kept > 0
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        summary = _run(command)
        assert (summary["rows"], summary["parts_of_this_run"]) == (20_000, 20 - kept)
        _check_whole(disk / "out", digits)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """A folder for Ray, whose socket paths must be short."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.mark.slow
def test_a_cluster_is_reached_by_its_address(ray_folder: str, tmp_path: Path) -> None:
    """With a running Ray cluster, its actors get code and bundle from the driver."""
    ray = Path(sys.executable).with_name("ray")
    # With its own token, because the cluster listens on the network during the test.
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    port = free_port()
    start = [str(ray), "start", "--head", f"--port={port}", f"--temp-dir={ray_folder}"]
    start += ["--num-cpus=2", "--include-dashboard=false", "--block", "--disable-usage-stats"]
    with subprocess.Popen(
        start,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as cluster:
        try:
            digits = make_digits(300)
            write_parquet(tmp_path / "in" / "a.parquet", {"images": as_binary(digits)})
            address = f"127.0.0.1:{port}"
            _wait_for_cluster(ray, address, environment)
            command = _command(tmp_path / "in", tmp_path / "out", "--part-rows", "100")
            summary = _run([*command, "--ray-address", address], environment)
            assert summary["actors"] == 2
            _check_whole(tmp_path / "out", digits)
        finally:
            cluster.terminate()


def _wait_for_cluster(ray: Path, address: str, environment: dict[str, str]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    status = [str(ray), "status", "--address", address]
    while subprocess.run(status, env=environment, capture_output=True).returncode:
        assert time.monotonic() < deadline_s
        time.sleep(0.5)


def test_no_file_of_parquet_is_written_that_other_readers_cannot_read(
    ray_here: None, tmp_path: Path
) -> None:
    """With pandas the folder is one table, and only columns of names have dictionaries in it."""
    write_parquet(tmp_path / "in" / "a.parquet", {"images": as_binary(make_digits(130))})
    score(make_options(tmp_path / "in", tmp_path / "out", part_rows=100))
    group = pq.ParquetFile(tmp_path / "out" / "part-000000.parquet").metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    numbers = {one.path_in_schema for one in columns if not one.has_dictionary_page}
    assert numbers == {"row", "probabilities.list.element"}
    frame = pq.read_table(tmp_path / "out").to_pandas()
    assert frame.shape == (130, 7)
    assert frame["label"].astype(str).str.len().eq(1).all()
