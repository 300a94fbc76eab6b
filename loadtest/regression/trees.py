"""Checks out another commit into its own folder and serves the service from these files alone."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from loadtest.errors import LoadTestError
from loadtest.server import ServiceNotReadyError, running_service

PRESENT = ("WORKTREE", ".")  # the files as they are, committed or not
QUEUE_SAMPLES = 16_384  # 256 requests of 64
# Without hooks, because the repository's hooks would run in each new tree.
GIT = ("git", "-c", "core.hooksPath=/dev/null")


class TreeError(LoadTestError):
    """A commit is unknown or cannot serve the bundle; the message holds git's or its output."""


class Tree(NamedTuple):
    """Files of a commit.

    Attributes:
        path: The folder of the files.
        commit: The commit's short hash, and whether files differ from it, as text.
    """

    path: Path
    commit: str


@contextmanager
def checked_out(repository: Path, ref: str, path: Path) -> Iterator[Tree]:
    """Check out a commit's files for the duration of a ``with`` block.

    Args:
        repository: The folder of the git repository that contains the commit.
        ref: A git revision, or one of PRESENT for a copy of the repository's files as they are,
            without those that git ignores.
        path: The folder for the files; it must not exist yet, and is removed afterwards.

    Raises:
        TreeError: Git does not know the commit, or fails to check it out.
    """
    if ref in PRESENT:
        try:
            yield _copied(repository, path)
        finally:
            shutil.rmtree(path, ignore_errors=True)
        return
    commit = _git(repository, "rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}")
    try:
        _git(repository, "worktree", "add", "--detach", "--quiet", str(path), commit)
        yield Tree(path, _git(repository, "rev-parse", "--short", commit))
    finally:
        command = [*GIT, "worktree", "remove", "--force", str(path)]
        subprocess.run(command, cwd=repository, capture_output=True, check=False)
        if path.exists():  # git was interrupted before it registered the worktree
            shutil.rmtree(path, ignore_errors=True)
            subprocess.run([*GIT, "worktree", "prune"], cwd=repository, check=False)


def _copied(repository: Path, path: Path) -> Tree:
    listed = _git(repository, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (repository / name).is_file():  # else it was deleted, or is a dangling link
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, path / name)
    changed = _git(repository, "status", "--porcelain")
    commit = _git(repository, "rev-parse", "--short", "HEAD")
    return Tree(path, f"{commit} with uncommitted changes" if changed else commit)


def _git(repository: Path, *arguments: str) -> str:
    """Run git and return its output.

    Raises:
        TreeError: Git failed.
    """
    try:
        ran = subprocess.run([*GIT, *arguments], cwd=repository, capture_output=True, check=True)
    except OSError as error:
        raise TreeError(f"git cannot be run in {repository}: {error}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        raise TreeError(f"git {arguments[0]} failed in {repository}: {said}") from error
    return ran.stdout.decode(errors="surrogateescape").strip()


@contextmanager
def serving(tree: Tree, bundles: Path, log_file: Path) -> Iterator[str]:
    """Run a tree's service with this interpreter and its installed packages.

    Args:
        tree: A new tree, none of whose files has been run yet.
        bundles: The folder of bundles to serve.
        log_file: Receives the service's output.

    Yields:
        The service's URL.

    Raises:
        TreeError: The service did not become ready, or ran files other than the tree's.
    """
    settings = {
        # The earlier name: older commits know only this one, and newer ones still accept it.
        "DIGITS_BUNDLES": str(bundles.resolve()),
        "PYTHONPATH": str(tree.path),
        "PYTHONSAFEPATH": "1",  # the working directory it is started in belongs to another tree
        # Compiled files are written beside their sources, which shows which tree was run.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": "",
    }
    if "INFERENCE_MAX_QUEUE_SAMPLES" not in os.environ:
        # The earlier name, too. A long queue: requests are not refused if the machine stalls.
        settings["DIGITS_MAX_QUEUE_IMAGES"] = str(QUEUE_SAMPLES)
    options = ["--working-dir", str(tree.path)]
    try:
        with running_service(log_file, settings=settings, options=options) as url:
            _require_own_files(tree)
            yield url
    except ServiceNotReadyError as error:
        # The service's own error message may be the first of many lines.
        lines = log_file.read_text(errors="replace").splitlines()
        said = next((line for line in lines if line.startswith("error:")), "it logged no error")
        raise TreeError(f"{tree.commit} cannot serve the bundle: {said}\n{error}") from error


def _require_own_files(tree: Tree) -> None:
    """Raise TreeError if the service that became ready was not imported from this tree."""
    cache = f"app.{sys.implementation.cache_tag}.pyc"
    if not (tree.path / "service" / "__pycache__" / cache).is_file():
        raise TreeError(
            f"a service became ready, but not from the files of {tree.commit} in {tree.path}; "
            f"check that the commit contains service{os.sep}app.py"
        )
