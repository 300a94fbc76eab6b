"""Worktrees of other commits: their files, the service that runs from them, their removal."""

from pathlib import Path

import pytest

from loadtest.regression.trees import TreeError, checked_out, serving
from tests.loadtest.repositories import small_repository, trees


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository with one commit, an uncommitted file, and a file that git ignores."""
    return small_repository(tmp_path / "small")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_tree_is_removed_whatever_happens(
    small: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    """After an error or Ctrl-C too, the files and git's worktree entry are removed."""
    path = tmp_path / "tree"

    def fail_within(ref: str, count: int) -> None:
        with checked_out(small, ref, path):
            assert (path / "first").is_file()
            assert trees(small) == count
            (path / "made").write_text("by the service")
            raise error

    for ref, count in (("HEAD", 2), ("WORKTREE", 1)):
        with pytest.raises(error):
            fail_within(ref, count)
        assert not path.exists()
        assert trees(small) == 1


def test_a_tree_holds_its_commits_files_or_the_present_ones(small: Path, tmp_path: Path) -> None:
    """A commit has its files; the present ones include new files, but not ignored ones."""
    with checked_out(small, "HEAD", tmp_path / "tree") as tree:
        assert (tree.path / "first").read_text() == "committed"
        assert not (tree.path / "second").exists()
    for ref in ("WORKTREE", "."):
        with checked_out(small, ref, tmp_path / "tree") as tree:
            assert (tree.path / "first").read_text() == "changed"
            assert (tree.path / "second").read_text() == "new"
            assert not (tree.path / "ignored").exists()
            assert "uncommitted" in tree.commit


def test_a_commit_without_the_service_is_told(small: Path, tmp_path: Path) -> None:
    """No other tree's files are served instead; BentoML's message is reported."""
    (tmp_path / "bundles").mkdir()
    with (
        checked_out(small, "HEAD", tmp_path / "tree") as tree,
        pytest.raises(TreeError, match=r"cannot serve the bundle[^$]*service"),
        serving(tree, tmp_path / "bundles", tmp_path / "log"),
    ):
        pass
