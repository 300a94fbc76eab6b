"""HTML pages that stand alone: no script, no request to anywhere, pictures inside."""

import base64
import html
import io
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from loadtest.record import Result

COLOURS = ("#1f6fb4", "#d9730d", "#2b8a5a", "#8a4fa3", "#b0413e", "#5c6b73")
NINES = (50, 90, 99, 99.9, 99.99)

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
       color: #1d2329; background: #fff }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.note { color: #56616b; margin-top: .2rem } img { max-width: 100%; height: auto }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .55rem; border-bottom: 1px solid #d8dee4; text-align: right;
         white-space: nowrap; vertical-align: bottom }
th { white-space: normal }
th { border-bottom-color: #56616b; font-weight: 600 }
th:first-child, td:first-child { text-align: left } .bad { color: #b3261e; font-weight: 600 }
.pair { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
.pair img { flex: 1 1 20rem; min-width: 0; max-width: 29rem }
"""


def page(title: str, note: str, parts: Sequence[str]) -> str:
    """A whole page of finished parts."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f'<h1>{html.escape(title)}</h1><p class="note">{html.escape(note)}</p>'
        + "\n".join(parts)
        + "</html>\n"
    )


def heading(text: str, note: str = "") -> str:
    """A section's heading with a line below it."""
    below = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<h2>{html.escape(text)}</h2>{below}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], bad: Sequence[str] = ()) -> str:
    """A table; cells whose text is in ``bad`` stand out."""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="bad">{html.escape(cell)}</td>'
            if cell in bad
            else f"<td>{html.escape(cell)}</td>"
            for cell in row
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def picture(source: Figure | Path, description: str) -> str:
    """A picture inside the page, with its description for those who do not see it."""
    if isinstance(source, Path):
        content = source.read_bytes()
    else:
        buffer = io.BytesIO()
        source.savefig(buffer, format="png", dpi=130)
        content = buffer.getvalue()
    data = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'


def machine() -> str:
    """This machine in a few words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [ln for ln in cpuinfo.read_text().splitlines() if ln.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    )


RESULT_COLUMNS = (
    *("model", "scenario", "users", "images/request", "requests/s", "images/s"),
    *("p50 ms", "p90 ms", "p95 ms", "p99 ms", "p99.9 ms", "errors", "wrong answers"),
)


def result_row(result: Result) -> list[str]:
    """A run as cells under ``RESULT_COLUMNS``."""
    errors = ", ".join(f"{kind}: {count}" for kind, count in result.errors.items())
    return [
        *(result.model, result.scenario, str(result.users), str(result.images_per_request)),
        *(f"{result.requests_per_s:,.0f}", f"{result.images_per_s:,.0f}"),
        *(f"{latency:.2f}" for latency in result.latency_ms.values()),
        *(errors or "none", str(result.wrong_answers)),
    ]


def wide_figure(height_in: float) -> Figure:
    """An empty figure as wide as the page, in the pages' look; height in inches."""
    mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})
    return Figure(figsize=(9.5, height_in), layout="constrained")


def latency_figure(results: Sequence[Result]) -> Figure:
    """Latency over percentile, the rare slow answers spread out; and answers a second."""
    figure = wide_figure(3.4)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    for result, colour in zip(results, COLOURS * len(results), strict=False):
        label = f"{result.model}, {result.scenario}"
        shares = [(share, value) for share, value in result.latency_spectrum_ms if share < 100]  # noqa: PLR2004
        left.plot(
            *([100 / (100 - share) for share, _ in shares], [value for _, value in shares]),
            color=colour,
            label=label,
        )
        seconds = range(1, len(result.requests_each_second) + 1)
        right.plot(seconds, result.requests_each_second, "o-", markersize=3, color=colour)
    left.set(xscale="log", xlabel="share of answers that were faster, %", ylabel="latency, ms")
    left.set_xticks([100 / (100 - nine) for nine in NINES], [f"{nine:g}" for nine in NINES])
    left.set_xticks([], minor=True)
    left.set_ylim(bottom=0)
    left.set_title("Latency by percentile", loc="left")
    left.legend(frameon=False, fontsize=9)
    right.set(xlabel="second of the run", ylim=(0, None))
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.set_title("Answers in each second", loc="left")
    return figure


def run_report(results: Sequence[Result], missed: Sequence[str]) -> str:
    """The page of a load test."""
    verdict = "; ".join(missed) if missed else "all answers right, all thresholds kept"
    busy = max(result.generator_cpu_share for result in results)
    return page(
        "Load test",
        f"{verdict}. Service at {results[0].url}; load generator on {machine()}, up to "
        f"{100 * busy:.0f}% of a core.",
        [
            heading("Figures", "closed loop; every answer compared with the bundle's reference"),
            table(RESULT_COLUMNS, [result_row(result) for result in results]),
            heading("Latency"),
            picture(latency_figure(results), "latency by percentile and answers in each second"),
        ],
    )
