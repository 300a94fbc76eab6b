"""Load points as Markdown and as JUnit XML."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from loadtest.report.words import to_junit, to_markdown, write_all
from tests.loadtest.points import point


def _suite(text: str) -> ET.Element:
    suite = ET.fromstring(text.encode()).find("testsuite")  # noqa: S314 - our own text
    assert suite is not None
    return suite


def test_junit_has_a_case_for_each_point() -> None:
    """Missed or wrong points are failures, INVALID ones errors, and they are counted."""
    results = [
        point(rate=100),
        point(rate=200),
        point(rate=300, invalid=["requests were sent late"]),
        point(
            rate=400,
            invalid=["2 wrong answers"],
            tally={"wrong_answers": 2},
            wrong_answer_examples=["labels 3, expected 5"],
        ),
    ]
    suite = _suite(to_junit(results, [[], ["p99 8.00 ms > 1 ms"], ["p99 8.00 ms > 1 ms"], []]))
    assert {key: suite.get(key) for key in ("tests", "failures", "errors")} == {
        "tests": "4",
        "failures": "2",
        "errors": "1",
    }
    assert suite.get("timestamp") == "2026-01-02T03:04:05"
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == ["100/s", "200/s", "300/s", "400/s"]
    assert {case.get("classname") for case in cases} == {"loadtest.Server.cnn"}
    assert {case.get("time") for case in cases} == {"4.000"}
    kinds = [[child.tag for child in case if child.tag != "system-out"] for case in cases]
    assert kinds == [[], ["failure"], ["error"], ["failure"]]
    messages = [child.get("message") for case in cases for child in case if child.get("message")]
    assert messages == [
        "p99 8.00 ms > 1 ms",
        "INVALID: requests were sent late",
        "2 wrong answers, for example: labels 3, expected 5",
    ]


def test_junit_stays_well_formed_whatever_a_server_said() -> None:
    """Brackets, quotes and characters that XML cannot represent are handled."""
    result = point(tally={"errors": {'\x00\x1b[31m<&">]]>\ufffe': 1}})
    suite = _suite(to_junit([result], [["\x07 <missed> \ud800"]]))
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "? <missed> ?"
    assert '??[31m<&">]]>?: 1' in (suite.findtext("testcase/system-out") or "")


def test_junit_wants_to_know_what_each_point_missed() -> None:
    """One list for two points is an error, and no point passes because of it."""
    with pytest.raises(ValueError, match="shorter"):
        to_junit([point(rate=1), point(rate=2)], [[]])


def test_markdown_is_a_sentence_a_table_and_where_it_was() -> None:
    """Every row has every column, whatever the texts; INVALID rows give the reason."""
    bad = point(rate=200, invalid=["too | late"], tally={"errors": {"a|b\n<i>": 2}})
    lines = to_markdown([point(price=0.72), bad]).splitlines()
    assert lines[0] == (
        "1 of 2 points are INVALID; otherwise all answers correct, all thresholds met"
    )
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    counts = {line.replace(r"\|", "").count("|") for line in table}
    assert len(counts) == 1
    cells = [cell.strip() for cell in table[2].strip("|").split("|")]
    assert cells[:6] == ["Server", "cnn", "100/s", "4", "4", "4"]
    assert cells[-4:] == ["50", "none", "0", "valid"]
    assert r"**INVALID**: too \| late" in table[3]
    assert r"a\|b &lt;i>: 2" in table[3]
    assert lines[-1].startswith("a machine of 2 cores; commit abc1234; 2026-01-02")


def test_markdown_takes_the_verdict_that_is_given() -> None:
    """A given verdict replaces the one derived from the results alone."""
    assert to_markdown([point()], "FAILED: p99").startswith("FAILED: p99\n\n|")


def test_all_files_of_a_report_lie_beside_each_other(tmp_path: Path) -> None:
    """A dot in the stem is kept, the folder is created, and the page's path is returned."""
    stem = tmp_path / "new" / "Server-v1.5"
    page = write_all(stem, json="{}", html="<html>", markdown="m", junit="<x/>")
    assert page == tmp_path / "new" / "Server-v1.5.html"
    assert {path.name: path.read_text() for path in page.parent.iterdir()} == {
        "Server-v1.5.json": "{}",
        "Server-v1.5.html": "<html>",
        "Server-v1.5.md": "m",
        "Server-v1.5.xml": "<x/>",
    }
