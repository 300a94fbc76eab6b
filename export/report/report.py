"""The gate's figures and verdicts for people and for CI: HTML, Markdown, JUnit. Knows no torch.

Nothing is judged here: every figure is shown beside the bound that the judgement held it against.
"""

import html
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from export.bundle.manifest import ParityVerdict
from export.bundle.metrics import SURE
from export.bundle.tolerances import Tolerance
from export.parity.judge import Judgement, inside_words, neighbour_bound
from export.parity.schema import ParityFigures
from export.report import page
from export.report.page import Cell, Cells, bounded, error_text, number

Timings = Mapping[str, Mapping[int, float]]
"""Microseconds an image takes: by variant, by batch size."""

TIMED_BATCHES = (1, 64)
ON_CPU_ALONE = "faults are planted, and values inside the graph compared, on the CPU alone"
NOT_JUDGED = "not killed, but then weights are not judged"
NONE_EXACT = "no value was compared that must be bit-equal"
FAULT_FIGURES = ("scaled_error", "rms_ratio", "label_flips", "weights", "exact")
WORDS = {True: "PASSED", False: "FAILED"}
COLUMNS = (
    *("variant", "verdict", "KB", "accuracy", "label flips", "scaled error"),
    *("RMS, x eager's", "SQNR, dB", "certificate"),
)
# What XML cannot hold, not even escaped.
_ILLEGAL = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Case(NamedTuple):
    """One thing that was tested: what failed, and why it was skipped if it was."""

    group: str
    name: str
    failures: list[str]
    skipped: str | None = None


def write_report(
    folder: Path, figures: ParityFigures, judgement: Judgement, timings: Timings | None = None
) -> Path:
    """Write parity.json, parity.html, parity.md and, for JUnit, parity.xml.

    Args:
        folder: Where; made if it is not there.
        figures: What was measured.
        judgement: What the tolerances say of it.
        timings: How long the variants take; None if that was not measured.

    Returns:
        The HTML page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "json": figures.model_dump_json(indent=1) + "\n",
        "html": _html(figures, judgement, timings),
        "md": _markdown(figures, judgement),
        "xml": _junit(figures, judgement),
    }
    for ending, text in texts.items():
        (folder / f"parity.{ending}").write_text(text, encoding="utf-8")
    return folder / "parity.html"


def _html(figures: ParityFigures, judgement: Judgement, timings: Timings | None) -> str:
    tolerances = {v.variant: v.tolerance for v in judgement.verdicts}
    bound = tolerances["onnx"].scaled_error if "onnx" in tolerances else None
    parts = [
        page.box(f"Failures: {len(judgement.failures)}", judgement.failures),
        page.box("Tolerances were loosened for this model", _loosened(judgement)),
        page.box("Not checked", [f"{v}: {why}" for v, why in figures.not_checked.items()]),
        *_variants(figures, judgement, timings),
        *page.layers(figures, bound),
        *page.worst(figures),
        *_faults(figures, judgement),
        page.box(
            "Samples blind, provenance only: no sample shows a weight off by 1%", judgement.blind
        ),
        *_neighbours(figures, tolerances),
        *page.coverage(figures),
        *_weights(figures, tolerances),
        *page.batch_sizes(figures),
        *_environment(figures, judgement),
    ]
    news = "good" if judgement.passed else "bad"
    verdict = Cell(judgement.verdict, _summary(figures, judgement), news)
    return page.page(f"Parity of {figures.name}", verdict, parts)


def _markdown(figures: ParityFigures, judgement: Judgement) -> str:
    rows = [
        [f"{c.text} ({c.below})" if c.below else c.text for c in _cells(figures, verdict)]
        for verdict in judgement.verdicts
    ]
    rows += [[v, f"not checked: {why}", *[""] * 7] for v, why in figures.not_checked.items()]
    lines = [
        *(f"## Parity of {_in_markdown(figures.name)}: {judgement.verdict}", ""),
        *(_in_markdown(_summary(figures, judgement)), ""),
        f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}",
        *(f"| {' | '.join(map(_in_markdown, row))} |" for row in rows),
        "",
        *(f"- failed: {_in_markdown(failure)}" for failure in judgement.failures),
        *(f"- loosened: {_in_markdown(row)}" for row in _loosened(judgement)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _junit(figures: ParityFigures, judgement: Judgement) -> str:
    tested = list(_cases(figures, judgement))
    counts = {
        "tests": len(tested),
        "failures": sum(bool(case.failures) for case in tested),
        "skipped": sum(case.skipped is not None for case in tested),
    }
    suite = ElementTree.Element("testsuite", {k: str(count) for k, count in counts.items()})
    suite.set("name", "parity")
    for case in tested:
        name = f"{figures.name} on {figures.device}: {case.name}"
        element = ElementTree.SubElement(suite, "testcase", classname=case.group, name=name)
        if case.failures:
            failure = ElementTree.SubElement(element, "failure", message=case.failures[0])
            failure.text = "\n".join(case.failures)
        elif case.skipped is not None:
            ElementTree.SubElement(element, "skipped", message=case.skipped)
    ElementTree.indent(suite)
    text = _ILLEGAL.sub("?", ElementTree.tostring(suite, "unicode"))
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _cases(figures: ParityFigures, judgement: Judgement) -> Iterator[Case]:
    """All that the gate tested; each of the judgement's failures is in exactly one case."""
    for variant, failures in judgement.by_variant.items():
        yield Case("parity.variants", variant, failures)
    for variant, why in figures.not_checked.items():
        yield Case("parity.variants", variant, [], why)
    general = judgement.failures[sum(map(len, judgement.by_variant.values())) :]
    for fault in judgement.mutants:
        own = [f for f in general if f.startswith("self-test:") and fault.name in f]
        general = [f for f in general if f not in own]
        unseen = None if own or fault.caught_by else NOT_JUDGED
        yield Case("parity.self-test", fault.name, own, fault.not_applicable or unseen)
    coverage = [f for f in general if f.startswith("coverage:")]
    yield Case("parity.gate", "coverage", coverage)
    evidence = [f for f in general if f.startswith("inconclusive:")]
    yield Case("parity.gate", "evidence", evidence)
    exact = [f for f in general if f not in coverage + evidence]
    compared = any(layer.exact for layer in figures.layers)
    yield Case("parity.gate", "exact values", exact, None if compared or exact else NONE_EXACT)


def _summary(figures: ParityFigures, judgement: Judgement) -> str:
    sizes = [row.batch_size for row in figures.rows]
    passed = sum(verdict.passed for verdict in judgement.verdicts)
    parts = [
        f"{passed} of {len(judgement.verdicts)} variants within their tolerances on "
        f"{figures.device}, over {max(row.samples for row in figures.rows):,} samples in batches "
        f"of {min(sizes)} to {max(sizes)}",
        _killed(judgement) if figures.faults else "",
        f"{len(_loosened(judgement))} with loosened tolerances" if _loosened(judgement) else "",
        f"{len(figures.not_checked)} not checked" if figures.not_checked else "",
    ]
    return "; ".join(part for part in parts if part) + "."


def _variants(
    figures: ParityFigures, judgement: Judgement, timings: Timings | None
) -> Iterator[str]:
    rows: list[Cells] = [
        (*_cells(figures, verdict), *(_time(timings, verdict, batch) for batch in TIMED_BATCHES))
        for verdict in judgement.verdicts
    ]
    rows += [(variant, f"not checked: {why}") for variant, why in figures.not_checked.items()]
    yield page.heading("Variants", "the worst figures over all batch sizes, each above its bound")
    yield page.table((*COLUMNS, *(f"time an image, batch {b}" for b in TIMED_BATCHES)), rows)
    for position, verdict in enumerate(judgement.verdicts):
        certificate, holds = verdict.certificate, (verdict.certificate or 0) > SURE
        if certificate is not None and (position == 0 or not holds):
            uncertain, samples = page.uncertain(figures, verdict.variant)
            text = f"{uncertain:,} of {samples:,} samples are uncertain: such an error could change"
            yield page.paragraph(
                f"Certificate of {verdict.variant}: the closest decision among these samples is "
                f"{number(certificate)} times the largest error away: above {SURE}, no label can "
                f"change. {'' if holds else f'{text} their labels.'}"
            )


def _cells(figures: ParityFigures, verdict: ParityVerdict) -> list[Cell]:
    """A verdict under ``COLUMNS``."""
    variant, tolerance, certificate = verdict.variant, verdict.tolerance, verdict.certificate
    file = figures.files.get(variant)
    labels = [c.labels for c in figures.largest(variant).outputs.values() if c.labels]
    eager = labels[0].eager_accuracy if labels else None
    accuracy = flips = sure = Cell("-", "not known")
    if verdict.accuracy is not None:
        accuracy = Cell(f"{verdict.accuracy:.2%}", "" if eager is None else f"eager {eager:.2%}")
    if certificate is not None:
        flips = Cell(f"{verdict.label_flips:,}", f"of {labels[0].samples:,}")
        uncertain = f"{page.uncertain(figures, variant)[0]:,} uncertain"
        sure = Cell(number(certificate), "holds" if certificate > SURE else uncertain)
    sqnr = math.nan if verdict.sqnr_db is None else verdict.sqnr_db
    loosened = "loosened" if tolerance.loosened else ""
    return [
        Cell(variant, "deprecated by PyTorch" if variant.startswith("torchscript") else ""),
        Cell(WORDS[verdict.passed], loosened, "good" if verdict.passed else "bad"),
        Cell(f"{file.size_bytes / 1000:,.0f}" if file else "-"),
        *(accuracy, flips),
        bounded(verdict.scaled_error, tolerance.scaled_error, error_text),
        bounded(verdict.rms_ratio, tolerance.rms_ratio, number),
        bounded(sqnr, tolerance.sqnr_db, number, least=True),
        sure,
    ]


def _faults(figures: ParityFigures, judgement: Judgement) -> Iterator[str]:
    note = f"{_killed(judgement)}; infinite weights: a tensor is no longer the checkpoint's at all"
    yield page.heading("Mutation test", note if figures.faults else ON_CPU_ALONE)
    rows: list[Cells] = []
    for fault in judgement.mutants:
        if fault.not_applicable is not None:
            rows.append((fault.name, f"not applicable: {fault.not_applicable}"))
            continue
        found = (number(fault.figures.get(key, math.nan)) for key in FAULT_FIGURES)
        news = "good" if fault.caught_by else "bad"
        caught = Cell(", ".join(fault.caught_by) or "NOT KILLED", "", news)
        rows.append((Cell(fault.name, fault.planted), *found, caught))
    if rows:
        named = ("mutant", *(key.replace("_", " ") for key in FAULT_FIGURES), "killed by")
        yield page.table(named, rows)


def _neighbours(figures: ParityFigures, tolerances: dict[str, Tolerance]) -> Iterator[str]:
    rows: list[Cells] = []
    for variant, found in figures.neighbours.items():
        cells = [Cell(variant)]
        for situation, change in found.items():
            allowed = neighbour_bound(tolerances[variant], situation)
            cells.append(bounded(change, allowed, error_text))
        rows.append(cells)
    if rows:
        situations = next(iter(figures.neighbours.values()))
        yield page.heading("Batch neighbours", "scaled change with what else is in the batch")
        yield page.table(("variant", *situations), rows)


def _weights(figures: ParityFigures, tolerances: dict[str, Tolerance]) -> Iterator[str]:
    rows: list[Cells] = []
    for variant, checked in figures.files.items():
        name, found, tolerance = Cell(checked.path, variant), checked.weights, tolerances[variant]
        if found is None:
            rows.append((name, "not compared tensor by tensor"))
            continue
        error = bounded(found.error, tolerance.weights, error_text)
        if tolerance.precision == "int8":
            error = error._replace(text=f"{number(found.error)} steps")
        counts = (found.equal, found.folded, found.converted, found.constants)
        worst = "; ".join(found.problems) or found.worst
        rows.append((name, *map(str, counts), found.summary(), error, worst))
    yield page.heading("Provenance of the weights", "each file's tensors beside the checkpoint's")
    columns = (
        "file",
        "equal",
        "folded",
        "converted",
        "of the code",
        "traced",
        "error",
        "largest at",
    )
    yield page.table(columns, rows)


def _environment(figures: ParityFigures, judgement: Judgement) -> Iterator[str]:
    proof = figures.proof
    facts = {
        "samples": f"{proof.name}: {proof.samples:,}, SHA-256 {proof.sha256[:12]}",
        "edge cases": ", ".join((*figures.edge_cases, *figures.corners)) or "none",
        **{f"edge case left out: {k}": why for k, why in figures.edge_cases_left_out.items()},
        "values inside": inside_words(len(figures.layers), len(figures.unmatched)),
        "run on": ", ".join([figures.device, *(" ".join(v) for v in figures.versions.items())]),
        **{f"tolerance of {v.variant}": v.tolerance.reason for v in judgement.verdicts},
    }
    yield page.heading("Environment")
    yield page.table(("what", "value"), list(facts.items()))


def _time(timings: Timings | None, verdict: ParityVerdict, batch: int) -> Cell:
    """Over the ONNX file's; a CPU's microseconds, which say more of the CPU, are not shown."""
    own = (timings or {}).get(verdict.variant, {}).get(batch)
    base = (timings or {}).get("onnx", {}).get(batch)
    ratio = f"{own / base:.2f} x onnx" if own is not None and base else ""
    if own is not None and verdict.device == "cuda":
        return Cell(f"{own:,.1f} µs", ratio)
    return Cell(ratio or "not measured")


def _killed(judgement: Judgement) -> str:
    return "{} of {} mutants killed".format(*judgement.killed)


def _loosened(judgement: Judgement) -> list[str]:
    rows = (verdict.tolerance for verdict in judgement.verdicts)
    return [f"{row.variant}: {row.loosened}" for row in rows if row.loosened]


def _in_markdown(text: str) -> str:
    return " ".join(html.escape(text, quote=False).replace("|", "\\|").split())
