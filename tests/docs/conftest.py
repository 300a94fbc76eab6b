"""Fixture with a folder in which the commands of the documentation can run."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.tiny import SERVED_BUNDLES


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's root, with the tests' tiny bundles in artifacts/."""
    folder = tmp_path_factory.mktemp("workspace")
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.name != "artifacts":
            (folder / entry.name).symlink_to(entry)
    (folder / ".venv").symlink_to(sys.prefix)
    shutil.copytree(SERVED_BUNDLES, folder / "artifacts" / "bundles")
    return folder
