"""The process that verifies a version competes with no worker for processor time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.server import REPOSITORY
from service.rollout.verifier import AUTOGROUP
from tests.service.rollout.made_versions import NAME, make_version

PRINT_PRIORITIES = """
import os
from service.rollout.verifier import AUTOGROUP, lower_priority
lower_priority()
print(os.nice(0), AUTOGROUP.read_text() if AUTOGROUP.exists() else "")
"""


def test_the_verifier_lowers_its_own_priority_and_that_of_its_session() -> None:
    """Its nice value is 10, and where Linux groups processes by session, its group's is as well.

    The session of the process that started it keeps its priority.
    """
    before = AUTOGROUP.read_text() if AUTOGROUP.exists() else ""
    command = [sys.executable, "-c", PRINT_PRIORITIES]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    nice, _, autogroup = ran.stdout.strip().partition(" ")
    assert nice == "10"
    if before and os.access(AUTOGROUP, os.W_OK):
        assert autogroup.endswith("nice 10")
        assert AUTOGROUP.read_text() == before


@pytest.mark.parametrize(("flaw", "status"), [(None, 0), ("model.onnx", 1)])
def test_the_verifier_exits_with_the_verdict(tmp_path: Path, flaw: str | None, status: int) -> None:
    """It exits with 0 for a version that holds, and names the file of one that does not."""
    version = tmp_path / NAME / "a"
    version.parent.mkdir()
    make_version(tmp_path / "made", "a").rename(version)
    if flaw is not None:
        (version / flaw).write_bytes(b"other bytes")
    command = [sys.executable, "-m", "service.rollout.verifier", str(version)]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ran.returncode == status, ran.stdout + ran.stderr
    assert (flaw or "") in ran.stdout
