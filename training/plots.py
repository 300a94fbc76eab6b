"""Pictures of a finished run: learning curves, confusion matrix, the images that it misreads.

Of a network that gives its input back, in place of the last two: the worst images and what came.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor, nn

from training.checkpoint import (
    AnyRecord,
    CheckpointRecord,
    EpochRecord,
    ImageRecord,
    PairRecord,
)
from training.data import to_ink
from training.evaluate import predict

BLUE, ORANGE = "#1f6fb4", "#d9730d"
MISREAD_SHOWN = 40
PAIRS_SHOWN = 30
REBUILT_SHOWN = 12
DARK_CELL = 0.6  # of the darkest: black figures would not be read on it


def draw_all(record: AnyRecord, module: nn.Module, test_images: Tensor, folder: Path) -> list[Path]:
    """Write curves.png and what else shows the task's mistakes into the folder.

    Args:
        record: The run.
        module: The trained network.
        test_images: The images that ``record.test`` speaks of, uint8 [N, 28, 28].
        folder: An existing folder.

    Returns:
        The files' paths.
    """
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})
    figures = {"curves.png": _curves(record)}
    if isinstance(record, CheckpointRecord):
        figures |= {
            "confusion.png": _confusion(record),
            "misread.png": _misread(record, test_images),
        }
    elif isinstance(record, PairRecord):
        figures["misread.png"] = _misread_pairs(record, test_images)
    else:
        figures["rebuilt.png"] = _rebuilt(record, module, test_images)
    for name, figure in figures.items():
        # No creation date or software version in the file: the same run draws the same bytes.
        figure.savefig(folder / name, dpi=110, metadata={"Software": None})
    return [folder / name for name in figures]


def _curves(record: AnyRecord) -> Figure:
    figure = Figure(figsize=(8.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [entry.epoch + 1 for entry in record.history]
    losses = {
        "training": [entry.train_loss for entry in record.history],
        "validation": [entry.validation_loss for entry in record.history],
    }
    unit = "standardised pixels squared" if isinstance(record, ImageRecord) else "nats"
    for axes, series, ylabel in (
        (left, losses, f"loss ({unit})"),
        (right, *_errors(record)),
    ):
        for part, values in series.items():
            colour = ORANGE if part == "training" else BLUE
            axes.plot(epochs, values, "o-", color=colour, markersize=3, label=part)
        axes.set(xlabel="epoch", ylabel=ylabel, yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    left.set_title("Loss", loc="left")
    right.set_title("Error" if isinstance(record, ImageRecord) else "Error rate", loc="left")
    right.legend(frameon=False, fontsize=9)
    return figure


def _errors(record: AnyRecord) -> tuple[dict[str, list[float]], str]:
    """What the right picture shows, by part, and its axis' name."""
    if isinstance(record, ImageRecord):
        return {"validation": [e.validation_mse for e in record.history]}, "error (ink squared)"
    counted = "pairs" if isinstance(record, PairRecord) else "images"
    entries: list[EpochRecord] = record.history
    return {
        "training": [100 * (1 - entry.train_accuracy) for entry in entries],
        "validation": [100 * (1 - entry.validation_accuracy) for entry in entries],
    }, f"error (% of {counted})"


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


def _misread_pairs(record: PairRecord, test_images: Tensor) -> Figure:
    shown = record.test.misread[:PAIRS_SHOWN]
    columns = 6
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(columns * 1.2, rows * 0.95 + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, miss in zip(grid.flat, shown, strict=False):
        pair = [test_images[i].numpy() for i in (miss.first_index, miss.second_index)]
        axes.imshow(np.concatenate(pair, axis=1), cmap="gray_r", vmin=0, vmax=255)
        first, second, total = miss.read_as
        axes.set_title(f"{first} + {second} = {total}", size=8, pad=2)
    count = len(record.test.misread)
    figure.suptitle(
        f"{record.config.model}: {count} of {record.test.pairs:,} pairs misread, as they were read"
        + (f"; the {len(shown)} most confident" if count > len(shown) else ""),
        x=0.01,
        ha="left",
        size=10,
    )
    return figure


def _rebuilt(record: ImageRecord, module: nn.Module, test_images: Tensor) -> Figure:
    shown = record.test.worst[:REBUILT_SHOWN]
    asked = test_images[[image.index for image in shown]]
    (answer_NCHW,) = predict(module, asked)
    ink_NHW = 255 * to_ink(answer_NCHW)[:, 0]
    figure = Figure(figsize=(len(shown) * 0.62, 1.9), layout="constrained")
    grid = figure.subplots(2, len(shown), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for column, image in enumerate(shown):
        for row, pixels_HW in enumerate((asked[column], ink_NHW[column])):
            grid[row, column].imshow(pixels_HW.numpy(), cmap="gray_r", vmin=0, vmax=255)
        grid[0, column].set_title(f"{1000 * image.mse:.0f}", size=8, pad=2)
    figure.suptitle(
        f"{record.config.model}: the worst of {record.test.images:,} images and what came back; "
        "error in thousandths",
        x=0.01,
        ha="left",
        size=10,
    )
    return figure
