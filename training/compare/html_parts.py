"""Parts of a page that stands alone: no script, no request to anywhere, pictures inside."""

import base64
import html
import io
from collections.abc import Sequence

from matplotlib.figure import Figure

PICTURE_DPI = 120

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
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.25rem; margin: 2.6rem 0 .3rem }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem }
p { max-width: 56rem; margin: .3rem 0 .7rem } p.note, dt, summary { color: var(--muted) }
p.verdict { border-left: .3rem solid var(--line); background: var(--card); padding: .6rem 1rem;
  font-size: 1.1rem } p.found { font-weight: 600 } summary { cursor: pointer; margin: .6rem 0 }
.box { border-left: .3rem solid var(--bad); background: var(--card); padding: .5rem 1rem;
  margin: .8rem 0; max-width: 54rem } .box ul { margin: .3rem 0; padding-left: 1.2rem }
img { max-width: 100%; height: auto; background: #fff; border-radius: .4rem }
.panels { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)) }
.panels img { width: 100%; max-width: 40rem } nav { font-size: .92rem; margin: .8rem 0 }
nav a { margin-right: 1rem; color: inherit; white-space: nowrap }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  font-size: .92rem; overflow-wrap: normal; margin: .5rem 0 }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: bottom; white-space: nowrap }
th { border-bottom-color: var(--muted); font-weight: 600; white-space: normal }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--page); white-space: normal; min-width: 5rem }
dl { display: grid; grid-template-columns: fit-content(40%) 1fr; gap: .1rem 1rem;
  font-size: .92rem } dd { margin: 0 }
"""


def page(title: str, note: str, parts: Sequence[str]) -> str:
    """A whole page of finished parts."""
    return (
        f"{_HEAD}<title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1>{paragraph(note)}" + "\n".join(parts) + "</html>\n"
    )


def section(anchor: str, title: str, note: str) -> str:
    """A section's heading, where links lead to, with what the section is and how to read it."""
    return f'<h2 id="{html.escape(anchor)}">{html.escape(title)}</h2>{paragraph(note)}'


def subheading(title: str) -> str:
    """A heading within a section."""
    return f"<h3>{html.escape(title)}</h3>"


def contents(sections: Sequence[tuple[str, str]]) -> str:
    """Links to sections, given as anchor and title."""
    links = " ".join(f'<a href="#{html.escape(a)}">{html.escape(t)}</a>' for a, t in sections)
    return f"<nav>{links}</nav>"


def paragraph(text: str, look: str = "note") -> str:
    """A paragraph: "note" in a quieter colour, "found" what was measured, "verdict" the first."""
    return f'<p class="{look}">{html.escape(text)}</p>' if text else ""


def box(title: str, lines: Sequence[str]) -> str:
    """A list that cannot be overlooked; nothing if it is empty."""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<div class="box"><b>{html.escape(title)}</b><ul>{items}</ul></div>' if items else ""


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and what they are, one below the other."""
    inner = "".join(f"<dt>{html.escape(n)}</dt><dd>{html.escape(v)}</dd>" for n, v in pairs)
    return f"<dl>{inner}</dl>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names the rows."""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def folded(title: str, content: str) -> str:
    """What only those want to see who ask for it."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def panels(pictures: Sequence[str]) -> str:
    """Pictures beside each other where there is room."""
    return f'<div class="panels">{"".join(pictures)}</div>'


def stack(parts: Sequence[str]) -> str:
    """Parts below each other that stay together among panels."""
    return f"<div>{''.join(parts)}</div>"


def picture(figure: Figure, description: str) -> str:
    """A picture inside the page, with its description for those who do not see it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PICTURE_DPI, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'
