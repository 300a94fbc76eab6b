"""Load points for other programs and people: Markdown, JUnit XML, and all files of a report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loadtest.measure.result import Result
from loadtest.report.tables import Case, junit, markdown_table, plain
from loadtest.report.words import brief, cells, errors, labels, run_verdict, wrong

MARKDOWN_COLUMNS = (
    *("scenario", "model", "offered", "requests/s", "samples/s", "goodput/s"),
    *("p50 ms", "p90 ms", "p95 ms", "p99 ms", "p99.9 ms", "generator CPU, of a core"),
    *("cost per million samples", "errors", "wrong answers", "verdict"),
)


COLUMNS = (
    *("scenario", "model", "offered", "requests/s", "samples/s", "goodput/s"),
    *("p50 ms", "p90 ms", "p95 ms", "p99 ms", "p99.9 ms", "generator CPU, of a core"),
    *("cost per million samples", "errors", "wrong answers", "verdict"),
)


def to_markdown(results: Sequence[Result], verdict: str | None = None) -> str:
    """A sentence, a table, and where it was.

    Args:
        results: One or more.
        verdict: The sentence; without it, what can be said without thresholds.
    """
    first = results[0].provenance
    lines = [
        plain(verdict or run_verdict(results, [])[0]),
        "",
        markdown_table(COLUMNS, [cells(result, COLUMNS) for result in results]),
        "",
        plain(
            f"{first.machine}; commit {first.commit}; {first.began}; seed {results[0].seed}; "
            + ", ".join(f"{name} {version}" for name, version in first.versions.items())
        ),
    ]
    return "\n".join(lines) + "\n"


def to_junit(results: Sequence[Result], missed: Sequence[list[str]]) -> str:
    """JUnit's XML, one test case a point.

    A wrong answer is a failure, whatever else is said of the point; else INVALID is an error, for
    nothing is known of its thresholds; else a missed threshold is a failure.

    Args:
        results: One or more.
        missed: For each of them, what it missed, in words.
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
    """Write the files of one report beside each other.

    Args:
        stem: Their path without an ending; its folder is made.
        json: What goes into ``.json``.
        html: Into ``.html``.
        markdown: Into ``.md``.
        junit: Into ``.xml``.

    Returns:
        The page.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    texts = {"json": json, "md": markdown, "xml": junit, "html": html}
    for ending, text in texts.items():
        stem.with_name(f"{stem.name}.{ending}").write_text(text, encoding="utf-8")
    return stem.with_name(f"{stem.name}.html")
