"""Reads the repository's Markdown pages: their blocks of shell commands, inline commands and links.

A block of commands is fenced by ```sh. Comments directly above it say what is special about it:

    <!-- needs: minutes, network -->    no test runs it; its commands are checked all the same
    <!-- exits: 1 -->                   its last command ends with this status
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted(
    [
        *ROOT.glob("docs/*.md"),
        *(ROOT / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md", "llms.txt")),
    ]
)
# What a block may need that a test cannot give it.
NEEDS = {"minutes", "network", "gpu", "docker", "prometheus", "cluster", "other models", "openssl"}
SEPARATORS = {"&&", "|", ";", "&", "||"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"<!-- (needs|exits): ([^>]*) -->\n\Z")
HEREDOC = re.compile(r"<<'(\w+)'\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """A block of shell commands.

    Attributes:
        page: Its page, relative to the repository.
        line: The number of its first line of commands.
        needs: What it needs that a test cannot give it; see ``NEEDS``.
        exits: The status of its last command.
        text: The commands.
    """

    page: str
    line: int
    needs: frozenset[str]
    exits: int
    text: str

    @property
    def name(self) -> str:
        """Page and line, used as the test's name."""
        return f"{self.page}:{self.line}"

    def statements(self) -> list[str]:
        """The shell statements, with continuation lines joined and here-documents removed."""
        text = HEREDOC.sub("", self.text).replace("\\\n", " ")
        lines = [line.strip() for line in text.splitlines()]
        return [line for line in lines if line and not line.startswith("#")]

    def heredocs(self) -> list[str]:
        """The programs that here-documents pass to ``python -``."""
        return [match.group(2) for match in HEREDOC.finditer(self.text)]


def split_words(statement: str) -> list[list[str]]:
    """The simple commands of a statement, each as its words, without leading assignments.

    Args:
        statement: One line of shell; pipes, lists and comments are understood, loops are not.
    """
    lexer = shlex.shlex(statement, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word in SEPARATORS:
            commands.append([])
        elif commands[-1] or not ASSIGNMENT.match(word):
            commands[-1].append(word)
    return [command for command in commands if command]


def find_blocks(path: Path) -> list[Block]:
    """Every block of shell commands of a page."""
    text = path.read_text(encoding="utf-8")
    blocks = []
    for match in FENCE.finditer(text):
        if match.group(1) != "sh":
            continue
        marks = dict(_markers_before(text[: match.start()]))
        needs = frozenset(filter(None, marks.get("needs", "").split(", ")))
        line = text[: match.start(2)].count("\n") + 1
        page = path.relative_to(ROOT).as_posix()
        blocks.append(Block(page, line, needs, int(marks.get("exits", 0)), match.group(2)))
    return blocks


def _markers_before(text: str) -> Iterator[tuple[str, str]]:
    while match := MARKER.search(text):
        yield match.group(1), match.group(2).strip()
        text = text[: match.start()]


def find_inline_commands(path: Path) -> list[list[str]]:
    """The commands ``python -m …`` and ``make …`` in sentences and tables, split into words."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    commands = re.findall(r"`((?:\.venv/bin/)?(?:python -m|make) [^`]+)`", text)
    words = [shlex.split(command) for command in commands]
    return [[word for word in command if not ASSIGNMENT.match(word)] for command in words]


def find_links(path: Path) -> list[str]:
    """The targets of all links and pictures of a page that are not on another host."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    text = re.sub(r"`[^`\n]*`", "", text)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    links += re.findall(r"(?:src|srcset)=\"([^\"]+)\"", text)
    return [link for link in links if not re.match(r"https?:|mailto:", link)]


def find_anchors(path: Path) -> set[str]:
    """The anchors that GitHub generates for the headings of a page."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
