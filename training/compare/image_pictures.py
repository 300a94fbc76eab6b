"""The report's pictures made of images: kernels, feature maps, disagreements.

Each is one pair of axes with many pictures in it: a pair of axes a picture takes seconds to lay
out. Shape suffixes: N images, H and W pixels.
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from training.compare.layers import FirstLayer, Response
from training.compare.pictures import FRAME, panel, show_mosaic
from training.compare.result import GroupPair

MOST_FILTERS, COLUMNS = 32, 8
MOST_MAPS = 16
UNIT_COLUMNS = 64
DIFFERING_COLUMNS = 6
TEXT_ROOM = 16  # pixels of an image: room for what was read, above it


def filters_figure(layer: FirstLayer, group: str) -> Figure:
    """The first filters of a layer: blue negative, white 0, red positive, each by its own scale."""
    shown = [one.numpy() for one in layer.weights[:MOST_FILTERS]]
    scaled = [one / max(float(np.abs(one).max()), 1e-12) for one in shown]
    figure = panel(0.62 * -(-len(shown) // COLUMNS) + 0.4)
    show_mosaic(figure.subplots(), scaled, COLUMNS, "RdBu_r", (-1, 1))
    what = "kernels" if layer.is_kernel else "units"
    figure.suptitle(
        f"{group}: {len(shown)} of {len(layer.weights)} {what} of {layer.name}", x=0.01, ha="left"
    )
    return figure


def response_figure(response: Response, group: str) -> Figure:
    """What a layer makes of an image: maps as pictures, units as one strip of cells."""
    values = response.values.numpy()
    if values.ndim == 3:  # noqa: PLR2004 - maps, height, width
        shown = list(values[:MOST_MAPS])
        figure = panel(0.62 * -(-len(shown) // COLUMNS) + 0.4)
        top = max(float(values[:MOST_MAPS].max()), 1e-12)
        show_mosaic(figure.subplots(), shown, COLUMNS, "gray_r", (0, top))
        height, width = values.shape[1:]
        what = f"{len(shown)} of {len(values)} maps of {height}x{width} after {response.name}"
    else:
        units = values.reshape(-1)
        rows = -(-units.size // UNIT_COLUMNS)
        padded = np.full(rows * UNIT_COLUMNS, np.nan)
        padded[: units.size] = units
        figure = panel(0.085 * rows + 0.5)
        axes = figure.subplots()
        axes.imshow(padded.reshape(rows, UNIT_COLUMNS), cmap="gray_r", vmin=0)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=FRAME)
        what = f"{units.size} units after {response.name}, {int((units > 0).sum())} active"
    figure.suptitle(f"{group}: {what}", x=0.01, ha="left")
    return figure


def differing_figure(pair: GroupPair, images_NHW: Tensor) -> Figure:
    """The listed images on which two groups differ, with what each network read, by seed."""
    height, width = images_NHW.shape[1:]
    rows = -(-len(pair.differing) // DIFFERING_COLUMNS)
    figure = panel(rows * 2.0, 9.5)
    axes = figure.subplots()
    for place, one in enumerate(pair.differing):
        row, column = divmod(place, DIFFERING_COLUMNS)
        left, top = column * width * 1.25, row * (height + TEXT_ROOM) + TEXT_ROOM
        extent = (left, left + width, top + height, top)
        axes.imshow(images_NHW[one.index].numpy(), cmap="gray_r", vmin=0, vmax=255, extent=extent)
        axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=FRAME))
        axes.text(left, top - 1, _read(one.digit, one.readings), size=8, va="bottom")
    axes.set(xlim=(-1, DIFFERING_COLUMNS * width * 1.25), ylim=(rows * (height + TEXT_ROOM), 0))
    axes.axis("off")
    return figure


def _read(digit: int, readings: dict[str, list[int]]) -> str:
    lines = [f"{name}: {' '.join(map(str, seen))}" for name, seen in readings.items()]
    return "\n".join([f"a {digit}", *lines])
