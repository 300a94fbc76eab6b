"""Every command of the README and docs/ exists, and runs unless its block states needs."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.commands import check, check_options, load_main
from tests.docs.pages import (
    NEEDS,
    PAGES,
    ROOT,
    Block,
    find_blocks,
    find_inline_commands,
    split_words,
)

BLOCKS = [block for page in PAGES for block in find_blocks(page)]
RUN_HERE = [block for block in BLOCKS if not block.needs]
LOCAL = re.compile(r"(https?://)?localhost:3000")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_every_command_of_a_block_exists(block: Block) -> None:
    """Modules, options, targets, files, endpoints and profiles exist; needs are known ones."""
    assert block.needs <= NEEDS
    for statement in block.statements():
        for words in split_words(statement):
            check(words)
    for program in block.heredocs():
        compile(program, block.name, "exec")


@pytest.mark.parametrize("block", RUN_HERE, ids=lambda block: block.name)
def test_a_block_without_needs_runs(
    block: Block, workspace: Path, service_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with two small bundles, the commands end with the status the page states."""
    monkeypatch.chdir(workspace)
    *before, last = block.statements()
    for statement in before:
        assert _run(statement, service_url) == 0, statement
    assert _run(last, service_url) == block.exits, last


def _run(statement: str, service_url: str) -> int:
    """Run a command of this project in this process, and any other one in a shell."""
    (words, *further) = split_words(statement)
    if not further and words[0].endswith("python") and words[1] == "-m":
        return int(load_main(words[2])(words[3:]) or 0)
    assert "curl" in statement, (
        f"no test can run this: mark its block with <!-- needs: -->: {statement}"
    )
    command = LOCAL.sub(service_url, statement).replace(
        "curl ", "curl --fail --silent --show-error "
    )
    done = subprocess.run(
        ["bash", "-ec", f"set -o pipefail; {command}"], capture_output=True, check=False
    )
    return done.returncode


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_a_sentence_exists(page: Path) -> None:
    """Commands in backticks name existing modules, options and targets."""
    for words in find_inline_commands(page):
        check_options(words)


@pytest.mark.parametrize(
    "command",
    [
        "make no-such-target",
        ".venv/bin/python -m training train --model no-such-network",
        ".venv/bin/python -m export check artifacts/bundles/cnn --no-such-option",
        "curl http://localhost:3000/no/such/endpoint",
        "docker compose --profile no-such-profile up",
        "docker build -f no-such.Dockerfile .",
        "kubectl apply -k service/kubernetes/overlays/no-such-overlay",
        "no-such-program",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    """The checks reject a wrong target, value, option, endpoint, profile or program."""
    with pytest.raises(AssertionError):
        check(split_words(command)[0])


def test_an_option_that_does_not_exist_is_found_in_a_sentence() -> None:
    """Inline commands are checked against the help text of the command that they name."""
    check_options(["python", "-m", "export", "check", "--quick"])
    with pytest.raises(AssertionError):
        check_options(["python", "-m", "export", "check", "--no-such-option"])


def test_a_block_is_read_with_its_markers_continuations_and_programs(tmp_path: Path) -> None:
    """Needs and exit status come from the comments; one statement may span several lines."""
    page = ROOT / "docs" / "your-own-model.md"
    blocks = find_blocks(page)
    assert all("minutes" in block.needs for block in blocks)
    (first, second, *_) = blocks
    assert len(first.heredocs()) == 1
    assert len(second.statements()) == 1
    assert split_words("A=1 make x | curl y && z  # why") == [["make", "x"], ["curl", "y"], ["z"]]
