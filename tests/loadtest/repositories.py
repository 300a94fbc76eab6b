"""Git repositories for tests that compare or modify commits."""

import subprocess
from pathlib import Path


def git(folder: Path, *arguments: str) -> str:
    """Run git in that folder and return its output."""
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@b"]
    command += ["-c", "commit.gpgsign=false", *arguments]
    ran = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return ran.stdout.strip()


def trees(repository: Path) -> int:
    """The number of working trees of the repository, including its own."""
    return len(git(repository, "worktree", "list").splitlines())


def small_repository(folder: Path) -> Path:
    """A repository with one commit, an uncommitted file, and a file that git ignores."""
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "first").write_text("committed")
    (folder / ".gitignore").write_text("ignored\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "One")
    (folder / "first").write_text("changed")
    (folder / "second").write_text("new")
    (folder / "ignored").write_text("nobody's")
    return folder
