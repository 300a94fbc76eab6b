"""Pictures of a finished run: learning curves, confusion matrix, the images that it misreads."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from training.checkpoint import CheckpointRecord

BLUE, ORANGE = "#1f6fb4", "#d9730d"
MISREAD_SHOWN = 40
DARK_CELL = 0.6  # of the darkest: black figures would not be read on it


def draw_all(record: CheckpointRecord, test_images: Tensor, folder: Path) -> list[Path]:
    """Write curves.png, confusion.png and misread.png into the folder and return their paths.

    Args:
        record: The run.
        test_images: The images that ``record.test`` speaks of, uint8 [N, 28, 28].
        folder: An existing folder.
    """
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})
    figures = {
        "curves.png": _curves(record),
        "confusion.png": _confusion(record),
        "misread.png": _misread(record, test_images),
    }
    for name, figure in figures.items():
        # No creation date or software version in the file: the same run draws the same bytes.
        figure.savefig(folder / name, dpi=110, metadata={"Software": None})
    return [folder / name for name in figures]


def _curves(record: CheckpointRecord) -> Figure:
    figure = Figure(figsize=(8.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [entry.epoch + 1 for entry in record.history]
    for axes, field, unit in ((left, "loss", "nats"), (right, "error", "% of images")):
        for part, colour in (("train", ORANGE), ("validation", BLUE)):
            if field == "loss":
                values = [getattr(entry, f"{part}_loss") for entry in record.history]
            else:
                values = [
                    100 * (1 - getattr(entry, f"{part}_accuracy")) for entry in record.history
                ]
            label = "training" if part == "train" else part
            axes.plot(epochs, values, "o-", color=colour, markersize=3, label=label)
        axes.axvline(record.epoch_kept + 1, color="grey", linestyle=":", label="epoch kept")
        axes.set(xlabel="epoch", ylabel=f"{field} ({unit})", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    left.set_title("Loss", loc="left")
    right.set_title("Error rate", loc="left")
    right.legend(frameon=False, fontsize=9)
    return figure


def _confusion(record: CheckpointRecord) -> Figure:
    matrix = np.array(record.test.confusion)
    # The diagonal holds nearly all images and would hide every mistake: colour mistakes alone.
    mistakes = matrix - np.diag(np.diag(matrix))
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    axes = figure.subplots()
    darkest = max(5, int(mistakes.max()))
    axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=darkest)
    for (digit, read_as), count in np.ndenumerate(matrix):
        if count:
            dark = mistakes[digit, read_as] > DARK_CELL * darkest
            shade = "grey" if digit == read_as else "white" if dark else "black"
            axes.text(read_as, digit, str(count), ha="center", va="center", color=shade, size=8)
    axes.set(xlabel="read as", ylabel="digit", xticks=range(10), yticks=range(10))
    axes.set_title(f"{record.config.model}: {record.test.images_name}", loc="left", size=10)
    return figure


def _misread(record: CheckpointRecord, test_images: Tensor) -> Figure:
    shown = record.test.misread[:MISREAD_SHOWN]
    columns = 8
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(columns * 0.62, rows * 0.8 + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, miss in zip(grid.flat, shown, strict=False):
        axes.imshow(test_images[miss.index].numpy(), cmap="gray_r", vmin=0, vmax=255)
        axes.set_title(f"{miss.digit} as {miss.read_as}", size=8, pad=2)
    total = len(record.test.misread)
    figure.suptitle(
        f"{record.config.model}: {total} of {record.test.images:,} misread"
        + (f"; the {len(shown)} most confident" if total > len(shown) else ""),
        x=0.01,
        ha="left",
        size=10,
    )
    return figure
