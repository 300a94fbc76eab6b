"""The look of the parity report: HTML that stands alone, with pictures inside. Knows no torch.

On a narrow screen each row of a table becomes a card, so that no column is cut off.
"""

import base64
import html
import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.image import imsave

from export.parity.schema import Layer, ParityFigures

SMALL, LARGE = 1e-2, 1e6  # figures beyond are shown with an exponent
WHOLE = 100  # figures from here on are shown without decimals
LONG = 28  # longer texts are wrapped
MOST_TICKS, FIRST_LINES = 6, 10
# Places along the axis of errors, in percent: a logarithm has none for 0 and infinity.
AT_ZERO, FIRST, LAST, AT_INFINITY = 5, 17, 86, 96

_STYLE = """
:root { color-scheme: light dark; --text: #1d2329; --page: #fff; --muted: #56616b; --line: #d8dee4;
  --bad: #b3261e; --good: #1c6b42; --blue: #1f6fb4; --card: #f3f6f8 }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ec; --page: #14181c; --muted: #a3adb7;
  --line: #39424b; --bad: #ff9a91; --good: #7ed6a5; --blue: #6db3f2; --card: #1e242a } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--text); background: var(--page); overflow-wrap: anywhere }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem }
.note, small { color: var(--muted) } p { max-width: 56rem } .note { margin: .2rem 0 .6rem }
small { display: block; font-size: .8rem; font-weight: 400 } summary { cursor: pointer }
.bad { color: var(--bad); font-weight: 600 } .good { color: var(--good); font-weight: 600 }
h1 span { border: 2px solid; border-radius: .3rem; padding: 0 .4rem; white-space: nowrap }
.box { border-left: .3rem solid var(--bad); background: var(--card); padding: .5rem 1rem;
  margin: .8rem 0 } .box ul { margin: .3rem 0; padding-left: 1.2rem } .scroll { overflow-x: auto }
table { border-collapse: collapse; font: .92rem system-ui; overflow-wrap: normal }
th, td { padding: .3rem .55rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top } td { white-space: nowrap }
thead th { border-color: var(--muted); vertical-align: bottom }
th:first-child, .words { text-align: left } tbody th { font-weight: 600; max-width: 17rem }
td.words { white-space: normal; overflow-wrap: anywhere; min-width: 12rem }
.samples { display: flex; flex-wrap: wrap; gap: 1rem; font-size: .85rem } figure { margin: 0;
  width: 8rem } img { width: 100%; image-rendering: pixelated; border: 1px solid var(--muted) }
.plot { display: grid; grid-template-columns: minmax(10rem, 17rem) 1fr 5rem; column-gap: .8rem;
  font-size: .9rem; line-height: 1.25; align-items: center } .plot > * { padding: .15rem 0 }
.number { text-align: right } .track { position: relative; align-self: stretch;
  min-height: 1.6rem; background: var(--card) } .track > * { position: absolute }
.track u { top: 0; bottom: 0; border-left: 1px solid var(--line) }
.track u.bound { border-left: 2px dashed var(--bad) } .track i { top: 50%; width: .7rem;
  height: .7rem; margin: -.35rem; border-radius: 50%; background: var(--blue) }
.track .good, .track .bad { border-radius: 0; background: currentColor; transform: rotate(45deg) }
.track span { transform: translateX(-50%); color: var(--muted); font-size: .8rem }
@media (max-width: 46rem) { thead { display: none }
  table, tbody, tr, td, tbody th { display: block; max-width: none }
  tr { border: 1px solid var(--line); border-radius: .3rem; margin-bottom: .7rem; padding: .3rem 0 }
  td, tbody th { border: 0; padding: .12rem .6rem; white-space: normal; overflow-wrap: anywhere }
  td { display: flex; gap: 1rem; justify-content: space-between }
  td.words { min-width: 0 } td::before { content: attr(data-label); color: var(--muted);
    text-align: left; flex: 0 0 42%; overflow-wrap: normal } td.words { text-align: left }
  td[data-label=""]::before { content: none }
  .plot { grid-template-columns: 1fr 4.6rem } .plot .name { grid-column: 1 / 3 } }
"""


class Cell(NamedTuple):
    """A table's cell: a text, a smaller one below it, and "good" or "bad" if that is its news."""

    text: str
    below: str = ""
    news: str = ""


Cells = Sequence[str | Cell]


def page(title: str, verdict: Cell, parts: Sequence[str]) -> str:
    """A whole page of finished parts; the verdict stands beside the title."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(f'{title}: {verdict.text}')}</title><style>{_STYLE}</style></head>"
        f'<body><h1>{html.escape(title)} <span class="{verdict.news}">{verdict.text}</span></h1>'
        f"{paragraph(verdict.below, 'note')}{''.join(parts)}</body></html>\n"
    )


def heading(text: str, note: str = "") -> str:
    """A section's heading with a line below it."""
    return f"<h2>{html.escape(text)}</h2>" + (paragraph(note, "note") if note else "")


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{style}">{html.escape(text)}</p>'


def box(title: str, lines: Sequence[str]) -> str:
    """A list that cannot be overlooked, of many lines the first; nothing if it is empty."""
    items = [f"<li>{html.escape(line)}</li>" for line in lines]
    content = f"<b>{html.escape(title)}</b><ul>{''.join(items[:FIRST_LINES])}</ul>"
    if rest := items[FIRST_LINES:]:
        content += f"<details><summary>{len(rest)} more</summary><ul>{''.join(rest)}</ul></details>"
    return f'<div class="box">{content}</div>' if items else ""


def table(columns: Sequence[str], rows: Sequence[Cells]) -> str:
    """A table whose first column names the rows; a shorter row's last cell spans the rest."""
    named = [html.escape(column) for column in columns]
    full = [row for row in rows if len(row) == len(columns)]
    styles = ["words" if any(_long(row[i]) for row in full) else "" for i in range(len(columns))]
    head = "".join(
        f'<th scope="col" class="{style}">{name}</th>'
        for name, style in zip(named, styles, strict=True)
    )
    body = ""
    for row in rows:
        body += f'<tr><th scope="row">{_content(row[0])}</th>'
        for i, cell in enumerate(row[1:], 1):
            spans = len(columns) - i if i == len(row) - 1 else 1
            style = "words" if spans > 1 else styles[i]
            label = "" if spans > 1 else named[i]
            body += f'<td class="{style}" colspan="{spans}" data-label="{label}">'
            body += f"{_content(cell)}</td>"
        body += "</tr>"
    content = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{content}</table></div>'


def pixels(rows: list[list[int]], description: str, caption: str) -> str:
    """A grey picture, 0 to 255, with its caption."""
    buffer = io.BytesIO()
    imsave(buffer, np.array(rows, np.uint8), cmap="gray", vmin=0, vmax=255, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _layers_plot(layers: Sequence[Layer], bound: float | None) -> str:
    """The scaled error of every value inside the graph on a logarithmic axis, first to last.

    It is made of text and boxes, not a picture: readable at any width and by a screen reader.

    Args:
        layers: At least one.
        bound: What the outputs may have; None or 0 for no line.
    """
    known = [e for e in (bound or 0, *(x.scaled_error for x in layers)) if 0 < e < math.inf]
    lowest = math.floor(math.log10(min(known, default=1e-7)))
    highest = max(math.ceil(math.log10(max(known, default=1e-6))), lowest + 1)

    def at(power: float) -> float:
        return FIRST + (LAST - FIRST) * (power - lowest) / (highest - lowest)

    def place(error: float) -> float:
        usual = 0 < error < math.inf
        return at(math.log10(error)) if usual else AT_INFINITY if error else AT_ZERO

    ticks = range(lowest, highest + 1, math.ceil((highest - lowest + 1) / MOST_TICKS))
    lines = "".join(f'<u style="left:{at(power):.1f}%"></u>' for power in ticks)
    if bound:
        lines += f'<u class="bound" style="left:{place(bound):.1f}%"></u>'
    names = {at(power): f"1e{power}" for power in ticks} | {AT_ZERO: "0"}
    if not all(math.isfinite(layer.scaled_error) for layer in layers):
        names[AT_INFINITY] = "∞"
    axis = "".join(f'<span style="left:{x:.1f}%">{name}</span>' for x, name in names.items())
    rows = ""
    for x in layers:
        news = ("bad" if x.max_abs_error != 0 else "good") if x.exact else ""
        told = html.escape(f"{x.op}, {x.where}: {x.code}")
        below = f"{x.module or '(outermost module)'}{', exact' if x.exact else ''}"
        rows += f'<div class="name" title="{told}">{_content(Cell(x.value, below))}</div>'
        rows += f'<div class="track">{lines}<i class="{news}" style="left:'
        rows += f'{place(x.scaled_error):.1f}%"></i></div>'
        rows += f'<div class="number {news}">{error_text(x.scaled_error)}</div>'
    empty = '<div class="name"></div>'
    ruler = f'{empty}<div class="track">{axis}</div><div></div>'
    return f'<div class="plot">{ruler}{rows}{ruler}</div>'


def bounded(
    value: float, allowed: float | None, show: Callable[[float], str], *, least: bool = False
) -> Cell:
    """A figure above its bound, which is an upper one unless it is the ``least``."""
    if allowed is None:
        return Cell(show(value), "not judged")
    good = value >= allowed if least else value <= allowed
    below = f"{'≥' if least else '≤'} {number(allowed)}" if allowed else "must be 0"
    return Cell(show(value), "" if good and not allowed else below, "" if good else "bad")


def error_text(error: float) -> str:
    """An error that is nothing only if it is exactly 0."""
    return "bit-equal" if error == 0 else number(error)


def number(value: float) -> str:
    """A figure, also one that is none."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value != 0 and not SMALL <= abs(value) < LARGE:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= WHOLE else f"{value:.3g}"


def layers(figures: ParityFigures, bound: float | None) -> Iterator[str]:
    """The error by layer, if values inside the graph were compared."""
    if figures.layers:
        line = f"; dashed: the outputs' bound {bound:.0e}" if bound else ""
        exact = "diamonds: exactly rounded operators alone, which must be bit-equal"
        yield heading("Error by layer", f"scaled error of the ONNX file; {exact}{line}")
        yield _layers_plot(figures.layers, bound)


def batch_sizes(figures: ParityFigures) -> Iterator[str]:
    """Every figure of every row, where it is asked for."""
    columns = (
        *("variant", "batch", "samples", "output", "scaled error", "RMS, x eager's", "SQNR, dB"),
        *("label flips", "NaN or infinite", "change with batch size", "softmax error"),
    )
    rows: list[Cells] = [
        (
            *(row.variant, str(row.batch_size), Cell(f"{row.samples:,}", row.block), output),
            *(error_text(found.scaled_error), number(found.rms_ratio), number(found.sqnr_db)),
            *(str(found.labels.flips) if found.labels else "-", str(found.non_finite)),
            "-" if row.batch_invariance is None else error_text(row.batch_invariance),
            number(row.softmax_error),
        )
        for row in sorted(figures.rows, key=lambda row: (row.variant, row.block, row.batch_size))
        for output, found in row.outputs.items()
    ]
    content = table(columns, rows)
    yield heading("Every batch size")
    yield f"<details><summary>{len(rows)} rows</summary>{content}</details>"


def worst(figures: ParityFigures) -> Iterator[str]:
    """The samples with the largest errors, as far as they are pictures."""
    shown = [(sample, *image) for sample in figures.worst for image in sample.images.items()]
    if not shown:
        return
    row = figures.rows[0]
    error = max(output.max_abs_error for output in row.outputs.values())
    where = f"{row.variant} in batches of {row.batch_size}"
    if error:
        yield heading("Worst samples", f"largest errors of {where}, up to {number(error)}")
    else:
        yield heading("Samples", f"{where} is bit-equal on all: these are merely the first")
    images = ""
    for sample, name, image in shown:
        label = "" if sample.eager_label is None else f", label {sample.eager_label}"
        description = f"{sample.description}: {name}"
        images += pixels(image, description, sample.description + label)
    yield f'<div class="samples">{images}</div>'


def coverage(figures: ParityFigures) -> Iterator[str]:
    """Which units the samples of every batch size activate."""
    found = figures.coverage
    rows: list[Cells] = [
        (name, f"{active:,}", f"{units:,}") for name, (active, units) in found.by_layer.items()
    ]
    yield heading(
        "Unit coverage",
        f"{found.share:.0%}: the {found.samples:,} samples of every batch size activate "
        f"{found.active:,} of {found.units:,} units, all samples {found.active_in_all:,}; the "
        "others are proven by their weights alone",
    )
    if rows:
        yield table(("activation", "active", "units"), rows)


def uncertain(figures: ParityFigures, variant: str) -> tuple[int, int]:
    """The most samples of a row whose label the largest error could change, and of how many."""
    return max(
        (found.labels.uncertain, found.labels.samples)
        for row in figures.rows
        for found in row.outputs.values()
        if row.variant == variant and found.labels is not None
    )


def _long(cell: str | Cell) -> bool:
    return any(len(text) > LONG for text in _cell(cell)[:2])


def _cell(cell: str | Cell) -> Cell:
    return cell if isinstance(cell, Cell) else Cell(cell)


def _content(cell: str | Cell) -> str:
    text, below, news = _cell(cell)
    small = f"<small>{html.escape(below)}</small>" if below else ""
    # One element, so that a card's label and its content stay two columns.
    return f'<div><span class="{news}">{html.escape(text)}</span>{small}</div>'
