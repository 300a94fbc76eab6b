"""Figures of measured results: faults by checks, errors by layer, latency over throughput."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from export.bundle.tolerances import Tolerance
from export.parity.schema import Layer
from loadtest.measure.result import Result
from tests.pictures.palette import Palette

OUR_CHECKS = ("samples", "layers", "weights", "exact values")
PLOTTED_PERCENTILES = {"p50": "o", "p90": "s", "p99": "^"}  # with their markers
LEAST_SHOWN = 0.01  # errors of exact layers are 0, which a logarithmic axis cannot show


@dataclass(frozen=True)
class FaultRow:
    """One planted fault under all checks.

    Attributes:
        fault: Its name.
        caught: By check of others, the share of the draws in which it caught the fault, 0..1.
        caught_by: The names of this gate's checks that caught it.
    """

    fault: str
    caught: dict[str, float]
    caught_by: tuple[str, ...]


def draw_faults(rows: Sequence[FaultRow], names: dict[str, str], palette: Palette) -> Figure:
    """A heat map: faults in rows, checks in columns.

    Args:
        rows: From top to bottom.
        names: The other checks, by the key of ``FaultRow.caught``: what stands above the column.
        palette: The colours.
    """
    columns = [*names.values(), *OUR_CHECKS]
    figure = Figure(figsize=(9.5, 0.36 * len(rows) + 1.5), layout="constrained")
    axes = figure.subplots()
    for y, row in enumerate(rows):
        shares = [row.caught[key] for key in names]
        shares += [float(check in row.caught_by) for check in OUR_CHECKS]
        for x, share in enumerate(shares):
            is_ours = x >= len(names)
            _draw_cell(axes, x + 0.25 * is_ours, y, share, palette, is_ours=is_ours)
    places = [x + 0.25 * (x >= len(names)) for x in range(len(columns))]
    axes.set(xlim=(-0.5, places[-1] + 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(places, columns)
    axes.set_yticks(range(len(rows)), [row.fault for row in rows])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    middle = len(names) + 0.25 + (len(OUR_CHECKS) - 1) / 2
    for place, text in (((len(names) - 1) / 2, "two random images"), (middle, "this gate")):
        axes.annotate(
            text,
            (place, 1),
            xytext=(0, 42),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            weight="bold",
        )
    return figure


def _draw_cell(
    axes: Axes, x: float, y: int, share: float, palette: Palette, *, is_ours: bool
) -> None:
    """A cell: caught, or passed. One of this gate's checks that sees nothing is no fault."""
    words = "caught" if share == 1 else f"{share:.0%}" if share else "passes"
    face, ink = (palette.good, palette.good_ink) if share == 1 else (palette.bad, palette.bad_ink)
    if is_ours and not share:
        words, face, ink = "", palette.card, palette.quiet
    axes.add_patch(Rectangle((x - 0.47, y - 0.44), 0.94, 0.88, facecolor=face, linewidth=0))
    axes.text(x, y, words, ha="center", va="center", color=ink, fontsize=9)


def draw_layers(layers: Sequence[Layer], limit: Tolerance, name: str, palette: Palette) -> Figure:
    """Each layer's error against float64, in units of float32's own, beside its limit.

    Args:
        layers: In the order of computation.
        limit: Has the limits of the RMS and of the largest error.
        name: The model's.
        palette: The colours.
    """
    shown = [layer for layer in layers if layer.local is not None]
    figure = Figure(figsize=(9.5, 0.3 * len(shown) + 1.5), layout="constrained")
    axes = figure.subplots()
    for y, layer in enumerate(shown):
        local = layer.local
        assert local is not None
        if local.largest == 0:
            axes.text(LEAST_SHOWN * 1.1, y, "exact", va="center", color=palette.quiet, fontsize=9)
            continue
        axes.plot(local.rms, y, "o", color=palette.accent, markersize=7)
        axes.plot(local.largest, y, "|", color=palette.accent, markersize=12, markeredgewidth=2)
        if local.visible is not None and limit.rms_multiple is not None:
            fault = local.visible * limit.rms_multiple
            axes.plot(fault, y, "X", color=palette.second, markersize=8)
    assert limit.rms_multiple is not None
    assert limit.largest_multiple is not None
    axes.axvline(limit.rms_multiple, color=palette.bad_ink, linestyle="--", linewidth=1.2)
    axes.axvline(limit.largest_multiple, color=palette.bad_ink, linestyle=":", linewidth=1.2)
    axes.set_xscale("log")
    axes.set_xlim(LEAST_SHOWN, 100_000)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_yticks(range(len(shown)), [f"{layer.op}   {layer.value}" for layer in shown])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(axis="x", color=palette.quiet, alpha=0.25, linewidth=0.7)
    axes.set(xlabel="error against float64, in units of the error that float32 has there")
    axes.set_title(f"{name}: error of each value inside the ONNX file", loc="left")
    _add_layer_legend(figure, axes, palette)
    return figure


def _add_layer_legend(figure: Figure, axes: Axes, palette: Palette) -> None:
    none: dict[str, Any] = {"linestyle": "none"}
    axes.plot([], [], "o", color=palette.accent, label="RMS error", **none)
    axes.plot([], [], "|", color=palette.accent, markeredgewidth=2, label="largest error", **none)
    axes.plot([], [], "--", color=palette.bad_ink, label="limit of the RMS error")
    axes.plot([], [], ":", color=palette.bad_ink, label="limit of the largest error")
    axes.plot([], [], "X", color=palette.second, label="a weight that is off by 1%", **none)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)


def draw_sweep(points: Sequence[Result], name: str, palette: Palette) -> Figure:
    """Latency over the number of users of a closed loop.

    Args:
        points: By users; INVALID ones have hollow markers.
        name: The model's.
        palette: The colours.
    """
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    axes = figure.subplots()
    shown = [point for point in points if point.requests]
    colours = (palette.quiet, palette.second, palette.accent)
    for percentile, colour in zip(PLOTTED_PERCENTILES, colours, strict=True):
        _draw_percentile(axes, shown, percentile, colour)
    if any(not point.verdict.valid for point in shown):
        axes.plot([], [], "o", markerfacecolor="none", color=palette.quiet, label="INVALID")
    _scale_latency(axes, [point.latency_ms[p] for point in shown for p in PLOTTED_PERCENTILES])
    axes.set(xlabel="users, each with one request at a time", ylabel="latency, ms")
    axes.set_xscale("log", base=2)
    axes.set_xticks([point.users for point in shown], [f"{point.users}" for point in shown])
    axes.grid(axis="y", color=palette.quiet, alpha=0.25, linewidth=0.7)
    axes.set_title(f"{name}: latency in a closed loop", loc="left")
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _draw_percentile(axes: Axes, points: Sequence[Result], percentile: str, colour: str) -> None:
    """A line through all points, whose marker is hollow at the INVALID ones."""
    marker = PLOTTED_PERCENTILES[percentile]
    latencies = [point.latency_ms[percentile] for point in points]
    axes.plot([point.users for point in points], latencies, color=colour, linewidth=1.2)
    axes.plot([], [], marker, color=colour, label=percentile)
    for point, latency in zip(points, latencies, strict=True):
        face = colour if point.verdict.valid else "none"
        axes.plot(point.users, latency, marker, color=colour, markerfacecolor=face)


def _scale_latency(axes: Axes, values: Sequence[float]) -> None:
    axes.set_yscale("log")
    low, high = min(values), max(values)
    ticks = [factor * 10.0**power for power in range(-2, 5) for factor in (1, 2, 5)]
    ticks = [tick for tick in ticks if low / 2 <= tick <= high * 2]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylim(low / 1.5, high * 1.5)
