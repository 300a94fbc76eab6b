"""How fast are the variants beside each other? One process, interleaved rounds, medians.

On a CPU ratios alone mean something: machines differ, and share their cores.
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
    """One variant at one batch size with so many threads.

    ``us_per_sample`` is the median over the rounds; ``ratio`` is the fp32 ONNX file's median over
    it (more is faster), ``ratio_low`` and ``ratio_high`` its quartiles over the rounds.
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
    """All of a run, and where it ran."""

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
    """Time variants of a bundle, as far as the device can run them.

    Args:
        bundle: An opened bundle; its golden samples are what is computed.
        device: Where.
        variants: Which; all but the ONNX files can run code when they are opened.
        batch_sizes: Samples a call.
        threads: Threads within an operator, on the CPU.
        rounds: How often each variant has its turn; each turn lasts 2 ms at least.
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
    """Variant to batch size to microseconds a sample, with one thread."""
    found: dict[str, dict[int, float]] = {}
    for timing in timings.timings:
        if timing.threads == 1:
            found.setdefault(timing.variant, {})[timing.batch_size] = timing.us_per_sample
    return found


def table(timings: Timings) -> str:
    """Ratios to the fp32 ONNX file as Markdown; on a GPU microseconds a sample too."""
    columns = list(dict.fromkeys((t.batch_size, t.threads) for t in timings.timings))
    heads = [f"batch {b}, {n} thread{'s' if n > 1 else ''}" for b, n in columns]
    by_place = {(t.variant, t.batch_size, t.threads): t for t in timings.timings}
    lines = [
        f"{timings.bundle} on {timings.device}, {timings.machine}, torch "
        f"{timings.versions['torch']}: samples/s over the fp32 ONNX file's, median of "
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
    """This machine in a few words."""
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
    """So many that a turn lasts long enough for the clock; warms up on the way."""
    calls = 1
    while True:
        start = time.perf_counter()
        for _ in range(calls):
            predict(batch)
        if time.perf_counter() - start >= LEAST_TIMED_S:
            return calls
        calls *= 2
