"""Figures of the documentation that a command can reproduce quickly."""

import json
import re

import pytest

from tests.docs.commands import load_main
from tests.docs.pages import PAGES

COLUMNS = ("parameters", "multiply-adds")


def _rows() -> set[tuple[str, str, str]]:
    """Network, parameters and multiply-adds of each row in tables with both columns."""
    found = set()
    for page in PAGES:
        for table in re.findall(r"(?:^\|.*\|\n)+", page.read_text(encoding="utf-8"), re.MULTILINE):
            head, _, *rows = [
                [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
            ]
            if not set(COLUMNS) <= set(head):
                continue
            for row in rows:
                name = re.match(r"`([\w-]+)`", row[0])
                if name:
                    figures = dict(zip(head, row, strict=True))
                    found.add((name.group(1), *(figures[column] for column in COLUMNS)))
    return found


@pytest.mark.parametrize(("network", "parameters", "multiply_adds"), sorted(_rows()))
def test_parameters_and_work_are_those_of_describe(
    network: str, parameters: str, multiply_adds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each table row has the counts that `training describe` prints."""
    assert load_main("training")(["describe", network, "--json", "-"]) == 0
    total = json.loads(capsys.readouterr().out)["totals"]
    assert f"{total['parameters']:,}" == parameters
    assert f"{total['multiply_adds']:,}" == multiply_adds
