"""The GitHub Actions workflows: actions are pinned, and steps can fail."""

import re

import yaml

from tests.docs.pages import ROOT

TEXT = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
WORKFLOW = yaml.safe_load(TEXT)


def test_every_action_is_pinned_by_commit() -> None:
    """A tag can be moved to other code, a commit cannot. A comment states the tag."""
    used = re.findall(r"uses: (.+)", TEXT)
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_a_command_before_a_pipe_can_fail_its_step() -> None:
    """The shell is bash with pipefail, which GitHub Actions uses if bash is named."""
    assert WORKFLOW["defaults"]["run"]["shell"] == "bash"


def test_a_slower_pull_request_fails() -> None:
    """The performance gate compares with the pull request's base, with --strict."""
    steps = " ".join(step.get("run", "") for step in WORKFLOW["jobs"]["performance"]["steps"])
    assert "loadtest compare" in steps
    assert "--strict" in steps
