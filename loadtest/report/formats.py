"""The formats of a report: HTML (laid out by ``page.html.jinja``), Markdown and JUnit XML."""

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
    """A picture embedded in the page, with a description as its alternative text."""

    source: Figure | Path
    description: str

    def base64(self) -> str:
        """The picture as a PNG file, encoded in Base64."""
        if isinstance(self.source, Path):
            return base64.b64encode(self.source.read_bytes()).decode()
        buffer = io.BytesIO()
        self.source.savefig(buffer, format="png", dpi=PICTURE_DPI)
        return base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Attributes:
        bad: Texts; cells that contain one of them are highlighted.
        dim: Indices of rows that are shown as unreliable.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    bad: Sequence[str] = ()
    dim: Collection[int] = ()


@dataclass(frozen=True)
class Section:
    """A section of a page; ``facts`` are pairs of a name and its value."""

    heading: str
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    facts: Pairs = ()


@dataclass(frozen=True)
class Page:
    """A complete page.

    Attributes:
        mark: Highlighted text after the title.
        sentence: Summary of the page; ``is_bad`` if it reports a failure.
        tiles: Pairs of a figure, shown in large type, and its description.
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
        """The page as a self-contained HTML file."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("page.html.jinja").render(page=self)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; special characters in its cells are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(plain, line))} |" for line in lines)


def plain(text: str) -> str:
    """Escape text so that it ends no cell, opens no tag and starts no line of Markdown."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: the first column is left-aligned, the others are right-aligned."""
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
    """A JUnit test case.

    Attributes:
        kind: The outcome if the case did not pass; None: it passed.
        message: The reason in one line; ``text`` gives the details.
        output: The case's standard output, whatever its outcome.
    """

    classname: str
    name: str
    kind: Literal["failure", "error", "skipped"] | None = None
    message: str = ""
    text: str = ""
    output: str = ""
    seconds: float = 0.0


def junit(name: str, cases: Sequence[Case], began: str) -> str:
    """The JUnit XML of one suite.

    Args:
        name: Name of the suite.
        cases: Its test cases, in order.
        began: ISO 8601 date in UTC; its offset is removed, as JUnit's schema requires.
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
    """Replace the characters that XML cannot represent by question marks."""
    return _NO_XML.sub("?", text)
