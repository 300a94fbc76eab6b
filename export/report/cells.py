"""Format the report's figures: numbers, errors, figures with their bounds, pictures."""

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

SMALL, LARGE = 1e-2, 1e6  # other figures are written with an exponent
WHOLE = 100  # larger figures are written without decimals
FLOAT32 = -7  # about float32's rounding error, as a power of ten
TIMED_BATCHES = (1, 64)
VERDICT = (
    *("variant", "verdict", "KB", "accuracy", "label flips", "scaled error"),
    *("RMS, x eager's", "SQNR, dB", "certificate"),
    *(f"time per image, batch {batch}" for batch in TIMED_BATCHES),
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
"""Microseconds per image, by variant and batch size."""


class Cell(NamedTuple):
    """A table cell: a text, a smaller text below it, and "good", "bad" or "" as its status."""

    text: str
    below: str = ""
    news: str = ""


def number(value: float) -> str:
    """Format a figure, which may be NaN or infinite."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value != 0 and not SMALL <= abs(value) < LARGE:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= WHOLE else f"{value:.3g}"


def error(value: float) -> str:
    """Format an error; only 0 is shown as bit-equal."""
    return "bit-equal" if value == 0 else number(value)


def bounded(
    value: float, allowed: float | None, show: Callable[[float], str] = error, sign: str = "≤"
) -> Cell:
    """A figure with its bound below it: the largest allowed value, or with "≥" the smallest."""
    if allowed is None:
        return Cell(show(value), "not judged")
    good = value >= allowed if sign == "≥" else value <= allowed
    below = f"{sign} {number(allowed)}" if allowed else "" if good else "must be 0"
    return Cell(show(value), below, "" if good else "bad")


def power(value: float) -> float | None:
    """The position on a logarithmic axis; None for 0, infinity and NaN, which have none."""
    return math.log10(value) if 0 < value < math.inf else None


def axis(values: Iterable[float]) -> tuple[int, int]:
    """The integer powers of ten that enclose all values and float32's rounding error."""
    powers = [FLOAT32, *(found for found in map(power, values) if found is not None)]
    lowest = math.floor(min(powers))
    return lowest, max(math.ceil(max(powers)), lowest + 1)


def uncertain(figures: ParityFigures, variant: str) -> tuple[int, int]:
    """The largest number in a row of labels that the error could change, and of how many."""
    return max(
        (found.labels.uncertain, found.labels.samples)
        for row in figures.rows
        for found in row.outputs.values()
        if row.variant == variant and found.labels is not None
    )


def verdict_cells(figures: ParityFigures, verdict: ParityVerdict, timings: Timings) -> list[Cell]:
    """The cells of a verdict, for the columns ``VERDICT``."""
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
        below = "none uncertain" if holds else f"{uncertain(figures, variant)[0]:,} uncertain"
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
    """The time relative to the ONNX file's; microseconds are shown only for GPUs."""
    own = timings.get(verdict.variant, {}).get(batch)
    base = timings.get("onnx", {}).get(batch)
    ratio = f"{own / base:.2f} x onnx" if own is not None and base else ""
    if own is not None and verdict.device == "cuda":
        return Cell(f"{own:,.1f} µs", ratio)
    return Cell(ratio or "not measured")


def fault_cells(fault: MutantResult) -> list[str]:
    """The figures of a planted fault, for the columns ``FAULT``."""
    return [number(fault.figures[key]) if key in fault.figures else "-" for key in FAULT]


def trial_cells(repair: RepairFigures, trial: Trial) -> list[Cell]:
    """The cells of a repair's trial, for the columns ``TRIAL``; the chosen one is marked."""
    whole = trial is repair.fp32
    chosen = repair.chosen is not None and trial is repair.trials[repair.chosen]
    names = "the float32 file" if whole else ", ".join(trial.kept)
    verdict = Cell("chosen" if chosen else "passes", "", "good")
    if not trial.passed:
        verdict = Cell("fails", trial.complaint or "", "bad")
    elif not chosen and not trial.surely:
        verdict = Cell("passes", "" if whole else "narrowly: other samples may fail")
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
    """How much an output changes in each situation."""
    return [bounded(x, leakage_bound(tolerance, where)) for where, x in changes.items()]


def png(rows: list[list[int]]) -> str:
    """Encode a grey picture, 0 to 255, as a data URL."""
    buffer = io.BytesIO()
    imsave(buffer, np.array(rows, np.uint8), cmap="gray", vmin=0, vmax=255, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
