"""Tables and test cases for other programs: Markdown, a terminal's columns, JUnit's XML."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


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
