"""Write the gate's figures and verdicts as HTML, Markdown and JUnit XML. Imports no torch.

Nothing is judged here: every figure is shown with the bound that the judgement used. The text and
the layout of the page are in ``report.html.jinja``.
"""

import html
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from export.parity.judge import Judgement, inside_words
from export.parity.schema import ParityFigures
from export.report import cells
from export.report.cells import Cell, Timings
from export.report.junit import junit


def write_report(
    folder: Path, figures: ParityFigures, judgement: Judgement, timings: Timings | None = None
) -> Path:
    """Write parity.json, parity.html, parity.md and, for JUnit, parity.xml.

    Args:
        folder: The folder to write to; it is created if it does not exist.
        figures: The measured figures.
        judgement: The judgement of those figures.
        timings: The variants' times; None if they were not measured.

    Returns:
        The HTML page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [cells.verdict_cells(figures, found, timings or {}) for found in judgement.verdicts]
    rows += [[Cell(v), Cell(f"not checked: {why}")] for v, why in figures.not_checked.items()]
    texts = {
        "json": figures.model_dump_json(indent=1) + "\n",
        "html": _html(figures, judgement, rows),
        "md": _markdown(figures, judgement, rows),
        "xml": junit(figures, judgement),
    }
    for ending, text in texts.items():
        (folder / f"parity.{ending}").write_text(text, encoding="utf-8")
    return folder / "parity.html"


def _html(figures: ParityFigures, judgement: Judgement, rows: list[list[Cell]]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # A broken variant has no verdict, but its file may have been read.
    tolerances = {row.variant: row for row in figures.tolerances}
    return environment.get_template("report.html.jinja").render(
        figures=figures,
        judgement=judgement,
        summary=_summary(figures, judgement),
        loosened=_loosened(judgement),
        rows=rows,
        tolerances=tolerances | {row.variant: row.tolerance for row in judgement.verdicts},
        inside=inside_words(len(figures.layers), len(figures.unmatched)),
        cells=cells,
    )


def _markdown(figures: ParityFigures, judgement: Judgement, rows: list[list[Cell]]) -> str:
    columns = cells.VERDICT
    table = [
        [f"{text} ({below})" if below else text for text, below, _ in row]
        + [""] * (len(columns) - len(row))
        for row in rows
    ]
    lines = [
        f"## Parity of {_in_markdown(figures.name)}: {judgement.verdict}",
        "",
        _in_markdown(_summary(figures, judgement)),
        "",
        f"| {' | '.join(columns)} |",
        f"|{' --- |' * len(columns)}",
        *(f"| {' | '.join(map(_in_markdown, row))} |" for row in table),
        "",
        *(f"- failed: {_in_markdown(failure)}" for failure in judgement.failures),
        *(f"- loosened: {_in_markdown(row)}" for row in _loosened(judgement)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _summary(figures: ParityFigures, judgement: Judgement) -> str:
    sizes = [row.batch_size for row in figures.rows]
    passed, loosened = [v for v in judgement.verdicts if v.passed], _loosened(judgement)
    parts = [
        f"{len(passed)} of {len(judgement.verdicts)} variants within their tolerances on "
        f"{figures.device}, over {max(row.samples for row in figures.rows):,} samples in batches "
        f"of {min(sizes)} to {max(sizes)}",
        "{} of {} mutants killed".format(*judgement.killed) if figures.faults else "",
        f"{len(loosened)} with loosened tolerances" if loosened else "",
        f"{len(figures.not_checked)} not checked" if figures.not_checked else "",
    ]
    return "; ".join(filter(None, parts)) + "."


def _loosened(judgement: Judgement) -> list[str]:
    rows = (verdict.tolerance for verdict in judgement.verdicts)
    return [f"{row.variant}: {row.loosened}" for row in rows if row.loosened]


def _in_markdown(text: str) -> str:
    return " ".join(html.escape(text, quote=False).replace("|", "\\|").split())
