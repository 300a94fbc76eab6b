"""Which connected parts of a small picture's ink are the drawing, and which are specks or edges."""

from typing import NamedTuple

import numpy as np

from export.parity.metrics import Array

# Specks: parts of less than this share of the largest one's ink.
SPECK = 0.05
# A part that lies at a side of the picture along this share of it is the paper's edge, a table's,
# or a frame, if there is anything else of at least that share of its ink.
ALONG, ELSE = 0.75, 0.1


class Run(NamedTuple):
    """Pixels of ink side by side: [start, stop) in one row."""

    row: int
    start: int
    stop: int


def drawing(mask_HW: Array, ink_HW: Array) -> Array:
    """The parts of a mask that are drawn.

    Args:
        mask_HW: bool [H, W], where there is ink; somewhere there is.
        ink_HW: float32 [H, W], how much.

    Returns:
        bool [H, W].
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
    """All runs, row by row."""
    height, width = mask_HW.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask_HW
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, stops = np.nonzero(steps == -1)
    return [Run(*run) for run in zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True)]


def _joined(runs: list[Run]) -> list[list[Run]]:
    """Runs by the part that they belong to: what touches, also by a corner, is one part."""
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
    before = sums_HW[run.row, run.start - 1] if run.start else 0
    return float(sums_HW[run.row, run.stop - 1] - before)


def _is_edge(part: list[Run], mask_HW: Array) -> bool:
    """Does it lie along a side of the picture, and at it?"""
    height, width = mask_HW.shape
    top, bottom = part[0].row, part[-1].row
    left, right = min(run.start for run in part), max(run.stop for run in part)
    upright = bottom + 1 - top >= ALONG * height and (left == 0 or right == width)
    lying = right - left >= ALONG * width and (top == 0 or bottom + 1 == height)
    return upright or lying
