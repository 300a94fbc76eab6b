"""Parts of HTML pages that stand alone: no script, no request to anywhere, pictures inside."""

import base64
import html
import io
from collections.abc import Collection, Sequence
from pathlib import Path

from matplotlib.figure import Figure

PICTURE_DPI = 160

# The policy holds every browser to it, whatever a text in the page might say.
_HEAD = (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
)
_STYLE = """
:root { color-scheme: light dark; --text: #1d2329; --page: #fff; --muted: #56616b; --line: #d8dee4;
  --bad: #b3261e; --card: #f3f6f8 }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ec; --page: #14181c; --muted: #a3adb7;
  --line: #39424b; --bad: #ff9a91; --card: #1e242a } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--text); background: var(--page); overflow-wrap: anywhere }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem }
h1 span { border: 2px solid; border-radius: .3rem; padding: 0 .4rem }
p { max-width: 56rem } p.note, dt, .tiles small { color: var(--muted) } p.note { margin: .2rem 0 }
.bad { color: var(--bad); font-weight: 600 }
p.verdict { border-left: .3rem solid var(--line); background: var(--card); padding: .5rem 1rem;
  font-size: 1.1rem } p.verdict.bad { border-color: var(--bad) }
.tiles { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)) }
.tiles div { background: var(--card); border-radius: .4rem; padding: .5rem .8rem }
.tiles b { display: block; font-size: 1.35rem; line-height: 1.3 } .tiles small { display: block }
dl { display: grid; grid-template-columns: fit-content(40%) 1fr; gap: .1rem 1rem;
  font-size: .92rem } dd { margin: 0 }
img { max-width: 100%; height: auto; background: #fff; border-radius: .4rem }
.panels { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)) }
.panels img { width: 100%; max-width: 40rem }
.pair { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
.pair img { flex: 1 1 20rem; min-width: 0; max-width: 29rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  font-size: .92rem; overflow-wrap: normal }
th, td { padding: .3rem .45rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; vertical-align: bottom }
th { white-space: normal; border-bottom-color: var(--muted); font-weight: 600 }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--page) }
td.long { white-space: normal; text-align: left; min-width: 14rem }
td.long:first-child { min-width: 8rem }
tr.dim td:not(.bad) { color: var(--muted); font-style: italic }
"""
_LONG = 30  # characters; longer cells are wrapped


def page(title: str, note: str, parts: Sequence[str], mark: str = "") -> str:
    """A whole page of finished parts; the mark stands out behind its title."""
    marked = f' <span class="bad">{html.escape(mark)}</span>' if mark else ""
    below = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return (
        f"{_HEAD}<title>{html.escape(f'{title} {mark}'.strip())}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}{marked}</h1>{below}" + "\n".join(parts) + "</html>\n"
    )


def heading(text: str, note: str = "") -> str:
    """A section's heading with a line below it."""
    return f"<h2>{html.escape(text)}</h2>" + (paragraph(note) if note else "")


def paragraph(text: str) -> str:
    """A line in a quieter colour."""
    return f'<p class="note">{html.escape(text)}</p>'


def sentence(text: str, *, bad: bool) -> str:
    """The one sentence that a page is about."""
    return f'<p class="verdict{" bad" if bad else ""}">{html.escape(text)}</p>'


def tiles(figures: Sequence[tuple[str, str]]) -> str:
    """Figures in large letters, each with what it is."""
    inner = "".join(
        f"<div><b>{html.escape(value)}</b><small>{html.escape(name)}</small></div>"
        for value, name in figures
    )
    return f'<div class="tiles">{inner}</div>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and what they are, one below the other."""
    inner = "".join(f"<dt>{html.escape(n)}</dt><dd>{html.escape(v)}</dd>" for n, v in pairs)
    return f"<dl>{inner}</dl>"


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    bad: Sequence[str] = (),
    dim: Collection[int] = (),
) -> str:
    """A table.

    Args:
        columns: Heads.
        rows: Of as many cells.
        bad: What stands out: cells that begin with one of these.
        dim: Positions of rows that are not to be relied on.
    """
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "".join(
        ('<tr class="dim">' if number in dim else "<tr>")
        + "".join(_cell(cell, bad) for cell in row)
        + "</tr>"
        for number, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def panels(pictures: Sequence[str]) -> str:
    """Pictures beside each other where there is room."""
    return f'<div class="panels">{"".join(pictures)}</div>'


def picture(source: Figure | Path, description: str) -> str:
    """A picture inside the page, with its description for those who do not see it."""
    if isinstance(source, Path):
        content = source.read_bytes()
    else:
        buffer = io.BytesIO()
        source.savefig(buffer, format="png", dpi=PICTURE_DPI)
        content = buffer.getvalue()
    data = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'


def _cell(text: str, bad: Sequence[str]) -> str:
    names = ["long"] * (len(text) > _LONG) + ["bad"] * any(text.startswith(b) for b in bad)
    look = " ".join(names)
    return (
        f'<td class="{look}">{html.escape(text)}</td>' if look else f"<td>{html.escape(text)}</td>"
    )
