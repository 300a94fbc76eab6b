"""The report's charts, in the colours of Okabe and Ito; groups also differ in their markers.

Every chart shows single seeds as small points, or their standard deviation as a band or a bar.
"""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from training.compare.layers import FirstLayer, Response
from training.compare.schema import Bin, Curve, Group, GroupPair, SizeRun
from training.evaluation.plots import LEAST_DARKEST, draw_confusion, mistakes_of

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56606a", "#56b4e9", "#1d2329")
MARKERS = "osD^vPX*h"  # one more than colours: no two of the first 72 groups look alike
GRID, FRAME, INK = "#e3e7eb", "#b8c0c8", "#1d2329"
PERCENT = 100
PANEL_IN, WIDE_IN = 5.2, 9.5
SPACE = 0.15  # gap between pictures, as a share of their size
MOST_FILTERS, COLUMNS = 32, 8
MOST_MAPS = 16
UNIT_COLUMNS = 64
DIFFERING_COLUMNS = 6
TEXT_ROOM = 16  # room for the predicted digits above an image, in its pixels
FEW_IMAGES = 20  # below this, a bin's accuracy is a rough estimate


def panel(height_in: float = 3.5, width_in: float = PANEL_IN) -> Figure:
    """An empty figure in the page's style; the default width, in inches, is legible on a phone."""
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})
    return Figure(figsize=(width_in, height_in), layout="constrained")


def show_mosaic(
    axes: Axes,
    pictures: Sequence[np.ndarray],
    columns: int,
    colours: str,
    scale: tuple[float, float],
) -> None:
    """Draw pictures of one size, float [H, W], row by row with gaps between them.

    Args:
        axes: The axes to draw on; their frame and ticks are hidden.
        pictures: The pictures, at least one.
        columns: Number of pictures per row.
        colours: The name of a colour map.
        scale: The values at the colour map's two ends.
    """
    height, width = pictures[0].shape
    rows = -(-len(pictures) // columns)
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        left, top = column * (width + width * SPACE), row * (height + height * SPACE)
        axes.imshow(
            picture,
            cmap=colours,
            vmin=scale[0],
            vmax=scale[1],
            extent=(left, left + width, top + height, top),
        )
        frame = Rectangle((left, top), width, height, fill=False, edgecolor=FRAME, linewidth=0.6)
        axes.add_patch(frame)
    axes.set_xlim(-0.02 * width, columns * width * (1 + SPACE))
    axes.set_ylim(rows * height * (1 + SPACE), -0.02 * height)
    axes.axis("off")


def colour_of(number: int) -> str:
    """The colour of the group at this position."""
    return COLOURS[number % len(COLOURS)]


def marker_of(number: int) -> str:
    """The marker of the group at this position."""
    return MARKERS[number % len(MARKERS)]


def accuracy_figure(groups: Sequence[Group]) -> Figure:
    """Draw each network's accuracy with Wilson's interval, and each group's mean."""
    rows = sum(len(group.networks) for group in groups)
    figure = panel(1.2 + 0.26 * rows + 0.3 * len(groups), WIDE_IN)
    axes = figure.subplots()
    row, ticks, names = 0.0, [], []
    for number, group in enumerate(groups):
        first = row
        for network in group.networks:
            low, high = network.interval.low, network.interval.high
            axes.plot([PERCENT * low, PERCENT * high], [row, row], color=colour_of(number), lw=1.2)
            axes.plot(PERCENT * network.accuracy, row, marker_of(number), color=colour_of(number))
            ticks.append(row)
            names.append(f"{group.name}, seed {network.seed}")
            row += 1
        mean = PERCENT * group.accuracy.mean
        axes.plot([mean, mean], [first - 0.4, row - 0.6], color=INK, lw=1.6, ls=":")
        axes.annotate(
            f"mean {mean:.2f}%", (mean, first - 0.4), (3, 1), textcoords="offset points", size=9
        )
        row += 0.9
    axes.set_yticks(ticks, names)
    axes.set_ylim(row - 0.9, -1.1)
    axes.set(xlabel="test images classified correctly, % (line: Wilson's 95% interval)")
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure


def digits_figure(groups: Sequence[Group]) -> Figure:
    """Draw the error rate of each digit: seeds as small points, their mean as a large marker."""
    figure = panel(3.4, WIDE_IN)
    axes = figure.subplots()
    step = 0.7 / len(groups)
    for number, group in enumerate(groups):
        shift = (number - (len(groups) - 1) / 2) * step
        for digit in range(10):
            found = [network.accuracy_per_digit[digit] for network in group.networks]
            errors = [PERCENT * (1 - share) for share in found if share is not None]
            if not errors:
                continue
            place = digit + shift
            axes.plot([place] * len(errors), errors, ".", color=colour_of(number), markersize=4)
            axes.plot(
                *(place, sum(errors) / len(errors), marker_of(number)),
                color=colour_of(number),
                markersize=8,
                alpha=0.75,
                label=group.name if digit == 0 else None,
            )
    axes.set_xticks(range(10))
    axes.set_ylim(bottom=0)
    axes.set(xlabel="digit", ylabel="misclassified, % of the digit's images")
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    figure.legend(loc="outside upper right", ncols=4, frameon=False)
    return figure


def confusion_figures(groups: Sequence[Group]) -> list[Figure]:
    """A confusion matrix of each group, summed over seeds; colours have one scale for all."""
    matrices = [
        np.array([network.confusion for network in group.networks]).sum(axis=0) for group in groups
    ]
    darkest = max(LEAST_DARKEST, *(int(mistakes_of(matrix).max()) for matrix in matrices))
    return [_confusion(*pair, darkest) for pair in zip(groups, matrices, strict=True)]


def _confusion(group: Group, matrix: np.ndarray, darkest: int) -> Figure:
    figure = panel(4.7)
    axes = figure.subplots()
    draw_confusion(axes, matrix, darkest)
    seeds = len(group.networks)
    axes.set_title(f"{group.name}: {seeds} {'seed' if seeds == 1 else 'seeds'}", loc="left")
    return figure


def reliability_figure(group: Group, number: int) -> Figure:
    """Draw a group's accuracy over confidence, before and after temperature scaling."""
    figure = panel(3.1)
    before, after = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, bins, error, title in (
        (before, group.reliability_before, group.error_before, "as trained"),
        (after, group.reliability_after, group.error_after, "temperature-scaled"),
    ):
        axes.plot([0, 1], [0, 1], color="grey", lw=1, ls=":")
        _bins(axes, bins, colour_of(number))
        axes.set_title(f"{title}\nerror {PERCENT * error.mean:.2f}%", loc="left", size=10)
        axes.set(xlabel="confidence", xlim=(0, 1.03), ylim=(0, 1.03), aspect="equal")
    before.set_ylabel("share classified correctly")
    figure.suptitle(group.name, x=0.01, ha="left")
    return figure


def _bins(axes: Axes, bins: Sequence[Bin], colour: str) -> None:
    many = [one for one in bins if one.images >= FEW_IMAGES]
    few = [one for one in bins if one.images < FEW_IMAGES]
    for shown, style, fill in ((many, "o-", colour), (few, "o", "white")):
        confidence = [one.confidence for one in shown]
        accuracy = [one.accuracy for one in shown]
        axes.plot(confidence, accuracy, style, color=colour, markerfacecolor=fill)


def curve_figure(curve: Curve, images: Sequence[np.ndarray]) -> Figure:
    """Draw accuracy over a distortion's levels: means, with the spread over seeds as bands.

    Args:
        curve: The measured curve.
        images: One image at every level, float [28, 28] in 0..1; drawn above the curve.
    """
    figure = panel(4.3)
    above, axes = figure.subplots(2, 1, height_ratios=[1, 5])
    show_mosaic(above, images, len(images), "gray_r", (0, 1))
    width = images[0].shape[1]
    for place, level in enumerate(curve.levels):
        middle = (place * (1 + SPACE) + 0.5) * width
        above.text(middle, -1, f"{level:g}", size=8, ha="center", va="bottom")
    axes.axhline(90, color="grey", lw=0.8, ls=":")
    for number, group in enumerate(curve.groups):
        means = PERCENT * np.array([value.mean for value in group.accuracy])
        _line(axes, curve.levels, means, number, group.name)
        spreads = PERCENT * np.array([value.deviation or 0.0 for value in group.accuracy])
        if spreads.any():
            colour = colour_of(number)
            axes.fill_between(
                curve.levels, means - spreads, means + spreads, color=colour, alpha=0.2
            )
    axes.set_ylim(0, 101)
    _label(figure, axes, f"{curve.distortion}, {curve.unit}", "classified correctly, %")
    return figure


def invariance_figure(curve: Curve) -> Figure:
    """Draw the share of images that keep their predicted digit, and of ink left in the picture."""
    figure = panel(4.3)
    axes = figure.subplots()
    for number, group in enumerate(curve.groups):
        kept = [PERCENT * share for share in group.unchanged]
        _line(axes, curve.levels, kept, number, group.name)
    ink = [PERCENT * share for share in curve.ink_kept]
    axes.plot(curve.levels, ink, color="grey", ls="--", label="ink left in the picture")
    axes.set_ylim(0, 101)
    axes.set_title("Invariance", loc="left")
    _label(
        figure,
        axes,
        f"{curve.distortion}, {curve.unit}",
        "same prediction as for the unshifted image, %",
    )
    return figure


def learning_curve_figure(runs: Sequence[SizeRun]) -> Figure:
    """Draw the error rate over the number of training images, on a logarithmic axis."""
    figure = panel(3.6, 6.4)
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys(run.group for run in runs)):
        own = [run for run in runs if run.group == name]
        errors = [PERCENT * (1 - run.accuracy) for run in own]
        _line(axes, [run.size for run in own], errors, number, name)
    axes.set_xscale("log")
    axes.set_xticks([run.size for run in runs], [f"{run.size:,}" for run in runs])
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0)
    _label(figure, axes, "training images", "misclassified, % of test images")
    return figure


def _line(
    axes: Axes, x: Sequence[float], y: Sequence[float] | np.ndarray, number: int, name: str
) -> None:
    """Draw a group's line in its colour and with its marker."""
    axes.plot(x, y, f"{marker_of(number)}-", color=colour_of(number), markersize=5, label=name)


def _label(figure: Figure, axes: Axes, x: str, y: str) -> None:
    """Add axis labels, horizontal grid lines, and a legend of the groups below the chart."""
    axes.set(xlabel=x, ylabel=y)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def filters_figure(layer: FirstLayer, group: str) -> Figure:
    """Draw a layer's first filters: blue negative, white 0, red positive, each on its own scale."""
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
    """Draw a layer's output for an image: maps as pictures, units as one strip of cells."""
    values = response.values.numpy()
    if values.ndim == 3:  # noqa: PLR2004 - maps, height, width
        shown = list(values[:MOST_MAPS])
        figure = panel(0.62 * -(-len(shown) // COLUMNS) + 0.4)
        top = max(float(values[:MOST_MAPS].max()), 1e-12)
        show_mosaic(figure.subplots(), shown, COLUMNS, "gray_r", (0, top))
        height, width = values.shape[1:]
        what = (
            f"{len(shown)} of {len(values)} feature maps of {height}x{width} after {response.name}"
        )
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
    """Draw the images on which two groups differ, with the digit that each seed predicts."""
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
        axes.text(left, top - 1, _caption(one.digit, one.readings), size=8, va="bottom")
    axes.set(xlim=(-1, DIFFERING_COLUMNS * width * 1.25), ylim=(rows * (height + TEXT_ROOM), 0))
    axes.axis("off")
    return figure


def _caption(digit: int, readings: dict[str, list[int]]) -> str:
    lines = [f"{name}: {' '.join(map(str, predicted))}" for name, predicted in readings.items()]
    return "\n".join([f"a {digit}", *lines])
