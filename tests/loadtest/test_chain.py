"""The demo serves, queries and load-tests the models, and reports their training and export."""

from pathlib import Path

import pytest

from loadtest.__main__ import main
from loadtest.report.formats import text_table

DIGIT = Path(__file__).parent.parent / "service" / "digit.png"


def test_the_demo_ends_with_a_table_and_a_page(
    bundles: Path, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both models are served and loaded; the page embeds all pictures and has no links."""
    command = ["demo", "--bundles", str(bundles), "--checkpoints", str(checkpoints)]
    command += ["--out", str(tmp_path), "--image", str(DIGIT), "--duration", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    for words in (
        "classified by cnn on",
        "classified by mlp on",
        "test accuracy",
        "6 of 6 proven",
        "report: ",
    ):
        assert words in printed
    page = (tmp_path / "index.html").read_text()
    # Three pictures of training a model, one of latency, one of each load's seconds.
    assert page.count("data:image/png;base64,") == 2 * 3 + 1 + 2 * 2
    assert "<script" not in page
    assert "FAILED" not in page


def test_without_bundles_the_demo_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty folder gives status 2 and names the command that creates bundles."""
    command = ["demo", "--bundles", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "make bundles" in capsys.readouterr().err


def test_a_table_for_the_terminal_lines_up() -> None:
    """Names are left-aligned and figures right-aligned under their column headers."""
    assert text_table(["model", "n"], [["a", "10"], ["long name", "7"]]).splitlines() == [
        "model       n",
        "---------  --",
        "a          10",
        "long name   7",
    ]
