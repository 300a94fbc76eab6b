"""The tables of a load test's page, and where and of what its figures are."""

from collections.abc import Sequence

from loadtest.measure.result import Result, beside_the_load
from loadtest.report.html_parts import facts, paragraph, table
from loadtest.report.levels import level
from loadtest.report.plots import some
from loadtest.report.words import MIB, cost, errors, goodput, known

RESULT_COLUMNS = (
    *("point", "verdict", "images/ request", "requests/s", "images/s", "goodput/s"),
    *("p50 ms", "p90 ms", "p95 ms", "p99 ms", "p99.9 ms", "cost per million images", "errors"),
    "wrong answers",
)
LIMIT_COLUMNS = (
    *("point", "server CPU, cores", "server memory, MiB", "server GPU"),
    *(
        "generator CPU, of a core",
        "processes",
        "sent late p50 ms",
        "sent late p99 ms",
        "ceiling, requests/s",
        "of it used",
    ),
)


def result_row(result: Result, name: str) -> list[str]:
    """A run as cells under ``RESULT_COLUMNS``."""
    return [
        *(name, "valid" if result.verdict.valid else "INVALID", str(result.samples_per_request)),
        *(f"{result.requests_per_s:,.0f}", f"{result.samples_per_s:,.0f}", goodput(result)),
        *(f"{latency:,.2f}" for latency in result.latency_ms.values()),
        *(cost(result), errors(result), f"{result.wrong_answers:,}"),
    ]


def result_table(results: Sequence[Result], names: Sequence[str]) -> str:
    """Runs below each other; INVALID ones stand out, and below the table it is said why."""
    rows = [result_row(result, name) for result, name in zip(results, names, strict=True)]
    lacking = {
        "goodput/s": all(result.goodput_per_s is None for result in results),
        "cost per million images": all(result.cost_per_million is None for result in results),
    }
    kept = [i for i, column in enumerate(RESULT_COLUMNS) if not lacking.get(column)]
    hints = []
    if lacking["goodput/s"]:
        hints.append("no bound is set: there is no goodput")
    if lacking["cost per million images"]:
        hints.append("no price per hour is stated in scenarios.toml: there is no cost")
    why = [
        (name, "; ".join(result.verdict.reasons))
        for result, name in zip(results, names, strict=True)
        if not result.verdict.valid
    ]
    return (
        table(
            [RESULT_COLUMNS[i] for i in kept],
            [[row[i] for i in kept] for row in rows],
            bad=["INVALID"],
            dim=_invalid(results),
        )
        + (paragraph("; ".join(hints)) if hints else "")
        + (facts(why) if why else "")
    )


def fact_list(results: Sequence[Result]) -> str:
    """Where and of what the figures are; what differs is given for each."""

    def each(values: Sequence[str]) -> str:
        return "; ".join(dict.fromkeys(values))

    first = results[0]
    versions = {f"{name} {version}": "" for r in results for name, version in _versions(r)}
    seconds = each([f"{r.duration_s:.1f} s after {r.warmup_s:g} s" for r in some(results)])
    return facts(
        [
            ("machine", each([r.provenance.machine for r in results])),
            ("service", each([r.provenance.url for r in results])),
            ("model", each([f"{r.model} {r.version}, {r.variant} on {r.device}" for r in results])),
            ("scenario", each([_scenario(r) for r in results])),
            *(("beside", words) for r in results for words in beside_the_load(r)),
            ("seed", each([str(r.seed) for r in results])),
            ("measured", f"{seconds} of warm-up"),
            ("versions", ", ".join(versions)),
            ("commit", each([r.provenance.commit for r in results])),
            ("date", first.provenance.began),
        ]
    )


def _versions(result: Result) -> list[tuple[str, str]]:
    return list(result.provenance.versions.items())


def _scenario(result: Result) -> str:
    bound = "" if result.slo_ms is None else f", p99 under {result.slo_ms:g} ms"
    arrivals = "" if result.loop == "closed" else f", arrivals of shape {result.shape:g}"
    return (
        f"{result.scenario}: {result.loop} loop{arrivals}, {result.samples_per_request} x "
        f"{result.endpoint}{bound}"
    )


def limit_table(results: Sequence[Result], names: Sequence[str]) -> str:
    """What may have been the limit: the server's machine, the generator, its ceiling."""
    rows = [_limit(result, name) for result, name in zip(results, names, strict=True)]
    return table(LIMIT_COLUMNS, rows, dim=_invalid(results))


def _limit(result: Result, name: str) -> list[str]:
    seen, ceiling = level(result), result.ceiling_per_s
    rss = None if seen.rss_bytes is None else seen.rss_bytes / MIB
    return [
        *(name, known(seen.cpu_cores), known(rss, ",.0f"), known(seen.gpu_percent, ".0f", "%")),
        *(f"{100 * result.generator_cpu_share:.0f}%", str(result.processes)),
        *(f"{result.lag_ms['p50']:,.2f}", f"{result.lag_ms['p99']:,.2f}"),
        "not measured" if ceiling is None else f"{ceiling:,.0f}",
        "not known" if not ceiling else f"{100 * result.requests_per_s / ceiling:.0f}%",
    ]


def error_table(results: Sequence[Result], names: Sequence[str]) -> str:
    """What became of the requests."""
    kinds = list(dict.fromkeys(kind for result in results for kind in result.errors))
    return table(
        ["point", "sent", "answered rightly", "wrong", *kinds, "no room to send", "no answer"],
        [
            [
                *(name, f"{result.sent:,}", f"{result.requests:,}", f"{result.wrong_answers:,}"),
                *(f"{result.errors.get(kind, 0):,}" for kind in kinds),
                *(f"{result.no_room:,}", f"{result.stragglers:,}"),
            ]
            for result, name in zip(results, names, strict=True)
        ],
        dim=_invalid(results),
    )


def _invalid(results: Sequence[Result]) -> list[int]:
    return [i for i, result in enumerate(results) if not result.verdict.valid]
