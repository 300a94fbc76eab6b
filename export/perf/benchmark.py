"""Compare the variants' speed in one process, by medians over interleaved rounds.

On a CPU only ratios are meaningful: machines differ, and their cores are shared.
"""

import platform
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from export.bundle.golden import Golden, Predict
from export.bundle.metrics import Arrays
from export.bundle.store import Bundle
from export.bundle.tolerances import Device
from export.parity.candidates import Setting, choose_files
from training.provenance import versions

ROUNDS = 20
BATCH_SIZES = (1, 64)
LEAST_TIMED_S = 0.002


class Timing(BaseModel):
    """The time of one variant at one batch size and number of threads.

    ``us_per_sample`` is the median over the rounds. ``ratio`` is the median over the rounds of the
    fp32 ONNX file's time over this one (more is faster); ``ratio_low`` and ``ratio_high`` are its
    quartiles.
    """

    model_config = ConfigDict(frozen=True)

    variant: str
    batch_size: int
    threads: int
    us_per_sample: float
    ratio: float
    ratio_low: float
    ratio_high: float


class Timings(BaseModel):
    """All timings of a run, and where it ran."""

    model_config = ConfigDict(frozen=True)

    bundle: str
    version: str
    device: Device
    machine: str
    rounds: int
    versions: dict[str, str]
    timings: tuple[Timing, ...]


def measure(
    bundle: Bundle,
    device: Device,
    variants: Collection[str],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    threads: Sequence[int] = (1,),
    rounds: int = ROUNDS,
) -> Timings:
    """Time those variants of a bundle that the device can run.

    Args:
        bundle: An opened bundle; the inputs are its golden samples.
        device: The device to run on.
        variants: The variants to time, in addition to onnx; files other than ONNX can run code
            when they are opened.
        batch_sizes: Samples per call.
        threads: Threads within an operator, on the CPU.
        rounds: How often each variant is timed; each time lasts at least 2 ms.
    """
    golden = Golden.load(bundle.path("golden"))
    timings: list[Timing] = []
    for count in threads:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            files, _ = choose_files(
                {v: path for v, path in bundle.variants.items() if v in {"onnx", *variants}},
                tuple(spec.name for spec in bundle.manifest.outputs),
                Setting(device),
                count,
            )
            candidates = {file.variant: file.open() for file in files}
            for batch_size in batch_sizes:
                batch = {
                    name: np.resize(array, (batch_size, *array.shape[1:]))
                    for name, array in golden.inputs.items()
                }
                timings += _interleaved(candidates, batch, batch_size, count, rounds)
        finally:
            torch.set_num_threads(before)
    return Timings(
        bundle=bundle.manifest.name,
        version=bundle.manifest.version,
        device=device,
        machine=machine(),
        rounds=rounds,
        versions=versions(["torch", "numpy"]),
        timings=tuple(timings),
    )


def per_sample(timings: Timings) -> dict[str, dict[int, float]]:
    """Microseconds per sample with one thread, by variant and batch size."""
    found: dict[str, dict[int, float]] = {}
    for timing in timings.timings:
        if timing.threads == 1:
            found.setdefault(timing.variant, {})[timing.batch_size] = timing.us_per_sample
    return found


def table(timings: Timings) -> str:
    """Ratios to the fp32 ONNX file as Markdown; on a GPU also microseconds per sample."""
    columns = list(dict.fromkeys((t.batch_size, t.threads) for t in timings.timings))
    heads = [f"batch {b}, {n} thread{'s' if n > 1 else ''}" for b, n in columns]
    by_place = {(t.variant, t.batch_size, t.threads): t for t in timings.timings}
    lines = [
        f"{timings.bundle} on {timings.device}, {timings.machine}, torch "
        f"{timings.versions['torch']}: samples/s relative to the fp32 ONNX file, median of "
        f"{timings.rounds} interleaved rounds (quartiles)",
        "",
        f"| variant | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    for variant in dict.fromkeys(t.variant for t in timings.timings):
        cells = []
        for column in columns:
            timing = by_place[variant, *column]
            cell = f"{timing.ratio:.2f} ({timing.ratio_low:.2f}-{timing.ratio_high:.2f})"
            if timings.device == "cuda":
                cell += f", {timing.us_per_sample:.1f} us"
            cells.append(cell)
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> str:
    """The name of this machine's processor, and of its GPU if there is one."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.is_file() else [])
        if line.startswith("model name")
    ]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (names[0] if names else platform.machine()) + gpu


def _interleaved(
    candidates: dict[str, Predict], batch: Arrays, batch_size: int, threads: int, rounds: int
) -> list[Timing]:
    calls = {variant: _calls(predict, batch) for variant, predict in candidates.items()}
    seconds: dict[str, list[float]] = {variant: [] for variant in candidates}
    for _ in range(rounds):
        for variant, predict in candidates.items():
            start = time.perf_counter()
            for _ in range(calls[variant]):
                predict(batch)
            seconds[variant].append((time.perf_counter() - start) / calls[variant])
    baseline = np.array(seconds["onnx"])
    timings = []
    for variant, measured in seconds.items():
        ratios = baseline / np.array(measured)
        low, high = np.percentile(ratios, [25, 75])
        timings.append(
            Timing(
                variant=variant,
                batch_size=batch_size,
                threads=threads,
                us_per_sample=float(np.median(measured)) / batch_size * 1e6,
                ratio=float(np.median(ratios)),
                ratio_low=float(low),
                ratio_high=float(high),
            )
        )
    return timings


def _calls(predict: Predict, batch: Arrays) -> int:
    """The number of calls that takes long enough to be timed; this also warms up the model."""
    calls = 1
    while True:
        start = time.perf_counter()
        for _ in range(calls):
            predict(batch)
        if time.perf_counter() - start >= LEAST_TIMED_S:
            return calls
        calls *= 2
