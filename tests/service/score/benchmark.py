"""Measures offline scoring beside ONNX Runtime alone, its memory, and the cost of a restart.

    python -m tests.service.score.benchmark BUNDLE --work DIR

Both sides have the same cores and one thread in each process. ONNX Runtime alone runs batches of 64
of an array in memory, again and again: nothing is read or written. The two are measured in turn,
and each pair gives one ratio, because rates mean little on a machine that does other work. The
images are random bytes, which cannot be compressed.
"""

import argparse
import json
import multiprocessing
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from export.bundle.manifest import TensorSpec
from export.bundle.session import OnnxModel
from export.bundle.store import Bundle
from service.engine.engines import count_cores

BATCH = 64
ROW_GROUP_ROWS = 8192
ALONE_S = 5.0
SAMPLE_S = 0.25
MIB = 2**20


@dataclass(frozen=True)
class Ran:
    """One run of the command: its summary, wall time and peak memory, 0 if it was not measured."""

    summary: dict[str, Any]
    seconds: float
    peak_bytes: int


def write_input(folder: Path, spec: TensorSpec, rows: int, form: str) -> Path:
    """Write random samples of a UINT8 input as one Parquet file of several row groups."""
    folder.mkdir(parents=True, exist_ok=True)
    size = int(np.prod(spec.shape[1:]))
    type_ = pa.binary(size) if form == "binary" else pa.list_(pa.uint8(), size)
    schema = pa.schema([(spec.name, type_)])
    generator = np.random.default_rng(0)
    with pq.ParquetWriter(folder / "input.parquet", schema) as writer:
        for start in range(0, rows, ROW_GROUP_ROWS):
            count = min(ROW_GROUP_ROWS, rows - start)
            values = generator.integers(0, 256, count * size, np.uint8)
            if form == "binary":
                buffers = [None, pa.py_buffer(values)]
                column = pa.FixedSizeBinaryArray.from_buffers(type_, count, buffers)
            else:
                column = pa.FixedSizeListArray.from_arrays(pa.array(values), size)
            writer.write_table(pa.table([column], schema=schema))
    return folder


def measure_alone(bundle: Path, spec: TensorSpec, processes: int) -> float:
    """Rows per second of ONNX Runtime alone, in this many processes at once."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=_run_alone, args=(bundle, spec, barrier, queue))
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    rates = [queue.get() for _ in workers]
    for worker in workers:
        worker.join()
    return float(sum(rates))


def _run_alone(bundle: Path, spec: TensorSpec, barrier: Any, queue: Any) -> None:
    model = OnnxModel(bundle / "model.onnx", "cpu", 1)
    rows = np.random.default_rng(0).integers(0, 256, (BATCH * 64, *spec.shape[1:]), np.uint8)
    model({spec.name: rows[:BATCH]})
    barrier.wait()
    started_s, done = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started_s) < ALONE_S:
        start = done % len(rows)
        model({spec.name: rows[start : start + BATCH]})
        done += BATCH
    queue.put(done / seconds)


def run_score(input_: Path, output: Path, bundle: Path, *, with_memory: bool = False) -> Ran:
    """Run the command to its end.

    Args:
        input_: The folder to score.
        output: The folder that the command writes.
        bundle: The model.
        with_memory: Measure the peak memory, which takes time from the cores that score.
    """
    started_s = time.perf_counter()
    with subprocess.Popen(
        _command(input_, output, bundle), stdout=subprocess.PIPE, text=True
    ) as run:
        # The summary fits into the pipe, so it can be read when the run has ended.
        peak_bytes = _watch_memory(run) if with_memory else 0
        printed, _ = run.communicate()
    if run.returncode:
        raise RuntimeError(f"scoring ended with {run.returncode}")
    return Ran(json.loads(printed), time.perf_counter() - started_s, peak_bytes)


def _command(input_: Path, output: Path, bundle: Path) -> list[str]:
    command = [sys.executable, "-m", "service.score", str(input_), str(output)]
    return [*command, "--bundle", str(bundle), "--threads", "1", "--quiet"]


def _watch_memory(run: "subprocess.Popen[str]") -> int:
    """Return the largest total proportional set size of a process and its descendants."""
    peak_bytes = 0
    while run.poll() is None:
        try:
            process = psutil.Process(run.pid)
            total = 0
            for one in (process, *process.children(recursive=True)):
                try:
                    total += one.memory_full_info().pss
                except psutil.Error:
                    continue
            peak_bytes = max(peak_bytes, total)
        except psutil.Error:
            break
        time.sleep(SAMPLE_S)
    return peak_bytes


def measure_restart(input_: Path, output: Path, bundle: Path) -> dict[str, Any]:
    """Kill a run when half of its parts are finished, and run the command again."""
    shutil.rmtree(output, ignore_errors=True)
    whole = run_score(input_, output, bundle)
    shutil.rmtree(output)
    started_s = time.perf_counter()
    with subprocess.Popen(_command(input_, output, bundle), stdout=subprocess.DEVNULL) as run:
        while 2 * len(list(output.glob("_score/finished/*"))) < whole.summary["parts"]:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    killed_s = time.perf_counter() - started_s
    finished = len(list(output.glob("_score/finished/*")))
    second = run_score(input_, output, bundle)
    return {
        "parts": whole.summary["parts"],
        "parts_finished_when_killed": finished,
        "parts_of_second_run": second.summary["parts_of_this_run"],
        "uninterrupted_s": round(whole.seconds, 1),
        "first_run_s": round(killed_s, 1),
        "second_run_s": round(second.seconds, 1),
        "start_of_a_run_s": round(second.summary["seconds"] - second.summary["scoring_seconds"], 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run all measurements and print them as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.service.score.benchmark")
    parser.add_argument("bundle", type=Path, help="of one UINT8 input")
    parser.add_argument("--work", type=Path, required=True, help="a folder for inputs and outputs")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the larger input")
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args(argv)
    spec = Bundle.open(given.bundle).manifest.inputs[0]
    found: dict[str, Any] = {"rows": given.rows, "cores": count_cores()}
    output = given.work / "output"
    for form in ("binary", "lists"):
        folder = write_input(given.work / form, spec, given.rows, form)
        pairs = []
        for _ in range(given.pairs):
            shutil.rmtree(output, ignore_errors=True)
            before = measure_alone(given.bundle, spec, count_cores())
            ran = run_score(folder, output, given.bundle)
            after = measure_alone(given.bundle, spec, count_cores())
            alone = (before + after) / 2
            pairs.append(
                {
                    "alone_rows_per_s": round(alone),
                    "score_rows_per_s": round(ran.summary["rows_per_s"]),
                    "ratio": round(ran.summary["rows_per_s"] / alone, 3),
                }
            )
        ratio = statistics.median(pair["ratio"] for pair in pairs)
        found[form] = {"median_ratio": ratio, "pairs": pairs}
        sys.stderr.write(f"{form}: {json.dumps(found[form])}\n")
    tenth = write_input(given.work / "tenth", spec, given.rows // 10, "binary")
    shutil.rmtree(output, ignore_errors=True)
    small = run_score(tenth, output, given.bundle, with_memory=True)
    shutil.rmtree(output)
    large = run_score(given.work / "binary", output, given.bundle, with_memory=True)
    found["peak_mib"] = {
        str(given.rows // 10): round(small.peak_bytes / MIB),
        str(given.rows): round(large.peak_bytes / MIB),
    }
    found["peak_rss_mib_of_an_actor"] = {
        str(given.rows // 10): round(small.summary["peak_rss_bytes"]["actor"] / MIB),
        str(given.rows): round(large.summary["peak_rss_bytes"]["actor"] / MIB),
    }
    found["restart"] = measure_restart(given.work / "binary", output, given.bundle)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
