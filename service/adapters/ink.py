"""Separates the drawing in a small picture from specks of dirt and from the paper's edges."""

from typing import NamedTuple

import numpy as np

from export.bundle.metrics import Array

# A connected part is a speck if it has less than this share of the largest part's ink.
SPECK = 0.05
# A connected part is an edge or a frame, not a drawing, if it touches a side of the picture and
# extends along this share of it, and if other parts have at least this share of its ink.
ALONG, ELSE = 0.75, 0.1


class Run(NamedTuple):
    """Adjacent pixels of ink in one row, from column ``start`` up to but excluding ``stop``."""

    row: int
    start: int
    stop: int


def select_drawing(mask_HW: Array, ink_HW: Array) -> Array:
    """Remove specks and edges from a mask of ink.

    Args:
        mask_HW: bool [H, W], True where there is ink; True at least once.
        ink_HW: float32 [H, W], the amount of ink.

    Returns:
        bool [H, W], True in the connected parts that belong to the drawing.
    """
    runs = _runs(mask_HW)
    parts = _joined(runs)
    if len(parts) == 1:
        return mask_HW
    sums = np.cumsum(ink_HW, axis=1)
    masses = [sum(_mass(sums, run) for run in part) for part in parts]
    inside = [m for m, part in zip(masses, parts, strict=True) if not _is_edge(part, mask_HW)]
    only_inside = inside and max(inside) >= ELSE * max(masses)
    least = SPECK * max(inside if only_inside else masses)
    kept = np.zeros_like(mask_HW)
    for part, mass in zip(parts, masses, strict=True):
        if mass >= least and not (only_inside and _is_edge(part, mask_HW)):
            for run in part:
                kept[run.row, run.start : run.stop] = True
    return kept


def _runs(mask_HW: Array) -> list[Run]:
    """Return the runs of a mask, row by row."""
    height, width = mask_HW.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask_HW
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, stops = np.nonzero(steps == -1)
    return [Run(*run) for run in zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True)]


def _joined(runs: list[Run]) -> list[list[Run]]:
    """Return the connected parts as lists of runs (8-connectivity, by union-find)."""
    parent = list(range(len(runs)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    above = 0
    for index, run in enumerate(runs):
        while runs[above].row < run.row - 1 or (
            runs[above].row == run.row - 1 and runs[above].stop < run.start
        ):
            above += 1
        other = above
        while runs[other].row == run.row - 1 and runs[other].start <= run.stop:
            parent[root(other)] = root(index)
            other += 1
    parts: dict[int, list[Run]] = {}
    for index, run in enumerate(runs):
        parts.setdefault(root(index), []).append(run)
    return list(parts.values())


def _mass(sums_HW: Array, run: Run) -> float:
    """Return the ink of a run, from the cumulative sums of ink along rows."""
    before = sums_HW[run.row, run.start - 1] if run.start else 0
    return float(sums_HW[run.row, run.stop - 1] - before)


def _is_edge(part: list[Run], mask_HW: Array) -> bool:
    """Whether a part touches a side of the picture and extends along most of that side."""
    height, width = mask_HW.shape
    top, bottom = part[0].row, part[-1].row
    left, right = min(run.start for run in part), max(run.stop for run in part)
    upright = bottom + 1 - top >= ALONG * height and (left == 0 or right == width)
    lying = right - left >= ALONG * width and (top == 0 or bottom + 1 == height)
    return upright or lying
