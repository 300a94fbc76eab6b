"""Load points for other programs and people: Markdown, JUnit XML, and all files of a report."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from loadtest.measure.result import Result
from loadtest.report.words import brief, cost, errors, goodput, labels, offered, run_verdict, wrong

MARKDOWN_COLUMNS = (
    *("scenario", "model", "offered", "requests/s", "samples/s", "goodput/s"),
    *("p50 ms", "p90 ms", "p95 ms", "p99 ms", "p99.9 ms", "generator CPU, of a core"),
    *("cost per million samples", "errors", "wrong answers", "verdict"),
)
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_markdown(results: Sequence[Result], verdict: str | None = None) -> str:
    """A sentence, a table, and where it was.

    Args:
        results: One or more.
        verdict: The sentence; without it, what can be said without thresholds.
    """
    first = results[0].provenance
    rows = [_cells(result) for result in results]
    lines = [
        _plain(verdict or run_verdict(results, [])[0]),
        "",
        f"| {' | '.join(MARKDOWN_COLUMNS)} |",
        "|---|---|" + "---:|" * (len(MARKDOWN_COLUMNS) - 3) + "---|",
        *(f"| {' | '.join(map(_plain, row))} |" for row in rows),
        "",
        _plain(
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
    suite = ET.Element("testsuite", name="loadtest", timestamp=_local(results[0]))
    counts = {"failure": 0, "error": 0}
    for result, name, violations in zip(results, labels(results), missed, strict=True):
        case = ET.SubElement(
            suite,
            "testcase",
            classname=_clean(f"loadtest.{result.scenario}.{result.model}"),
            name=_clean(name.removesuffix(", INVALID")),
            time=f"{result.duration_s:.3f}",
        )
        if kind := _kind(result, violations):
            counts[kind] += 1
            said = _clean("\n".join([*violations, *result.verdict.reasons]))
            reasons = result.verdict.reasons if kind == "error" else violations
            message = "; ".join(reasons) or wrong(result)
            if kind == "error":
                message = f"INVALID: {message}"
            ET.SubElement(case, kind, message=_clean(message)).text = said
        figures = f"{brief(result)}; errors: {errors(result)}; wrong: {result.wrong_answers}"
        ET.SubElement(case, "system-out").text = _clean(figures)
    suite.set("tests", str(len(results)))
    suite.set("failures", str(counts["failure"]))
    suite.set("errors", str(counts["error"]))
    suite.set("time", f"{sum(result.duration_s for result in results):.3f}")
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


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


def _kind(result: Result, violations: Sequence[str]) -> str | None:
    if result.wrong_answers:
        return "failure"
    if not result.verdict.valid:
        return "error"
    return "failure" if violations else None


def _cells(result: Result) -> list[str]:
    return [
        *(result.scenario, result.model, offered(result)),
        *(f"{result.requests_per_s:,.0f}", f"{result.samples_per_s:,.0f}", goodput(result)),
        *(f"{latency:,.2f}" for latency in result.latency_ms.values()),
        f"{100 * result.generator_cpu_share:.0f}%",
        *(cost(result), errors(result), f"{result.wrong_answers:,}"),
        str(result.verdict) if result.verdict.valid else f"**INVALID**: {_reasons(result)}",
    ]


def _reasons(result: Result) -> str:
    return "; ".join(result.verdict.reasons)


def _plain(text: str) -> str:
    """Text that ends no cell, opens no tag and starts no line."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


def _clean(text: str) -> str:
    """Without the characters that XML has no way to write."""
    return _NO_XML.sub("?", text)


def _local(result: Result) -> str:
    """The date as JUnit's schema wants it: without a zone."""
    return result.provenance.began.removesuffix("+00:00")
