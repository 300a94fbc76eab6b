"""How the report writes figures: numbers, errors, figures beside their bounds, pictures."""

import base64
import io
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.image import imsave

from export.bundle.manifest import ParityVerdict
from export.bundle.metrics import SURE
from export.bundle.tolerances import Tolerance
from export.parity.judge import leakage_bound
from export.parity.schema import MutantResult, ParityFigures, RepairFigures, Trial

SMALL, LARGE = 1e-2, 1e6  # figures beyond are written with an exponent
WHOLE = 100  # figures from here on are written without decimals
FLOAT32 = -7  # about float32's rounding error, as a power of ten
TIMED_BATCHES = (1, 64)
VERDICT = (
    *("variant", "verdict", "KB", "accuracy", "label flips", "scaled error"),
    *("RMS, x eager's", "SQNR, dB", "certificate"),
    *(f"time an image, batch {batch}" for batch in TIMED_BATCHES),
)
FAULT = ("scaled_error", "rms_ratio", "label_flips", "weights", "exact")
TRIAL = (
    "layers kept",
    "ranges",
    "verdict",
    "SQNR, dB",
    "scaled error",
    "accuracy",
    "KB",
    "samples/s",
)
Timings = Mapping[str, Mapping[int, float]]
"""Microseconds an image takes: by variant, by batch size."""


class Cell(NamedTuple):
    """A table's cell: a text, a smaller one below it, and "good" or "bad" if that is its news."""

    text: str
    below: str = ""
    news: str = ""


def number(value: float) -> str:
    """A figure, also one that is none."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value != 0 and not SMALL <= abs(value) < LARGE:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= WHOLE else f"{value:.3g}"


def error(value: float) -> str:
    """An error that is nothing only if it is exactly 0."""
    return "bit-equal" if value == 0 else number(value)


def bounded(
    value: float, allowed: float | None, show: Callable[[float], str] = error, sign: str = "≤"
) -> Cell:
    """A figure above its bound: the most it may be, or with "≥" the least."""
    if allowed is None:
        return Cell(show(value), "not judged")
    good = value >= allowed if sign == "≥" else value <= allowed
    below = f"{sign} {number(allowed)}" if allowed else "" if good else "must be 0"
    return Cell(show(value), below, "" if good else "bad")


def power(value: float) -> float | None:
    """The place on a logarithmic axis; None for 0, infinity and NaN, which have none."""
    return math.log10(value) if 0 < value < math.inf else None


def axis(values: Iterable[float]) -> tuple[int, int]:
    """The whole powers of ten that all values, and float32's rounding error, lie between."""
    powers = [FLOAT32, *(found for found in map(power, values) if found is not None)]
    lowest = math.floor(min(powers))
    return lowest, max(math.ceil(max(powers)), lowest + 1)


def uncertain(figures: ParityFigures, variant: str) -> tuple[int, int]:
    """The most samples of a row whose label the largest error could change, and of how many."""
    return max(
        (found.labels.uncertain, found.labels.samples)
        for row in figures.rows
        for found in row.outputs.values()
        if row.variant == variant and found.labels is not None
    )


def verdict_cells(figures: ParityFigures, verdict: ParityVerdict, timings: Timings) -> list[Cell]:
    """A verdict under ``VERDICT``."""
    variant, tolerance = verdict.variant, verdict.tolerance
    file = figures.files.get(variant)
    word, news = ("PASSED", "good") if verdict.passed else ("FAILED", "bad")
    accuracy = flips = certificate = Cell("-", "not known")
    labels = [c.labels for c in figures.largest(variant).outputs.values() if c.labels]
    fp32 = labels[0].eager_accuracy if labels else None
    if verdict.accuracy is not None:
        accuracy = Cell(f"{verdict.accuracy:.2%}", "" if fp32 is None else f"eager {fp32:.2%}")
    if verdict.certificate is not None:
        flips = Cell(f"{verdict.label_flips:,}", f"of {labels[0].samples:,}")
        holds = verdict.certificate > SURE
        below = "holds" if holds else f"{uncertain(figures, variant)[0]:,} uncertain"
        certificate = Cell(number(verdict.certificate), below)
    sqnr = math.nan if verdict.sqnr_db is None else verdict.sqnr_db
    return [
        Cell(variant, "deprecated by PyTorch" if variant.startswith("torchscript") else ""),
        Cell(word, "loosened" if tolerance.loosened else "", news),
        Cell(f"{file.size_bytes / 1000:,.0f}" if file else "-"),
        accuracy,
        flips,
        bounded(verdict.scaled_error, tolerance.scaled_error),
        bounded(verdict.rms_ratio, tolerance.rms_ratio, number),
        bounded(sqnr, tolerance.sqnr_db, number, "≥"),
        certificate,
        *(_time(timings, verdict, batch) for batch in TIMED_BATCHES),
    ]


def _time(timings: Timings, verdict: ParityVerdict, batch: int) -> Cell:
    """Over the ONNX file's; a CPU's microseconds, which say more of the CPU, are not shown."""
    own = timings.get(verdict.variant, {}).get(batch)
    base = timings.get("onnx", {}).get(batch)
    ratio = f"{own / base:.2f} x onnx" if own is not None and base else ""
    if own is not None and verdict.device == "cuda":
        return Cell(f"{own:,.1f} µs", ratio)
    return Cell(ratio or "not measured")


def fault_cells(fault: MutantResult) -> list[str]:
    """What was measured of a planted fault, under ``FAULT``."""
    return [number(fault.figures[key]) if key in fault.figures else "-" for key in FAULT]


def trial_cells(repair: RepairFigures, trial: Trial) -> list[Cell]:
    """A trial of a repair under ``TRIAL``; which one was chosen is said of it."""
    whole = trial is repair.fp32
    chosen = repair.chosen is not None and trial is repair.trials[repair.chosen]
    names = "the float32 file" if whole else ", ".join(trial.kept)
    verdict = Cell("chosen" if chosen else "passes", "", "good")
    if not trial.passed:
        verdict = Cell("fails", trial.complaint or "", "bad")
    elif not chosen and not trial.surely:
        verdict = Cell("passes", "" if whole else "so narrowly that other samples may fail")
    return [
        Cell(str(len(trial.kept)), names),
        Cell(trial.calibration or "-"),
        Cell("-") if whole else verdict,
        Cell(number(trial.sqnr_db)),
        Cell(error(trial.scaled_error)),
        Cell("-" if trial.accuracy is None else f"{trial.accuracy:.2%}"),
        Cell(f"{trial.size_bytes / 1000:,.0f}"),
        Cell("-" if trial.samples_per_s is None else number(trial.samples_per_s)),
    ]


def neighbour_cells(changes: dict[str, float], tolerance: Tolerance) -> list[Cell]:
    """How far an answer changes in each situation."""
    return [bounded(x, leakage_bound(tolerance, where)) for where, x in changes.items()]


def png(rows: list[list[int]]) -> str:
    """A grey picture, 0 to 255, as a data URL."""
    buffer = io.BytesIO()
    imsave(buffer, np.array(rows, np.uint8), cmap="gray", vmin=0, vmax=255, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
