"""Figures of what the server said of itself: by load point, or by second if there is one point."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from loadtest.measure.result import Result
from loadtest.report.levels import Level, counting, level, samples
from loadtest.report.plots import COLOURS, panel, scale_latency
from loadtest.report.words import MIB, labels

MOST_STRAIGHT = 6  # labels beside each other that need not be turned
LONG_LABEL = 8  # characters
NO_SHARE = 0.005  # rounds to 0%
DARK_CELL = 0.55
PALE = "#c9d1d8"


def batch_figure(results: Sequence[Result]) -> Figure | None:
    """How large the batches were, at each load point; None if nobody knows."""
    levels = [level(result) for result in results]
    known = [each.sizes for each in levels if each.sizes]
    if not known:
        return None
    sizes = max(map(list, known), key=len)
    if len(results) == 1:
        return _histogram(known[0], levels[0])
    figure = panel(3.9)
    axes = figure.subplots()
    cells = [[(each.sizes or {}).get(size, 0.0) for each in levels] for size in sizes]
    axes.imshow(cells, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    small = len(results) > MOST_STRAIGHT
    for row, shares in enumerate(cells):
        for column, share in enumerate(shares):
            unknown = levels[column].sizes is None
            if not unknown and share < NO_SHARE:
                continue
            axes.text(
                *(column, row, "?" if unknown else f"{100 * share:.0f}"),
                ha="center",
                va="center",
                size=8 if small else 9,
                color="white" if share > DARK_CELL else "#1d2329",
            )
    for column, each in enumerate(levels):
        digits = 0 if small else 1
        mean = "?" if each.samples_per_batch is None else f"{each.samples_per_batch:.{digits}f}"
        size = 8 if small else 9
        axes.text(
            column, len(sizes) - 0.4, mean, ha="center", va="bottom", size=size, weight="bold"
        )
    axes.set_yticks([*range(len(sizes)), len(sizes) - 0.1], [*sizes, "mean"])
    axes.set(ylabel="images in a batch")
    _points(axes, results)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("Share of the batches by size, %", loc="left", pad=20)
    return figure


def waiting_figure(results: Sequence[Result]) -> Figure | None:
    """What a batch waited and what it was computed for; None if nobody knows."""
    if len(results) == 1:
        each = samples(results[0])
        drawn = [(s.queue_ms, s.compute_ms) for s in each]
    else:
        drawn = [(one.queue_ms, one.compute_ms) for one in map(level, results)]
    queue, compute = (_numbers([pair[i] for pair in drawn]) for i in (0, 1))
    if not any(map(math.isfinite, [*queue, *compute])):
        return None
    figure = panel()
    axes = figure.subplots()
    x = _axis(axes, results)
    _line(axes, x, queue, results, color=COLOURS[1], marker="s", label="longest wait in queue")
    _line(axes, x, compute, results, color=COLOURS[0], marker="o", label="in the engine")
    scale_latency(axes, [*queue, *compute])
    axes.set(ylabel="mean over the batches, ms")
    axes.set_title("Queue against compute", loc="left")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def machine_figure(results: Sequence[Result]) -> Figure | None:
    """CPU of the server beside the generator's, and the server's memory; None if not known."""
    one = len(results) == 1
    seen: list[Any] = samples(results[0]) if one else [level(result) for result in results]
    cores = _numbers([each.cpu_cores for each in seen])
    rss = _numbers([None if each.rss_bytes is None else each.rss_bytes / MIB for each in seen])
    if not any(map(math.isfinite, [*cores, *rss])):
        return None
    figure = panel(3.9)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    x = _axis(below, results)
    busy = [result.generator_cpu_share for result in results]
    _line(above, x, cores, results, color=COLOURS[0], marker="o", label="server")
    if one:
        above.axhline(busy[0], color=COLOURS[1], linestyle="--", label="generator, mean")
    else:
        name = "generator's busiest process"
        _line(above, x, busy, results, color=COLOURS[1], marker="s", label=name)
    above.set_ylim(0, 1.15 * max([*filter(math.isfinite, cores), *busy, 0.1]))
    above.set(ylabel="CPU, cores")
    above.set_title("The machine under it", loc="left")
    _line(below, x, rss, results, color=COLOURS[2], marker="D", label="server's memory")
    highest = max([*filter(math.isfinite, rss), 1.0])
    below.set_ylim(0, 1.2 * highest)
    below.yaxis.set_major_locator(MaxNLocator(4))
    below.set(ylabel="MiB")
    figure.align_ylabels()
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _histogram(sizes: dict[str, float], seen: Level) -> Figure:
    figure = panel()
    axes = figure.subplots()
    bars = axes.bar(range(len(sizes)), list(sizes.values()), 0.8, color=COLOURS[0])
    axes.bar_label(bars, [_percent(share) for share in sizes.values()], size=9)
    axes.set_xticks(range(len(sizes)), list(sizes))
    axes.set_ylim(0, 1.12 * max(sizes.values()))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(xlabel="images in a batch", ylabel="share of the batches")
    axes.set_title(f"Batch sizes, mean {seen.samples_per_batch or math.nan:.1f}", loc="left")
    return figure


def _percent(share: float) -> str:
    if share < NO_SHARE:
        return "<1%" if share else ""
    return f"{100 * share:.0f}%"


def _numbers(values: Sequence[float | None]) -> list[float]:
    """What is not known leaves a gap."""
    return [math.nan if value is None else float(value) for value in values]


def _axis(axes: Axes, results: Sequence[Result]) -> list[float]:
    """The x axis, and where on it the values are: seconds of one point, or points."""
    if len(results) > 1:
        _points(axes, results)
        return list(map(float, range(len(results))))
    every, first = samples(results[0]), counting(results[0])[0]
    axes.set(xlabel="seconds since the server is watched (hatched: warm-up)")
    for each in axes.figure.axes:
        each.axvspan(
            *(0, first.at_s - first.seconds), facecolor="#eef1f4", hatch="....", edgecolor=PALE
        )
    axes.set_xlim(0, every[-1].at_s)
    return [sample.at_s - sample.seconds / 2 for sample in every]


def _points(axes: Axes, results: Sequence[Result]) -> None:
    """Load points beside each other; INVALID ones bear an asterisk."""
    due = all(result.offered_per_s is not None for result in results)
    names = [name.removesuffix(", INVALID") for name in labels(results)]
    if due and all(name.endswith("/s") for name in names):
        names = [name.removesuffix("/s") for name in names]
        what = "offered requests/s"
    else:
        what = ""
    invalid = [not result.verdict.valid for result in results]
    names = [name + "*" * bad for name, bad in zip(names, invalid, strict=True)]
    turned = len(names) > MOST_STRAIGHT or max(map(len, names)) > LONG_LABEL
    axes.set_xticks(
        range(len(names)),
        names,
        rotation=35 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor" if turned else None,
        fontsize=9,
    )
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set(xlabel=f"{what}  (* INVALID)" if any(invalid) else what)


def _line(
    axes: Axes, x: Sequence[float], y: Sequence[float], results: Sequence[Result], **look: Any
) -> None:
    """A line with markers, hollow ones for INVALID points; nothing joins what has no order."""
    rates = [result.offered_per_s for result in results]
    ordered = None not in rates and rates == sorted(r for r in rates if r is not None)
    one = len(results) == 1
    solid = one or ordered
    colour = look["color"]
    axes.plot(x, y, linestyle="-" if solid else "none", markersize=5, **look)
    bad = [] if one else [i for i, result in enumerate(results) if not result.verdict.valid]
    axes.plot(
        *([x[i] for i in bad], [y[i] for i in bad]),
        linestyle="none",
        marker=look["marker"],
        color=colour,
        markerfacecolor="white",
        markersize=5,
    )
