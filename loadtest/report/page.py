"""What a report's page holds, and its HTML; how it looks is in ``page.html.jinja``."""

import base64
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

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
