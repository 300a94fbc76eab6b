"""The HTML pages of load points: figures, tables and plots."""

from collections.abc import Sequence

from loadtest.measure.result import MIB, Result, beside_the_load
from loadtest.measure.sweep import Sweep
from loadtest.report.formats import Page, Pairs, Picture, Section, Table
from loadtest.report.plots import curve_figure, latency_figure, seconds_figure, some
from loadtest.report.server import (
    batch_figure,
    level,
    machine_figure,
    samples,
    waiting_figure,
)
from loadtest.report.words import (
    cells,
    cost,
    goodput,
    known,
    labels,
    rate_per_s,
    run_verdict,
    sweep_verdict,
    wrong,
)

NO_COUNTERS = (
    "The server reported no counters, so batch sizes, queue times and compute times are not known."
)
RESULT_COLUMNS = (
    *("samples/ request", "requests/s", "samples/s", "goodput/s"),
    *("p50 ms", "p90 ms", "p95 ms", "p99 ms", "p99.9 ms", "cost per million samples", "errors"),
    "wrong answers",
)
SERVER_COLUMNS = (*("server CPU, cores", "server memory, MiB", "server open files", "server GPU"),)
GENERATOR_COLUMNS = (
    *("generator CPU, share of a core", "processes", "send delay p50 ms", "send delay p99 ms"),
)
CEILING_COLUMNS = ("ceiling, requests/s", "share of it used")


def run_report(results: Sequence[Result], missed: Sequence[str], over_runs: str = "") -> str:
    """The HTML page of a load test of one or several points.

    Args:
        results: The points, in the order in which they are shown.
        missed: The missed thresholds, as text.
        over_runs: Statistics over several runs of one point, as text.
    """
    words, is_bad = run_verdict(results, missed)
    sentence = "; ".join(filter(None, [words, over_runs]))
    tiles = [
        tile
        for result, name in zip(results, labels(results), strict=True)
        for tile in _tiles(result, name if len(results) > 1 else "")
        if result.verdict.valid
    ]
    pictures = [
        *_curve(results),
        Picture(latency_figure(results), "latency by percentile"),
        *_seconds(some(results)),
    ]
    return _page("Load test", results, (sentence, is_bad), tiles, pictures)


def sweep_report(sweep: Sweep) -> str:
    """The HTML page of a search for the capacity.

    INVALID points are left out if the same rate also has a valid measurement.
    """
    measured = {point.offered_per_s for point in sweep.points if point.verdict.valid}
    points = [p for p in sweep.points if p.verdict.valid or p.offered_per_s not in measured]
    left_out = len(sweep.points) - len(points)
    words, is_bad = sweep_verdict(sweep)
    if left_out:
        words += f" ({left_out} INVALID measurements that were repeated are not shown)"
    at = None if sweep.capacity is None else points.index(sweep.points[sweep.capacity])
    tiles = [
        (f"{sweep.slo_ms:g} ms", "p99 bound"),
        (f"{sweep.closed_loop_per_s:,.0f}/s", "closed-loop maximum"),
        (f"{sweep.ceiling_per_s:,.0f}/s", "generator ceiling"),
    ]
    chosen = [len(points) - 1]
    if at is not None:
        best = points[at]
        tiles = [
            (f"{goodput(best)}/s", "capacity (goodput)"),
            (f"{best.offered_per_s or 0:,.0f}/s", "offered at the capacity"),
            (f"{best.latency_ms['p99']:.2f} ms", "p99 at the capacity"),
            *tiles,
        ]
        chosen = sorted({at, *chosen})
    pictures = [
        Picture(curve_figure(points, sweep.slo_ms, at), "latency percentiles over the rate"),
        Picture(latency_figure(points), "latency by percentile at the offered rates"),
        *_seconds([points[i] for i in chosen]),
    ]
    return _page("Load sweep", points, (words, is_bad), tiles, pictures, at)


def _page(
    title: str,
    results: Sequence[Result],
    verdict: tuple[str, bool],
    tiles: Pairs,
    pictures: Sequence[Picture],
    capacity: int | None = None,
) -> str:
    words, is_bad = verdict
    names = labels(results)
    if capacity is not None:
        names[capacity] += " (capacity)"
    is_silent = all(s.samples_per_s is None for result in results for s in samples(result))
    server = ["from the server's own counters, without the warm-up", *[NO_COUNTERS] * is_silent]
    limits = "on one machine, the generator and the server compete for the same cores"
    wrongs = [wrong(result) for result in results if result.wrong_answers]
    return Page(
        title=title,
        mark="" if any(result.verdict.valid for result in results) else "INVALID",
        sentence=words[0].upper() + words[1:],
        is_bad=is_bad,
        tiles=tiles,
        facts=_facts(results),
        sections=[
            Section("Latency", [_hint(results)], pictures),
            Section("Inside the server", server, _server_pictures(results)),
            result_section("Figures", results, names),
            Section("Errors by kind", wrongs, tables=[_errors(results, names)]),
            Section("Possible bottlenecks", [limits], tables=[_limits(results, names)]),
        ],
    ).html()


def result_section(heading: str, results: Sequence[Result], names: Sequence[str]) -> Section:
    """A table with one row per point; INVALID ones are highlighted and explained below it."""
    lacking = {}
    if all(result.goodput_per_s is None for result in results):
        lacking["goodput/s"] = "no latency bound is set, so there is no goodput"
    if all(result.cost_per_million is None for result in results):
        lacking["cost per million samples"] = "no price per hour is set, so there is no cost"
    columns = [column for column in RESULT_COLUMNS if column not in lacking]
    table = Table(
        ["point", "verdict", *columns],
        [[name, *cells(r, ["validity", *columns])] for r, name in zip(results, names, strict=True)],
        bad=["INVALID"],
        dim=_invalid(results),
    )
    why = [
        (name, "; ".join(result.verdict.reasons))
        for result, name in zip(results, names, strict=True)
        if not result.verdict.valid
    ]
    notes = ["every answer is compared with the bundle's reference", *lacking.values()]
    return Section(heading, notes, tables=[table], facts=why)


def _facts(results: Sequence[Result]) -> Pairs:
    """The provenance and setup of the figures; values that differ are listed for each point."""

    def each(values: Sequence[str]) -> str:
        return "; ".join(dict.fromkeys(values))

    first = results[0]
    versions = [f"{name} {v}" for r in results for name, v in r.provenance.versions.items()]
    seconds = each([f"{r.duration_s:.1f} s after {r.warmup_s:g} s" for r in some(results)])
    return [
        ("machine", each([r.provenance.machine for r in results])),
        ("service", each([r.provenance.url for r in results])),
        ("model", each([f"{r.model} {r.version}, {r.variant} on {r.device}" for r in results])),
        ("scenario", each([_scenario(r) for r in results])),
        *(("also", words) for r in results for words in beside_the_load(r)),
        ("seed", each([str(r.seed) for r in results])),
        ("measured", f"{seconds} of warm-up"),
        ("versions", ", ".join(dict.fromkeys(versions))),
        ("commit", each([r.provenance.commit for r in results])),
        ("date", first.provenance.began),
    ]


def _scenario(result: Result) -> str:
    bound = "" if result.slo_ms is None else f", p99 under {result.slo_ms:g} ms"
    arrivals = "" if result.loop == "closed" else f", arrivals of shape {result.shape:g}"
    asked = f"{result.samples_per_request} x {result.endpoint}"
    return f"{result.scenario}: {result.loop} loop{arrivals}, {asked}{bound}"


def _limits(results: Sequence[Result], names: Sequence[str]) -> Table:
    """A table of possible bottlenecks: the server's machine, the generator and its ceiling."""
    rows = []
    for result, name in zip(results, names, strict=True):
        seen, ceiling = level(result), result.ceiling_per_s
        memory = None if seen["rss_bytes"] is None else seen["rss_bytes"] / MIB
        server = [known(seen["cpu_cores"]), known(memory, ",.0f")]
        server += [known(seen["open_files"], ",.0f"), known(seen["gpu_percent"], ".0f", "%")]
        reached = ["not measured", "not known"]
        if ceiling:
            reached = [f"{ceiling:,.0f}", f"{100 * result.requests_per_s / ceiling:.0f}%"]
        rows.append([name, *server, *cells(result, GENERATOR_COLUMNS), *reached])
    columns = ["point", *SERVER_COLUMNS, *GENERATOR_COLUMNS, *CEILING_COLUMNS]
    return Table(columns, rows, dim=_invalid(results))


def _errors(results: Sequence[Result], names: Sequence[str]) -> Table:
    """A table of the requests' outcomes: answered, wrong, and errors by kind."""
    kinds = list(dict.fromkeys(kind for result in results for kind in result.errors))
    before, behind = ("sent", "answered correctly", "wrong answers"), ("not sent", "no answer")
    rows = [
        [
            *(name, *cells(r, before)),
            *(f"{r.errors.get(kind, 0):,}" for kind in kinds),
            *cells(r, behind),
        ]
        for r, name in zip(results, names, strict=True)
    ]
    return Table(["point", *before, *kinds, *behind], rows, dim=_invalid(results))


def _tiles(result: Result, name: str) -> Pairs:
    """The tiles with the headline figures of a valid result."""
    if name:
        words = f"p99 {result.latency_ms['p99']:.2f} ms, {name}"
        return [(f"{result.requests_per_s:,.0f}/s", words)]
    tiles = [
        (f"{result.requests_per_s:,.0f}/s", "correct answers"),
        (f"{result.samples_per_s:,.0f}/s", "samples"),
        (f"{result.latency_ms['p50']:.2f} ms", "p50"),
        (f"{result.latency_ms['p99']:.2f} ms", "p99"),
    ]
    if result.goodput_per_s is not None:
        tiles.append((f"{goodput(result)}/s", f"goodput within {result.slo_ms:g} ms"))
    if result.cost_per_million is not None:
        tiles.append((cost(result), "cost per million samples"))
    return tiles


def _hint(results: Sequence[Result]) -> str:
    loops = {result.loop for result in results}
    since = "measured from the time when a request was due" if "open" in loops else ""
    if "closed" in loops:
        since += (
            f"{'; in closed loops, ' * bool(since)}measured from sending a request to its answer"
        )
    if _invalid(results):
        since += "; INVALID points have hollow markers or broken lines"
    return since


def _curve(results: Sequence[Result]) -> list[Picture]:
    """The plot of latency over the rate, if the points differ in nothing but their load."""
    kinds = {(r.model, r.scenario, r.endpoint, r.samples_per_request, r.loop) for r in results}
    if len(kinds) > 1 or len({rate_per_s(result) for result in results}) < 2:  # noqa: PLR2004
        return []
    points = sorted(results, key=rate_per_s)
    figure = curve_figure(points, points[0].slo_ms, None)
    return [Picture(figure, "latency percentiles over the rate")]


def _seconds(results: Sequence[Result]) -> list[Picture]:
    return [
        Picture(seconds_figure(result, f"Over time: {name}"), f"answers over time, {name}")
        for result, name in zip(results, labels(results), strict=True)
    ]


def _server_pictures(results: Sequence[Result]) -> list[Picture]:
    drawn = [
        (batch_figure(results), "batch sizes"),
        (waiting_figure(results), "time in the queue and in the engine"),
        (machine_figure(results), "CPU, memory and open files"),
    ]
    return [Picture(figure, words) for figure, words in drawn if figure is not None]


def _invalid(results: Sequence[Result]) -> list[int]:
    return [i for i, result in enumerate(results) if not result.verdict.valid]
