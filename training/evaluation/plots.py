"""Plots of a finished run: learning curves, confusion matrix, misclassified images.

For an autoencoder, the worst reconstructions take the place of the last two.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from torch import Tensor, nn

from training.checkpoint import AnyRecord, CheckpointRecord, EpochRecord, ImageRecord, PairRecord
from training.data import to_ink
from training.evaluation.prediction import predict

BLUE, ORANGE = "#1f6fb4", "#d9730d"
SHOWN, PAIRS_SHOWN, RECONSTRUCTIONS_SHOWN = 40, 30, 12
LEAST_DARKEST = 5  # the darkest colour stands for at least so many mistakes
DARK_CELL = 0.6  # share of ``darkest`` above which a count is white, to be legible


def draw_all(record: AnyRecord, module: nn.Module, test_images: Tensor, folder: Path) -> None:
    """Write curves.png and the plots of the task's mistakes into a folder.

    Args:
        record: The run's record.
        module: The trained network.
        test_images: The images that ``record.test`` was measured on, uint8 [N, 28, 28].
        folder: An existing folder.
    """
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})
    figures = {"curves.png": _curves(record)}
    if isinstance(record, CheckpointRecord):
        figures["confusion.png"] = _confusion(record)
        figures["misclassified.png"] = _misclassified(record, test_images)
    elif isinstance(record, PairRecord):
        figures["misclassified.png"] = _misclassified_pairs(record, test_images)
    else:
        figures["rebuilt.png"] = _reconstructions(record, module, test_images)
    for name, figure in figures.items():
        # No creation date or software version in the file: the same run draws the same bytes.
        figure.savefig(folder / name, dpi=110, metadata={"Software": None})


def _curves(record: AnyRecord) -> Figure:
    figure = Figure(figsize=(8.5, 3.2), layout="constrained")
    epochs = [entry.epoch + 1 for entry in record.history]
    losses = {
        "training": [entry.train_loss for entry in record.history],
        "validation": [entry.validation_loss for entry in record.history],
    }
    unit = "standardised pixels squared" if isinstance(record, ImageRecord) else "nats"
    left, right = figure.subplots(1, 2)
    for axes, title, series, ylabel in (
        (left, "Loss", losses, f"loss ({unit})"),
        (right, "Error", *_errors(record)),
    ):
        for part, values in series.items():
            colour = ORANGE if part == "training" else BLUE
            axes.plot(epochs, values, "o-", color=colour, markersize=3, label=part)
        axes.set(xlabel="epoch", ylabel=ylabel, yscale="log")
        axes.set_title(title, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    right.legend(frameon=False, fontsize=9)
    return figure


def _errors(record: AnyRecord) -> tuple[dict[str, list[float]], str]:
    """The right plot's series, by part of the images, and the label of its y axis."""
    if isinstance(record, ImageRecord):
        return {"validation": [e.validation_mse for e in record.history]}, "error (ink squared)"
    counted = "pairs" if isinstance(record, PairRecord) else "images"
    entries: list[EpochRecord] = record.history
    return {
        "training": [100 * (1 - entry.train_accuracy) for entry in entries],
        "validation": [100 * (1 - entry.validation_accuracy) for entry in entries],
    }, f"error rate (% of {counted})"


def draw_confusion(axes: Axes, matrix: np.ndarray, darkest: int) -> None:
    """Draw a confusion matrix, int [10, 10], in which only the mistakes are coloured.

    The diagonal holds nearly all images; if it were coloured, no mistake would be visible.

    Args:
        axes: The axes to draw on.
        matrix: Number of images by digit (row) and predicted digit (column).
        darkest: Number of mistakes that gets the darkest colour.
    """
    mistakes = mistakes_of(matrix)
    axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=darkest)
    for (digit, predicted), count in np.ndenumerate(matrix):
        if count:
            dark = mistakes[digit, predicted] > DARK_CELL * darkest
            shade = "grey" if digit == predicted else "white" if dark else "black"
            axes.text(predicted, digit, str(count), ha="center", va="center", color=shade, size=8)
    axes.set(xlabel="predicted", ylabel="digit", xticks=range(10), yticks=range(10))


def mistakes_of(matrix: np.ndarray) -> np.ndarray:
    """A confusion matrix without its diagonal."""
    return np.asarray(matrix - np.diag(np.diag(matrix)))


def _confusion(record: CheckpointRecord) -> Figure:
    matrix = np.array(record.test.confusion)
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    axes = figure.subplots()
    draw_confusion(axes, matrix, max(LEAST_DARKEST, int(mistakes_of(matrix).max())))
    axes.set_title(f"{record.config.model}: {record.test.images_name}", loc="left", size=10)
    return figure


def _misclassified(record: CheckpointRecord, test_images: Tensor) -> Figure:
    shown = record.test.misclassified[:SHOWN]
    total = len(record.test.misclassified)
    return _image_grid(
        [test_images[miss.index].numpy() for miss in shown],
        [f"{miss.digit} as {miss.read_as}" for miss in shown],
        f"{record.config.model}: {total} of {record.test.images:,} misclassified"
        + (f"; the {len(shown)} most confident" if total > len(shown) else ""),
        columns=8,
        width=0.62,
    )


def _misclassified_pairs(record: PairRecord, test_images: Tensor) -> Figure:
    shown = record.test.misclassified[:PAIRS_SHOWN]
    total = len(record.test.misclassified)
    return _image_grid(
        [
            np.concatenate([test_images[i].numpy() for i in (m.first_index, m.second_index)], 1)
            for m in shown
        ],
        ["{} + {} = {}".format(*miss.read_as) for miss in shown],
        f"{record.config.model}: {total} of {record.test.pairs:,} pairs misclassified, as predicted"
        + (f"; the {len(shown)} most confident" if total > len(shown) else ""),
        columns=6,
        width=1.2,
    )


def _reconstructions(record: ImageRecord, module: nn.Module, test_images: Tensor) -> Figure:
    shown = record.test.worst[:RECONSTRUCTIONS_SHOWN]
    originals = test_images[[image.index for image in shown]]
    (output_NCHW,) = predict(module, originals)
    ink_NHW = 255 * to_ink(output_NCHW)[:, 0]
    return _image_grid(
        [*originals.numpy(), *ink_NHW.numpy()],
        [f"{1000 * image.mse:.0f}" for image in shown] + [""] * len(shown),
        f"{record.config.model}: the worst of {record.test.images:,} images and their "
        "reconstructions; error in thousandths",
        columns=len(shown),
        width=0.62,
    )


def _image_grid(
    images: Sequence[NDArray[np.generic]],
    titles: Sequence[str],
    heading: str,
    *,
    columns: int,
    width: float,
) -> Figure:
    """Draw images of 0..255 in ``columns``, a title above each; ``width`` is inches per image."""
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(columns * width, rows * 0.85 + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=255)
        axes.set_title(title, size=8, pad=2)
    figure.suptitle(heading, x=0.01, ha="left", size=10)
    return figure
