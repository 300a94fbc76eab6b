"""The service of another commit: files of its own, and a server that runs them and no others."""

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
# A hook of the repository would run in each new tree.
GIT = ("git", "-c", "core.hooksPath=/dev/null")


class TreeError(LoadTestError):
    """No such commit, or its service does not serve the bundle; holds what git or it said."""


class Tree(NamedTuple):
    """Files of a commit.

    Attributes:
        path: Their folder.
        commit: In words: its short hash, and whether files differ from it.
    """

    path: Path
    commit: str


@contextmanager
def checked_out(repository: Path, ref: str, path: Path) -> Iterator[Tree]:
    """Have a commit's files for the time of a block.

    Args:
        repository: A folder with a git repository; the commit is one of it.
        ref: What git knows the commit by; one of PRESENT for a copy of the repository's files as
            they are, those aside that git ignores.
        path: Where the files shall lie; must not be there yet, and is gone afterwards.

    Raises:
        TreeError: Git does not know it, or cannot do it.
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
        if path.exists():  # git was interrupted before it knew of it
            shutil.rmtree(path, ignore_errors=True)
            subprocess.run([*GIT, "worktree", "prune"], cwd=repository, check=False)


def _copied(repository: Path, path: Path) -> Tree:
    listed = _git(repository, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (repository / name).is_file():  # else it was deleted, or is a link to nowhere
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, path / name)
    changed = _git(repository, "status", "--porcelain")
    commit = _git(repository, "rev-parse", "--short", "HEAD")
    return Tree(path, f"{commit} with uncommitted changes" if changed else commit)


def _git(repository: Path, *arguments: str) -> str:
    """What git says.

    Raises:
        TreeError: It failed.
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
    """Run a tree's own service by this interpreter and the packages installed beside it.

    Args:
        tree: Just made: nothing of it has been run yet.
        bundles: The folder of bundles that it shall serve.
        log_file: Where its output goes.

    Yields:
        Its URL.

    Raises:
        TreeError: It did not become ready, or it ran other files than the tree's.
    """
    settings = {
        # The earlier name: older commits know no other, and newer ones still accept it.
        "DIGITS_BUNDLES": str(bundles.resolve()),
        "PYTHONPATH": str(tree.path),
        "PYTHONSAFEPATH": "1",  # the folder that it is started in is another tree's
        # What is compiled lies beside its source, and thus shows what was run.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": "",
    }
    if "INFERENCE_MAX_QUEUE_SAMPLES" not in os.environ:
        # The earlier name, too. What waits after a moment's pause of this machine is not refused.
        settings["DIGITS_MAX_QUEUE_IMAGES"] = str(QUEUE_SAMPLES)
    options = ["--working-dir", str(tree.path)]
    try:
        with running_service(log_file, settings=settings, options=options) as url:
            _require_own_files(tree)
            yield url
    except ServiceNotReadyError as error:
        # Its own words may be the first of many lines.
        lines = log_file.read_text(errors="replace").splitlines()
        said = next((line for line in lines if line.startswith("error:")), "no error of its own")
        raise TreeError(f"{tree.commit} cannot serve the bundle: {said}\n{error}") from error


def _require_own_files(tree: Tree) -> None:
    """Raise TreeError if the service that became ready was not imported from this tree."""
    cache = f"app.{sys.implementation.cache_tag}.pyc"
    if not (tree.path / "service" / "__pycache__" / cache).is_file():
        raise TreeError(
            f"a service became ready, but not by the files of {tree.commit} in {tree.path}: is "
            f"there service{os.sep}app.py in that commit?"
        )
