"""A worker that ends first reports what was wrong with the version that it served."""

import asyncio
import time
from pathlib import Path

import pytest

from service.models.loader import load_verified_models
from service.models.registry import ModelRegistry
from service.observability.metrics import Metrics
from service.rollout.coordinator import RolloutCoordinator
from service.settings import Settings
from service.versions.state import DesiredState, Record, RolloutFolder
from tests.service.rollout.made_versions import NAME, make_version


@pytest.fixture
def promoted(tmp_path: Path) -> RolloutFolder:
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


def test_a_fault_found_just_before_a_worker_ends_takes_the_version_back(
    promoted: RolloutFolder,
) -> None:
    """The version is rolled back even if the worker ends right after its failed golden check."""

    async def fail_and_end() -> None:
        rollouts.start()
        deadline_s = time.monotonic() + 30
        while not promoted.live_reports() and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        rollouts.report_fault(models.get(NAME), ["wrong label"])
        rollouts.close()

    settings = Settings(bundles=promoted.folder.parent, device="cpu")
    metrics = Metrics()
    models = ModelRegistry(load_verified_models(settings), settings, metrics)
    try:
        assert models.get(NAME).manifest.version == "b"
        rollouts = RolloutCoordinator(models, settings, metrics, lambda: None)
        asyncio.run(fail_and_end())
    finally:
        models.close()
    desired = promoted.read_desired()
    assert (desired.generation, desired.stable) == (3, "a")
    assert "wrong label" in desired.reason
    assert not promoted.live_reports()
