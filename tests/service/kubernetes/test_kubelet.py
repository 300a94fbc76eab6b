"""A roll-out with the manifest's probes, drain and grace period loses no request."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.service.kubernetes.kubelet import (
    CLIENTS,
    Pod,
    PodFailedError,
    PodManifest,
    Probe,
    Rollout,
    Traffic,
    roll_out,
)
from tests.service.kubernetes.render import render_overlay
from tests.service.wire import wait_for
from tests.tiny import SERVED_BUNDLES

MANIFEST = PodManifest.read(render_overlay("cpu"))


@pytest.fixture(scope="module")
def rollout(tmp_path_factory: pytest.TempPathFactory) -> Rollout:
    """A roll-out in which one pod of the CPU overlay replaces another under traffic."""
    return roll_out(MANIFEST, tmp_path_factory.mktemp("rollout"), SERVED_BUNDLES)


def test_a_rollout_loses_no_request(rollout: Rollout) -> None:
    """Every request is answered correctly, including by the old pod while it stops."""
    assert rollout.lost == []
    assert rollout.answers > 100
    assert rollout.answers_while_stopping > CLIENTS


def test_a_pod_ends_by_itself_within_its_grace_period(rollout: Rollout) -> None:
    """The old pod drains for the configured time and need not be killed."""
    assert not rollout.is_killed
    drain_s = float(MANIFEST.environment["INFERENCE_DRAIN_S"])
    assert drain_s <= rollout.stop_s < rollout.grace_s


def test_no_pod_would_be_restarted(rollout: Rollout) -> None:
    """Under traffic and while the pod stops, liveness failures stay below the threshold."""
    assert rollout.restarts == 0


def test_without_a_drain_requests_are_lost(tmp_path: Path) -> None:
    """The driver detects losses of a service that stops at once while requests still come."""
    environment = MANIFEST.environment | {"INFERENCE_DRAIN_S": "0"}
    pod = Pod(replace(MANIFEST, environment=environment), "hasty", tmp_path, SERVED_BUNDLES)
    try:
        pod.start()
        assert wait_for(lambda: pod.is_ready, 60)
        with Traffic([pod]) as traffic:
            assert wait_for(lambda: traffic.answers.get("hasty", 0) > CLIENTS, 60)
            assert traffic.lost == []
            pod.delete()
            assert wait_for(lambda: bool(traffic.lost), 30)
    finally:
        pod.kill()
    assert not pod.home.exists(), "the service writes to its home, which the image lacks"


def test_a_pod_that_outlives_its_grace_period_is_killed(tmp_path: Path) -> None:
    """A pod whose grace period is shorter than its drain is killed by SIGKILL."""
    pod = Pod(replace(MANIFEST, grace_s=1), "slow", tmp_path, SERVED_BUNDLES)
    try:
        pod.start()
        assert pod.delete()[1]
    finally:
        pod.kill()


def test_a_startup_probe_that_is_too_short_gives_up(tmp_path: Path) -> None:
    """A pod that has not verified its models when the probe gives up is killed."""
    probe = Probe("/readyz", period_s=0.1, timeout_s=1, failures=2)
    pod = Pod(replace(MANIFEST, startup=probe), "early", tmp_path, SERVED_BUNDLES)
    with pytest.raises(PodFailedError, match="gave up"):
        pod.start()


def test_a_pod_with_an_altered_bundle_ends(served_bundle: Path, tmp_path: Path) -> None:
    """The process ends before its port opens, so it never receives a client."""
    model = served_bundle / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    pod = Pod(MANIFEST, "altered", tmp_path, served_bundle.parent)
    with pytest.raises(PodFailedError, match="altered ended"):
        pod.start()
    assert not pod.is_routed
