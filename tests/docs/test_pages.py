"""Links, anchors, pictures and the length of the documentation pages."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, find_anchors, find_links

MOST_LINES, MOST_WORDS = 150, 1_500
FIRST_COMMAND_BEFORE_LINE = 25
LARGEST_PICTURE_BYTES = 200_000
PICTURES = sorted((ROOT / "docs" / "images").iterdir())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Linked files and pictures exist, and headings have the linked anchors."""
    for link in find_links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in find_anchors(target), f"{page.name}: {link}"


def test_every_page_is_in_the_index() -> None:
    """docs/README.md, the README and llms.txt link to each page of docs/."""
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    for index in (ROOT / "docs" / "README.md", ROOT / "README.md", ROOT / "llms.txt"):
        linked = {Path(link.partition("#")[0]).name for link in find_links(index)}
        assert pages <= linked, f"{index}: {pages - linked}"


def test_pages_that_the_code_names_are_there() -> None:
    """Pages of docs/ that comments and messages name exist."""
    command = ["git", "grep", "-hoE", r"docs/[a-z-]+\.md"]
    named = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert named
    for page in set(named.split()):
        assert (ROOT / page).is_file(), page


def test_the_readme_stays_short() -> None:
    """It has at most 150 lines and 1,500 words, and shows a prediction before line 25."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert len(text.split()) <= MOST_WORDS
    head = "\n".join(text.splitlines()[: FIRST_COMMAND_BEFORE_LINE - 1])
    assert re.search(r"^make demo", head, re.MULTILINE)
    assert re.search(r"^curl .*/predict/image$", head, re.MULTILINE)


def test_the_version_is_the_newest_of_the_changelog() -> None:
    """CHANGELOG.md lists Unreleased, then the version of pyproject.toml with its date."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased, newest, *_ = re.findall(r"^## \[(.+)$", text, re.MULTILINE)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert unreleased == "Unreleased]"
    assert re.fullmatch(rf"{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", newest)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_is_small_and_has_its_other_half(picture: Path) -> None:
    """Each picture is under 200 KB and exists for light and for dark pages."""
    assert picture.stat().st_size < LARGEST_PICTURE_BYTES
    other = {"-light.": "-dark.", "-dark.": "-light."}
    (ending,) = (part for part in other if part in picture.name)
    assert picture.with_name(picture.name.replace(ending, other[ending])).is_file()
