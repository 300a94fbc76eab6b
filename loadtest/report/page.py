"""The pages of a load test: what was found, in figures, tables and pictures."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from loadtest.measure.result import Result
from loadtest.measure.sweep import Sweep
from loadtest.report.html_parts import heading, page, panels, paragraph, picture, sentence, tiles
from loadtest.report.levels import said_nothing
from loadtest.report.plots import curve_figure, latency_figure, seconds_figure, some
from loadtest.report.plots_server import batch_figure, machine_figure, waiting_figure
from loadtest.report.tables import error_table, fact_list, limit_table, result_table
from loadtest.report.words import (
    cost,
    goodput,
    labels,
    rate_per_s,
    run_verdict,
    sweep_verdict,
    wrong,
)

NO_COUNTERS = (
    "The server told none of its counters: batch sizes, queue and compute times are not known."
)


def run_report(results: Sequence[Result], missed: Sequence[str], over_runs: str = "") -> str:
    """The page of a load test of one or several points.

    Args:
        results: In the order in which they shall be shown.
        missed: Thresholds, in words.
        over_runs: What several runs of one point say together, in words.
    """
    words, bad = run_verdict(results, missed)
    verdict = "; ".join(filter(None, [words, over_runs])), bad
    figures = [
        tile
        for result, name in zip(results, labels(results), strict=True)
        for tile in _tiles(result, name if len(results) > 1 else "")
        if result.verdict.valid
    ]
    pictures = [
        *_curve(results),
        picture(latency_figure(results), "latency by percentile"),
        *_seconds(some(results)),
    ]
    return _whole("Load test", results, verdict, tiles(figures) if figures else "", pictures)


def sweep_report(sweep: Sweep) -> str:
    """The page of a search for the highest rate under the bound.

    INVALID points of a rate that was measured again and validly are left out.
    """
    measured = {point.offered_per_s for point in sweep.points if point.verdict.valid}
    points = [p for p in sweep.points if p.verdict.valid or p.offered_per_s not in measured]
    left_out = len(sweep.points) - len(points)
    words, bad = sweep_verdict(sweep)
    if left_out:
        words += f" ({left_out} INVALID measurements that were repeated are not shown)"
    at = None if sweep.capacity is None else points.index(sweep.points[sweep.capacity])
    figures = [
        (f"{sweep.slo_ms:g} ms", "bound of p99"),
        (f"{sweep.closed_loop_per_s:,.0f}/s", "a closed loop got at most"),
        (f"{sweep.ceiling_per_s:,.0f}/s", "the generator reaches alone"),
    ]
    chosen = [len(points) - 1]
    if at is not None:
        best = points[at]
        figures = [
            (f"{goodput(best)}/s", "capacity, goodput"),
            (f"{best.offered_per_s or 0:,.0f}/s", "offered there"),
            (f"{best.latency_ms['p99']:.2f} ms", "p99 there"),
            *figures,
        ]
        chosen = sorted({at, *chosen})
    pictures = [
        picture(
            curve_figure(points, sweep.slo_ms, at),
            "latency percentiles over the offered rate, with the bound and the capacity",
        ),
        picture(latency_figure(points), "latency by percentile at the offered rates"),
        *_seconds([points[i] for i in chosen]),
    ]
    return _whole("Load sweep", points, (words, bad), tiles(figures), pictures, at)


def _whole(
    title: str,
    results: Sequence[Result],
    verdict: tuple[str, bool],
    figures: str,
    pictures: Sequence[str],
    capacity: int | None = None,
) -> str:
    """A page: the sentence, the headline figures, pictures, tables and where it all was."""
    words, bad = verdict
    mark = "" if any(result.verdict.valid for result in results) else "INVALID"
    names = labels(results)
    if capacity is not None:
        names[capacity] += " (capacity)"
    return page(
        title,
        "",
        [
            sentence(words[0].upper() + words[1:], bad=bad),
            figures,
            fact_list(results),
            heading("Latency", _hint(results)),
            panels(pictures),
            heading("Inside the server", "of the seconds that count, by its own counters"),
            paragraph(NO_COUNTERS) if said_nothing(results) else "",
            panels(_server_pictures(results)),
            heading("Figures", "every answer compared with the bundle's reference"),
            result_table(results, names),
            heading("Errors by kind", "; ".join(wrong(r) for r in results if r.wrong_answers)),
            error_table(results, names),
            heading(
                "What may have been the limit",
                "the generator and the server take the same cores if they share a machine; "
                "the generator's memory is not recorded",
            ),
            limit_table(results, names),
        ],
        mark,
    )


def _tiles(result: Result, name: str) -> list[tuple[str, str]]:
    """The headline figures of a valid result."""
    of = f", {name}" if name else ""
    if name:
        return [(f"{result.requests_per_s:,.0f}/s", f"p99 {result.latency_ms['p99']:.2f} ms{of}")]
    figures = [
        (f"{result.requests_per_s:,.0f}/s", "requests answered rightly"),
        (f"{result.samples_per_s:,.0f}/s", "images"),
        (f"{result.latency_ms['p50']:.2f} ms", "p50"),
        (f"{result.latency_ms['p99']:.2f} ms", "p99"),
    ]
    if result.goodput_per_s is not None:
        figures.append((f"{goodput(result)}/s", f"goodput, within {result.slo_ms:g} ms"))
    if result.cost_per_million is not None:
        figures.append((cost(result), "cost per million images"))
    return figures


def _hint(results: Sequence[Result]) -> str:
    loops = {result.loop for result in results}
    since = "from the moment a request was due" if "open" in loops else ""
    if "closed" in loops:
        since += f"{', in closed loops ' * bool(since)}from sending a request to its answer"
    if any(not result.verdict.valid for result in results):
        return f"{since}; INVALID points have hollow markers or broken lines"
    return since


def _curve(results: Sequence[Result]) -> list[str]:
    """Only of points that differ in their load alone."""
    kinds = {(r.model, r.scenario, r.endpoint, r.samples_per_request, r.loop) for r in results}
    if len(kinds) > 1 or len({rate_per_s(result) for result in results}) < 2:  # noqa: PLR2004
        return []
    points = sorted(results, key=rate_per_s)
    figure = curve_figure(points, points[0].slo_ms, None)
    return [picture(figure, "latency percentiles over the rate")]


def _seconds(results: Sequence[Result]) -> list[str]:
    return [
        picture(seconds_figure(result, f"Each second: {name}"), f"answers each second, {name}")
        for result, name in zip(results, labels(results), strict=True)
    ]


def _server_pictures(results: Sequence[Result]) -> list[str]:
    drawn: list[tuple[Figure | None, str]] = [
        (batch_figure(results), "batch sizes"),
        (waiting_figure(results), "time in the queue and in the engine"),
        (machine_figure(results), "CPU and memory"),
    ]
    return [picture(figure, words) for figure, words in drawn if figure is not None]
