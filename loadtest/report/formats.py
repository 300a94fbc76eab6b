"""The formats of a report: HTML (its looks: ``page.html.jinja``), Markdown, JUnit's XML."""

import base64
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
PICTURE_DPI = 160
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """A picture inside the page, with its description for those who do not see it."""

    source: Figure | Path
    description: str

    def base64(self) -> str:
        """Its PNG file, encoded."""
        if isinstance(self.source, Path):
            return base64.b64encode(self.source.read_bytes()).decode()
        buffer = io.BytesIO()
        self.source.savefig(buffer, format="png", dpi=PICTURE_DPI)
        return base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Table:
    """Cells in rows.

    Attributes:
        bad: What stands out: cells that hold one of these.
        dim: Positions of rows that are not to be relied on.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    bad: Sequence[str] = ()
    dim: Collection[int] = ()


@dataclass(frozen=True)
class Section:
    """A part of a page; ``facts`` are names and what they are."""

    heading: str
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    facts: Pairs = ()


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        mark: Stands out behind the title.
        sentence: What the page is about; ``is_bad`` if it is bad news.
        tiles: Figures in large letters, each with what it is.
    """

    title: str
    sections: Sequence[Section]
    note: str = ""
    mark: str = ""
    sentence: str = ""
    is_bad: bool = False
    tiles: Pairs = ()
    facts: Pairs = ()

    def html(self) -> str:
        """The page, whole in one file."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("page.html.jinja").render(page=self)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, however odd the texts in its cells are."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(plain, line))} |" for line in lines)


def plain(text: str) -> str:
    """Text that ends no cell, opens no tag and starts no line of Markdown."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: names to the left, figures to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


@dataclass(frozen=True)
class Case:
    """A test case.

    Attributes:
        kind: Of what is not right; None: nothing.
        message: What that is, in a line; ``text`` in many.
        output: What is told of every case.
    """

    classname: str
    name: str
    kind: Literal["failure", "error", "skipped"] | None = None
    message: str = ""
    text: str = ""
    output: str = ""
    seconds: float = 0.0


def junit(name: str, cases: Sequence[Case], began: str) -> str:
    """JUnit's XML of one suite.

    Args:
        name: Of the suite.
        cases: In their order.
        began: The date in ISO 8601, in UTC; JUnit's schema wants it without a zone.
    """
    suite = ET.Element("testsuite", name=name, timestamp=began.removesuffix("+00:00"))
    suite.set("tests", str(len(cases)))
    for kind, counted in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(counted, str(sum(case.kind == kind for case in cases)))
    suite.set("time", f"{sum(case.seconds for case in cases):.3f}")
    for case in cases:
        attributes = {"classname": _clean(case.classname), "name": _clean(case.name)}
        element = ET.SubElement(suite, "testcase", attributes, time=f"{case.seconds:.3f}")
        if case.kind:
            found = ET.SubElement(element, case.kind, message=_clean(case.message))
            found.text = _clean(case.text)
        if case.output:
            ET.SubElement(element, "system-out").text = _clean(case.output)
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _clean(text: str) -> str:
    """Without the characters that XML has no way to write."""
    return _NO_XML.sub("?", text)
