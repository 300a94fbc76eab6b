"""A worker that ends first reports what was wrong with the version that it served."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

from loadtest.server import REPOSITORY
from service.models.loader import load_verified_models
from service.models.registry import ModelRegistry
from service.observability.metrics import Metrics
from service.rollout.coordinator import RolloutCoordinator
from service.settings import Settings
from service.versions.state import DesiredState, Record, RolloutFolder
from tests.service.rollout.made_versions import NAME, make_version


def test_a_fault_found_just_before_a_worker_ends_takes_the_version_back(tmp_path: Path) -> None:
    """The version is rolled back even if the worker ends right after its failed golden check."""
    folder = _promoted(tmp_path)
    # A process registers its metrics once, so this one runs the worker in another.
    command = [sys.executable, "-m", __name__, str(folder.folder)]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    desired = folder.read_desired()
    assert (desired.generation, desired.stable) == (3, "a")
    assert "wrong label" in desired.reason
    assert not folder.live_reports()


def _promoted(tmp_path: Path) -> RolloutFolder:
    """A model whose version "b" has just replaced "a"."""
    for seed, version in enumerate("ab"):
        target = tmp_path / "bundles" / NAME / version
        target.parent.mkdir(parents=True, exist_ok=True)
        make_version(tmp_path / "made", version, seed).rename(target)
    folder = RolloutFolder(tmp_path / "bundles" / NAME)
    state = DesiredState(generation=2, stable="b", previous="a", reason="", changed_s=time.time())
    with folder.lock():
        folder.write_desired(state)
        folder.write_record(Record(live=state, live_s=time.time()))
    return folder


def _fail_and_end(folder: RolloutFolder) -> None:
    """Serve the model, find a fault in it, and end without following its roll-out again."""

    async def run() -> None:
        rollouts.start()
        deadline_s = time.monotonic() + 30
        while not folder.live_reports() and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        rollouts.report_fault(models.get(NAME), ["wrong label"])
        rollouts.close()

    settings, metrics = Settings(bundles=folder.folder.parent, device="cpu"), Metrics()
    models = ModelRegistry(load_verified_models(settings), settings, metrics)
    try:
        assert models.get(NAME).manifest.version == "b"
        rollouts = RolloutCoordinator(models, settings, metrics, lambda: None)
        asyncio.run(run())
    finally:
        models.close()


if __name__ == "__main__":
    _fail_and_end(RolloutFolder(Path(sys.argv[1])))
