"""Trees of other commits: what they hold, what is served of them, and that they vanish."""

from pathlib import Path

import pytest

from loadtest.regression.trees import TreeError, checked_out, serving
from tests.loadtest.repositories import small_repository, trees


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of one commit, with a file that is not committed and one that git ignores."""
    return small_repository(tmp_path / "small")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_tree_is_removed_whatever_happens(
    small: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    """Also after an error and Ctrl-C; neither files nor git's memory of them are left."""
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
    """A commit's as committed; the present ones with what is new, without what git ignores."""
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
    """Nobody else's files are served in its place; what BentoML says is passed on."""
    (tmp_path / "bundles").mkdir()
    with (
        checked_out(small, "HEAD", tmp_path / "tree") as tree,
        pytest.raises(TreeError, match=r"cannot serve the bundle[^$]*service"),
        serving(tree, tmp_path / "bundles", tmp_path / "log"),
    ):
        pass
