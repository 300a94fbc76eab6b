"""Texts and tables of results, for HTML pages, the terminal, Markdown and JUnit XML."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from loadtest.generator.recorder import REFUSED
from loadtest.measure.result import Result
from loadtest.measure.sweep import CAPACITY_USERS, Sweep
from loadtest.report.formats import Case, junit, markdown_table, plain

UNKNOWN = "not known"
MARKDOWN_COLUMNS = (
    *("scenario", "model", "offered", "requests/s", "samples/s", "goodput/s"),
    *("p50 ms", "p90 ms", "p95 ms", "p99 ms", "p99.9 ms", "generator CPU, share of a core"),
    *("cost per million samples", "errors", "wrong answers", "verdict"),
)
SWEEP_COLUMNS = (
    *("offered", "requests/s", "goodput/s", "not answered", "p50 ms", "p99 ms"),
    *("send delay p99 ms", "generator CPU, share of a core", "verdict"),
)


def offered(result: Result) -> str:
    """The load as text: users of a closed loop, or requests per second that were due."""
    if result.offered_per_s is None:
        return f"{result.users} user{'s' * (result.users != 1)}"
    return f"{result.offered_per_s:,.0f}/s"


def rate_per_s(result: Result) -> float:
    """The rate by which points are sorted: the due rate, or a closed loop's rate of answers."""
    return result.requests_per_s if result.offered_per_s is None else result.offered_per_s


_TELLING: tuple[Callable[[Result], str], ...] = (
    lambda result: result.model,
    lambda result: result.scenario,
    offered,
    lambda result: f"{result.samples_per_request} x {result.endpoint}",
    lambda result: result.variant,
)


def labels(results: Sequence[Result]) -> list[str]:
    """A label for each result, with the fewest fields that distinguish them, and ", INVALID".

    Results that no field distinguishes are numbered.
    """
    fields = [[each(result) for result in results] for each in _TELLING]
    differing = [field for field in fields if len(set(field)) > 1] or [fields[i] for i in (0, 1, 2)]
    for count in range(1, len(differing) + 1):
        names = [", ".join(parts) for parts in zip(*differing[:count], strict=True)]
        if len(set(names)) == len(names) > 1:
            break
    numbered = [
        name if names.count(name) == 1 else f"{name} ({names[:i].count(name) + 1})"
        for i, name in enumerate(names)
    ]
    return [
        name if result.verdict.valid else f"{name}, INVALID"
        for name, result in zip(numbered, results, strict=True)
    ]


def errors(result: Result) -> str:
    """The numbers of failed requests by kind, as text."""
    kinds = sorted(result.errors.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind}: {count:,}" for kind, count in kinds) or "none"


def wrong(result: Result) -> str:
    """The number of wrong answers, and the first example."""
    first = "".join(f", for example: {example}" for example in result.wrong_answer_examples[:1])
    return f"{result.wrong_answers:,} wrong answers{first}"


def cost(result: Result) -> str:
    """The cost of a million right samples, in the currency of the price."""
    return (
        "no price stated" if result.cost_per_million is None else f"{result.cost_per_million:.4g}"
    )


def goodput(result: Result) -> str:
    """Right answers per second within the bound, as text."""
    return "no bound" if result.goodput_per_s is None else f"{result.goodput_per_s:,.0f}"


def known(value: float | None, form: str = ",.2f", unit: str = "") -> str:
    """Format a figure with its unit; an unknown one becomes ``UNKNOWN``."""
    return UNKNOWN if value is None else f"{value:{form}}{unit}"


def brief(result: Result) -> str:
    """The headline figures of a valid result in one line."""
    refused = result.errors.get(REFUSED, 0)
    also = f", {100 * refused / max(1, result.sent):.0f}% refused" if refused else ""
    return (
        f"{result.requests_per_s:,.0f} requests/s, p50 {result.latency_ms['p50']:.2f} ms, "
        f"p99 {result.latency_ms['p99']:.2f} ms{also}"
    )


FIGURES: dict[str, Callable[[Result], str]] = {
    "scenario": lambda r: r.scenario,
    "model": lambda r: r.model,
    "offered": offered,
    "validity": lambda r: "valid" if r.verdict.valid else "INVALID",
    "samples/ request": lambda r: str(r.samples_per_request),
    "requests/s": lambda r: f"{r.requests_per_s:,.0f}",
    "samples/s": lambda r: f"{r.samples_per_s:,.0f}",
    "goodput/s": goodput,
    "not answered": lambda r: f"{100 * (1 - r.requests / r.sent if r.sent else 1):.1f}%",
    "p50 ms": lambda r: f"{r.latency_ms['p50']:,.2f}",
    "p90 ms": lambda r: f"{r.latency_ms['p90']:,.2f}",
    "p95 ms": lambda r: f"{r.latency_ms['p95']:,.2f}",
    "p99 ms": lambda r: f"{r.latency_ms['p99']:,.2f}",
    "p99.9 ms": lambda r: f"{r.latency_ms['p99.9']:,.2f}",
    "send delay p50 ms": lambda r: f"{r.lag_ms['p50']:,.2f}",
    "send delay p99 ms": lambda r: f"{r.lag_ms['p99']:,.2f}",
    "generator CPU, share of a core": lambda r: f"{100 * r.generator_cpu_share:.0f}%",
    "processes": lambda r: str(r.processes),
    "cost per million samples": cost,
    "errors": errors,
    "sent": lambda r: f"{r.sent:,}",
    "answered correctly": lambda r: f"{r.requests:,}",
    "wrong answers": lambda r: f"{r.wrong_answers:,}",
    "not sent": lambda r: f"{r.no_room:,}",
    "no answer": lambda r: f"{r.stragglers:,}",
    "verdict": lambda r: str(r.verdict).replace("INVALID", "**INVALID**", 1),
}
"""The functions that format a table cell of a result, by the column's name."""


def cells(result: Result, columns: Sequence[str]) -> list[str]:
    """A result's cells under some of the columns of ``FIGURES``."""
    return [FIGURES[column](result) for column in columns]


def run_verdict(results: Sequence[Result], missed: Sequence[str]) -> tuple[str, bool]:
    """The summary of a load test, and whether it reports a failure."""
    valid = [result for result in results if result.verdict.valid]
    if missed:
        return f"FAILED: {'; '.join(missed)}", True
    if not valid:
        reasons = "; ".join(dict.fromkeys(r for result in results for r in result.verdict.reasons))
        return f"INVALID, the figures below do not describe the service: {reasons}", True
    kept = "all answers correct, all thresholds met"
    if len(results) == 1:
        return f"{kept}: {brief(valid[0])}", False
    if len(valid) < len(results):
        return (
            f"{len(results) - len(valid)} of {len(results)} points are INVALID; otherwise {kept}",
            True,
        )
    return f"{kept} at {len(results)} points", False


def sweep_verdict(sweep: Sweep) -> tuple[str, bool]:
    """The summary of a search for the capacity, and whether it reports a failure."""
    bad = [wrong(point) for point in sweep.points if point.wrong_answers]
    if bad:
        return f"FAILED: {'; '.join(bad)}", True
    if sweep.capacity is None:
        invalid = sum(not point.verdict.valid for point in sweep.points)
        return (
            f"No capacity: at no valid point were 99% of the requests answered within "
            f"{sweep.slo_ms:g} ms ({invalid} of {len(sweep.points)} points are INVALID)"
        ), True
    best = sweep.points[sweep.capacity]
    found = (
        f"The capacity at {sweep.slo_ms:g} ms is {best.goodput_per_s or 0:,.0f} requests/s of "
        f"goodput, at {best.offered_per_s or 0:,.0f}/s offered "
        f"(p99 {best.latency_ms['p99']:.2f} ms)"
    )
    above = [point for point in sweep.points[sweep.capacity + 1 :] if point.verdict.valid]
    if len(sweep.points) == sweep.capacity + 1:
        return f"{found}; no higher rate was offered, so it may be higher", False
    if not above:
        return f"{found}; every higher point is INVALID, so it may be higher", False
    return f"{found}; at {above[0].offered_per_s or 0:,.0f}/s the bound was missed", False


def sweep_table(sweep: Sweep) -> str:
    """The points of a search and its outcome, as text for a terminal."""
    rows = [cells(point, SWEEP_COLUMNS) for point in sweep.points]
    lines = [
        f"bound: p99 < {sweep.slo_ms:g} ms; generator ceiling: "
        f"{sweep.ceiling_per_s:,.0f} requests/s; closed loop of {CAPACITY_USERS} users: "
        f"{sweep.closed_loop_per_s:,.0f} requests/s",
        "",
    ]
    found = ["", "no valid point met the bound, so there is no capacity to report"]
    if sweep.capacity is not None:
        rows[sweep.capacity][0] += " **capacity**"
        goodput_per_s = sweep.points[sweep.capacity].goodput_per_s or 0
        found = ["", f"capacity: {goodput_per_s:,.0f} requests/s of goodput"]
        found += [
            f"{name} at the capacity, over its runs: {s}" for name, s in sweep.over_runs.items()
        ]
    return "\n".join([*lines, markdown_table(SWEEP_COLUMNS, rows), *found])


def to_markdown(results: Sequence[Result], verdict: str | None = None) -> str:
    """A Markdown report: a summary, a table, and the provenance."""
    first = results[0].provenance
    lines = [
        plain(verdict or run_verdict(results, [])[0]),
        "",
        markdown_table(MARKDOWN_COLUMNS, [cells(result, MARKDOWN_COLUMNS) for result in results]),
        "",
        plain(
            f"{first.machine}; commit {first.commit}; {first.began}; seed {results[0].seed}; "
            + ", ".join(f"{name} {version}" for name, version in first.versions.items())
        ),
    ]
    return "\n".join(lines) + "\n"


def to_junit(results: Sequence[Result], missed: Sequence[list[str]]) -> str:
    """JUnit XML with one test case for each point.

    A point with a wrong answer is a failure. Otherwise an INVALID point is an error, because its
    thresholds cannot be checked. Otherwise a missed threshold is a failure.
    """
    cases = [
        _case(result, name, violations)
        for result, name, violations in zip(results, labels(results), missed, strict=True)
    ]
    return junit("loadtest", cases, results[0].provenance.began)


def _case(result: Result, name: str, violations: Sequence[str]) -> Case:
    case = Case(
        f"loadtest.{result.scenario}.{result.model}",
        name.removesuffix(", INVALID"),
        text="\n".join([*violations, *result.verdict.reasons]),
        output=f"{brief(result)}; errors: {errors(result)}; wrong: {result.wrong_answers}",
        seconds=result.duration_s,
    )
    if result.wrong_answers or (result.verdict.valid and violations):
        return replace(case, kind="failure", message="; ".join(violations) or wrong(result))
    if not result.verdict.valid:
        return replace(case, kind="error", message=str(result.verdict))
    return case


def write_all(stem: Path, *, json: str, html: str, markdown: str, junit: str) -> Path:
    """Write a report's files into one folder; ``stem`` is their path without the file extension.

    Returns:
        The path of the HTML page.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    texts = {"json": json, "md": markdown, "xml": junit, "html": html}
    for ending, text in texts.items():
        stem.with_name(f"{stem.name}.{ending}").write_text(text, encoding="utf-8")
    return stem.with_name(f"{stem.name}.html")
