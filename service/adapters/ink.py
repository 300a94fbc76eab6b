"""Separates the drawing in a small picture from specks of dirt and from the paper's edges."""

import numpy as np
from scipy import ndimage

from export.parity.metrics import Array

# A connected part is a speck if it has less than this share of the largest part's ink.
SPECK = 0.05
# A connected part is an edge or a frame, not a drawing, if it touches a side of the picture and
# extends along this share of it, and if other parts have at least this share of its ink.
ALONG, ELSE = 0.75, 0.1
WITH_DIAGONALS = np.ones((3, 3))


def select_drawing(mask_HW: Array, ink_HW: Array) -> Array:
    """Remove specks and edges from a mask of ink.

    Args:
        mask_HW: bool [H, W], True where there is ink; True at least once.
        ink_HW: float32 [H, W], the amount of ink.

    Returns:
        bool [H, W], the connected parts that belong to the drawing.
    """
    part_HW, parts = ndimage.label(mask_HW, WITH_DIAGONALS)
    if parts == 1:
        return mask_HW
    masses = ndimage.sum_labels(ink_HW, part_HW, np.arange(1, parts + 1))
    boxes = ndimage.find_objects(part_HW)
    is_edge = np.array([_is_edge(rows, columns, mask_HW) for rows, columns in boxes])
    heaviest_inside = masses[~is_edge].max(initial=0)
    if heaviest_inside >= ELSE * masses.max():
        kept = (masses >= SPECK * heaviest_inside) & ~is_edge
    else:
        kept = masses >= SPECK * masses.max()
    return np.asarray(np.append(False, kept)[part_HW])  # part 0 is what lies between the parts


def _is_edge(rows: slice, columns: slice, mask_HW: Array) -> bool:
    """Does a part touch a side of the picture and extend along most of it?"""
    height, width = mask_HW.shape
    upright: bool = rows.stop - rows.start >= ALONG * height
    lying: bool = columns.stop - columns.start >= ALONG * width
    return (upright and (columns.start == 0 or columns.stop == width)) or (
        lying and (rows.start == 0 or rows.stop == height)
    )
