"""Figures and plots of the server's own metrics, after the warm-up."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from loadtest.measure.result import MIB, Result
from loadtest.report.plots import COLOURS, panel, scale_latency
from loadtest.report.words import labels
from loadtest.telemetry.watch import ServerSample, summary

COMPUTE = "compute_ms"
NO_SHARE = 0.005  # rounds to 0%
PALE = "#c9d1d8"


def samples(result: Result) -> list[ServerSample]:
    """All server samples of a result."""
    return [ServerSample.model_validate(sample) for sample in result.server_samples]


def counting(result: Result) -> list[ServerSample]:
    """The samples under load without the warm-up; all samples if none is left.

    The generator and the server's watch have different clocks. So the measured window is taken to
    begin one warm-up after the first sample with work, and to end with the last such sample.
    """
    every = samples(result)
    busy = [
        i
        for i, sample in enumerate(every)
        if sample.requests_per_s or sample.batches_per_s or sample.refused_per_s
    ]
    if not busy:
        return every
    start_s = every[busy[0]].at_s + result.warmup_s
    return [s for s in every[busy[0] : busy[-1] + 1] if s.at_s - s.seconds / 2 > start_s] or every


def level(result: Result) -> dict[str, Any]:
    """The summary of the samples after the warm-up, with the largest memory instead of its mean.

    ``sizes`` are the shares of batches by size as text ("3-4"), for all sizes up to the largest
    that occurred.
    """
    seconds = counting(result)
    found = summary(seconds)
    for name in ("rss_bytes", "gpu_bytes"):
        values = [getattr(s, name) for s in seconds if getattr(s, name) is not None]
        found[name] = max(values, default=None)
    return {**found, "sizes": _shares(found["batch_sizes"] or {})}


def batch_figure(results: Sequence[Result]) -> Figure | None:
    """Batch sizes: their distribution for one point, or the means of several points."""
    levels = [level(result) for result in results]
    means = _numbers([each["samples_per_batch"] for each in levels])
    sizes = levels[0]["sizes"]
    if not any(map(math.isfinite, means)):
        return None
    figure = panel()
    axes = figure.subplots()
    if len(results) > 1 or not sizes:
        _line(axes, _axis(axes, results), means, results, color=COLOURS[0], marker="o")
        axes.set(ylabel="mean batch size, samples")
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.set_title("Batch sizes", loc="left")
        return figure
    bars = axes.bar(range(len(sizes)), list(sizes.values()), 0.8, color=COLOURS[0])
    axes.bar_label(bars, [_percent(share) for share in sizes.values()], size=9)
    axes.set_xticks(range(len(sizes)), list(sizes))
    axes.set_ylim(0, 1.12 * max(sizes.values()))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(xlabel="batch size, samples", ylabel="share of batches")
    axes.set_title(f"Batch sizes, mean {means[0]:.1f}", loc="left")
    return figure


def waiting_figure(results: Sequence[Result]) -> Figure | None:
    """Mean queue time and compute time of batches; None if neither is known."""
    drawn = _drawn(results)
    queue, compute = (_numbers([each[name] for each in drawn]) for name in ("queue_ms", COMPUTE))
    if not any(map(math.isfinite, [*queue, *compute])):
        return None
    figure = panel()
    axes = figure.subplots()
    x = _axis(axes, results)
    _line(axes, x, queue, results, color=COLOURS[1], marker="s", label="longest wait in queue")
    _line(axes, x, compute, results, color=COLOURS[0], marker="o", label="in the engine")
    scale_latency(axes, [*queue, *compute])
    axes.set(ylabel="mean over the batches, ms")
    axes.set_title("Queue time and compute time", loc="left")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def machine_figure(results: Sequence[Result]) -> Figure | None:
    """CPU of the server and the generator, the server's memory and open files; None if unknown."""
    drawn = _drawn(results)
    cores = _numbers([each["cpu_cores"] for each in drawn])
    memory = [value / MIB for value in _numbers([each["rss_bytes"] for each in drawn])]
    files = _numbers([each["open_files"] for each in drawn])
    if not any(map(math.isfinite, [*cores, *memory])):
        return None
    figure = panel(4.6)
    above, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 2])
    x = _axis(below, results)
    busy = [result.generator_cpu_share for result in results]
    _line(above, x, cores, results, color=COLOURS[0], marker="o", label="server")
    if len(results) == 1:
        above.axhline(busy[0], color=COLOURS[1], linestyle="--", label="generator, mean")
    else:
        name = "generator's busiest process"
        _line(above, x, busy, results, color=COLOURS[1], marker="s", label=name)
    above.set(ylabel="CPU, cores")
    above.set_title("CPU, memory and open files", loc="left")
    _line(middle, x, memory, results, color=COLOURS[2], marker="D", label="server's memory")
    middle.set(ylabel="MiB")
    _line(below, x, files, results, color=COLOURS[3], marker="^", label="server's open files")
    below.set(ylabel="files")
    for axes in (above, middle, below):
        axes.set_ylim(0, 1.2 * (axes.get_ylim()[1] or 1))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    figure.align_ylabels()
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _drawn(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The samples of one point, or the summaries of several."""
    if len(results) == 1:
        return [sample.model_dump() for sample in samples(results[0])]
    return [level(result) for result in results]


def _percent(share: float) -> str:
    if share < NO_SHARE:
        return "<1%" if share else ""
    return f"{100 * share:.0f}%"


def _numbers(values: Sequence[float | None]) -> list[float]:
    """Replace unknown values by NaN, which leaves a gap in a plot."""
    return [math.nan if value is None else float(value) for value in values]


def _axis(axes: Axes, results: Sequence[Result]) -> list[float]:
    """Set up the x axis and return the values' positions: seconds of one point, or the points."""
    if len(results) == 1:
        every, first = samples(results[0]), counting(results[0])[0]
        axes.set(xlabel="seconds since monitoring began (hatched: warm-up)")
        for each in axes.figure.axes:
            end_s = first.at_s - first.seconds
            each.axvspan(0, end_s, facecolor="#eef1f4", hatch="....", edgecolor=PALE)
        axes.set_xlim(0, every[-1].at_s)
        return [sample.at_s - sample.seconds / 2 for sample in every]
    invalid = [not result.verdict.valid for result in results]
    names = [
        name.removesuffix(", INVALID") + "*" * bad
        for name, bad in zip(labels(results), invalid, strict=True)
    ]
    look: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), names, fontsize=9, **look)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set(xlabel="(* INVALID)" if any(invalid) else "")
    return list(map(float, range(len(results))))


def _line(
    axes: Axes, x: Sequence[float], y: Sequence[float], results: Sequence[Result], **look: Any
) -> None:
    """Plot markers, hollow for INVALID points; a line joins a time series or increasing rates."""
    rates = [result.offered_per_s for result in results]
    ordered = None not in rates and rates == sorted(r for r in rates if r is not None)
    solid = len(results) == 1 or ordered
    axes.plot(x, y, linestyle="-" if solid else "none", markersize=5, **look)
    if len(results) > 1:
        bad = [i for i, result in enumerate(results) if not result.verdict.valid]
        hollow = {**look, "label": None, "linestyle": "none", "markerfacecolor": "white"}
        axes.plot([x[i] for i in bad], [y[i] for i in bad], markersize=5, **hollow)


def _shares(counts: dict[str, int]) -> dict[str, float] | None:
    """Convert counts by the buckets' upper bounds to shares by size as text ("3-4")."""
    total = sum(counts.values())
    if not total:
        return None
    bounds = sorted(counts, key=float)
    last = max(i for i, bound in enumerate(bounds) if counts[bound])
    words, below = {}, 0.0
    for bound in bounds[: last + 1]:
        top = float(bound)
        word = f"{top:g}" if top == below + 1 else f"{below + 1:g}-{top:g}"
        words[f"over {below:g}" if top == float("inf") else word] = counts[bound] / total
        below = top
    return words
