"""Plots of the generator's measurements, each narrow enough to be readable on a phone.

The colours are Okabe and Ito's, which colour-blind readers can distinguish; lines never differ in
colour alone. INVALID points have hollow markers or dashed lines, and no line connects them.
"""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from loadtest.measure.result import Result
from loadtest.report.words import labels, rate_per_s

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56606a")
BOUND, INK = "#b3261e", "#1d2329"
NINES = (50, 90, 99, 99.9, 99.99)
MARKERS = "os^vDP"
WHOLE = 100  # per cent
SPREAD = 20  # ratio of the largest to the smallest value above which the axis is logarithmic
LEAST_SPAN = 4
THREE_A_DECADE = 2.5  # decades with ticks at 1, 2 and 5; wider axes have powers of ten only
MOST_LINES = 8
PANEL_IN = 5.2


def panel(height_in: float = 3.4) -> Figure:
    """An empty figure in the report's style, as wide as half a page or a phone's screen."""
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})
    return Figure(figsize=(PANEL_IN, height_in), layout="constrained")


def scale_latency(axes: Axes, values: Sequence[float], *, log: bool | None = None) -> None:
    """Scale the y axis for values in milliseconds: from 0, or logarithmic if they are far apart."""
    found = [value for value in values if value > 0 and math.isfinite(value)]
    if not found:
        return
    low, high = min(found), max(found)
    if not (high / low > SPREAD if log is None else log):
        axes.set_ylim(0, high * 1.12)
        return
    if high / low < LEAST_SPAN:
        low, high = low / 2, high * 2
    low, high = low / 1.3, high * 1.4
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    few = math.log10(high / low) < THREE_A_DECADE
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=20))
    axes.yaxis.set_minor_locator(LogLocator(subs=(), numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(axis="y", color="#e3e7eb", linewidth=0.7)
    axes.set_axisbelow(True)


def bound_line(axes: Axes, slo_ms: float) -> None:
    """Draw the scenario's bound of the 99th percentile; it is labelled in the legend."""
    axes.axhline(
        slo_ms, color=BOUND, linestyle="--", linewidth=1.2, label=f"p99 bound: {slo_ms:g} ms"
    )


def curve_figure(points: Sequence[Result], slo_ms: float | None, capacity: int | None) -> Figure:
    """Latency percentiles over the rate, with the bound, the capacity and the generator's ceiling.

    Args:
        points: Points sorted by rate; those without an answer have no latency to show.
        slo_ms: The bound, if there is one.
        capacity: Index of the capacity among the points, if it was found.
    """
    figure = panel(3.9)
    axes = figure.subplots()
    shown = [point for point in points if point.requests]
    names = list(shown[0].latency_ms) if shown else []
    colours = mpl.colormaps["viridis"]
    for number, name in reversed(list(enumerate(names))):
        line: dict[str, Any] = {
            "color": colours(0.82 * (1 - number / max(1, len(names) - 1))),
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 5,
            "linewidth": 2.2 if name == "p99" else 1.2,
        }
        valid = [point for point in shown if point.verdict.valid]
        axes.plot(
            *([rate_per_s(p) for p in valid], [p.latency_ms[name] for p in valid]),
            label=name,
            **line,
        )
        invalid = [point for point in shown if not point.verdict.valid]
        axes.plot(
            *([rate_per_s(p) for p in invalid], [p.latency_ms[name] for p in invalid]),
            **{**line, "linestyle": "none", "markerfacecolor": "white"},
        )
    values = [value for point in shown for value in point.latency_ms.values()]
    scale_latency(axes, [*values, *([slo_ms] if slo_ms else [])], log=True)
    rates = [rate_per_s(point) for point in points]
    axes.set_xlim(0, 1.06 * max(rates))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    what = "offered" if all(p.offered_per_s is not None for p in points) else "answered"
    axes.set(xlabel=f"{what} requests/s", ylabel="latency, ms")
    axes.set_title("Latency over request rate", loc="left")
    if slo_ms:
        bound_line(axes, slo_ms)
    _mark_capacity(axes, points, capacity)
    _mark_ceiling(axes, [point.ceiling_per_s for point in points])
    if any(not point.verdict.valid for point in shown):
        axes.plot([], [], "o", color="#56606a", markerfacecolor="white", label="INVALID")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _mark_capacity(axes: Axes, points: Sequence[Result], capacity: int | None) -> None:
    if capacity is None:
        return
    rate, p99 = rate_per_s(points[capacity]), points[capacity].latency_ms["p99"]
    axes.axvline(rate, color=INK, linewidth=1, linestyle="-.")
    axes.plot([rate], [p99], "*", color=INK, markersize=14, zorder=5, label="capacity")


def _mark_ceiling(axes: Axes, ceilings: Sequence[float | None]) -> None:
    """Mark the generator's ceiling if it lies within the x axis, which is not extended for it."""
    known = [ceiling for ceiling in ceilings if ceiling]
    if not known or min(known) > axes.get_xlim()[1]:
        return
    axes.axvspan(
        min(known), axes.get_xlim()[1], color="#e3e7eb", label="above the generator's ceiling"
    )


def latency_figure(results: Sequence[Result]) -> Figure:
    """Latency over percentile, with the tail spread out; of many results only some are drawn."""
    chosen = some(results)
    figure = panel(3.9)
    axes = figure.subplots()
    colours = _colours(len(chosen))
    for result, label, colour in zip(chosen, labels(chosen), colours, strict=True):
        shares = [(share, value) for share, value in result.latency_spectrum_ms if share < WHOLE]
        axes.plot(
            *([WHOLE / (WHOLE - share) for share, _ in shares], [value for _, value in shares]),
            color=colour,
            label=label,
            linestyle="-" if result.verdict.valid else (0, (4, 2)),
        )
    axes.set(xscale="log", xlabel="percentile", ylabel="latency, ms")
    axes.set_xticks([WHOLE / (WHOLE - nine) for nine in NINES], [f"{nine:g}" for nine in NINES])
    axes.set_xticks([], minor=True)
    scale_latency(axes, [v for r in chosen for share, v in r.latency_spectrum_ms if share < WHOLE])
    axes.set_title("Latency by percentile", loc="left")
    columns = 1 if max(map(len, labels(chosen))) > 24 else 3  # noqa: PLR2004 - three fit
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def some(results: Sequence[Result]) -> list[Result]:
    """At most ``MOST_LINES`` evenly spaced results, including the first and the last."""
    step = max(1.0, (len(results) - 1) / (MOST_LINES - 1))
    return [results[round(i * step)] for i in range(min(len(results), MOST_LINES))]


def seconds_figure(result: Result, title: str) -> Figure:
    """A timeline: rates of answers and refusals in each window of time, and their p99 below."""
    figure = panel(3.9)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    width_s = result.window_width_s
    answered = [count / width_s for count in result.requests_each_window]
    refused = [count / width_s for count in result.refused_each_window]
    seconds = [width_s * (number + 1) for number in range(len(answered))]
    above.bar(seconds, answered, 0.9 * width_s, color=COLOURS[0], label="answered")
    if any(refused):
        above.bar(
            *(seconds, refused, 0.9 * width_s, answered),
            color="#f6c9a8",
            edgecolor=COLOURS[1],
            hatch="////",
            linewidth=0.5,
            label="refused",
        )
    if result.offered_per_s is not None:
        above.axhline(
            result.offered_per_s, color=INK, linewidth=1, linestyle=":", label="offered, mean"
        )
    tops = [a + r for a, r in zip(answered, refused, strict=True)]
    above.set_ylim(0, 1.1 * max(*tops, result.offered_per_s or 1, 1) if tops else 1)
    above.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    above.set(ylabel="requests/s")
    above.set_title(title, loc="left")
    p99_ms = [value or math.nan for value in result.p99_each_window_ms]
    below.plot(seconds, p99_ms, "o-", color=COLOURS[1], markersize=3.5)
    bound = [result.slo_ms] if result.slo_ms else []
    scale_latency(below, [*p99_ms, *bound])
    if result.slo_ms:
        bound_line(below, result.slo_ms)
    below.set(xlabel="seconds after the warm-up", ylabel="p99, ms")
    below.set_xlim(0.4 * width_s, (max(len(seconds), 1) + 0.6) * width_s)
    below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.align_ylabels()
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _colours(count: int) -> list[Any]:
    """Colours of lines: distinct hues for up to four, a gradient from dark to light for more."""
    if count <= 4:  # noqa: PLR2004 - as many hues are easily told apart
        return list(COLOURS[:count])
    return [mpl.colormaps["viridis"](0.88 * i / (count - 1)) for i in range(count)]
