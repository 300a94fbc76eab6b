"""Versions of a model are replaced while the service answers, and wrong versions are removed."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.rollout.status import read_samples
from tests.service.processes import worker_processes
from tests.service.rollout.made_versions import (
    NAME,
    UNLUCKY,
    flip_byte,
    make_failing,
    make_slow,
    make_version,
    samples,
    swap_model,
)
from tests.service.rollout.rollout_service import (
    WITHIN_S,
    RolloutService,
    asked,
    is_right,
    serving,
)
from tests.service.wire import read_metrics, wait_for

INJECTED = Path(__file__).with_name("injected")
SEEDS = {"a": 0, "b": 1, "c": 2, "slow": 0, "failing": 0, "deadly": 0}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of all versions; "a", "slow", "failing" and "deadly" compute the same."""
    folder = tmp_path_factory.mktemp("sources")
    made = {version: make_version(folder, version, SEEDS[version]) for version in "abc"}
    made["deadly"] = make_version(folder, "deadly")
    made["slow"], made["failing"] = make_slow(folder, "slow"), make_failing(folder, "failing")
    made["damaged"], made["other"] = make_version(folder, "damaged"), make_version(folder, "other")
    flip_byte(made["damaged"])
    swap_model(made["other"], made["b"])
    made["narrow"] = make_version(folder, "narrow", classes=2)
    return made


@pytest.fixture(scope="module")
def shared(
    sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RolloutService]:
    """A service with two workers, for all tests of this module."""
    folder = tmp_path_factory.mktemp("rollout")
    settings = {"PYTHONPATH": str(INJECTED), "INJECTED_DEADLY_VERSION": "deadly"}
    with serving(folder, sources["a"], **settings) as service:
        for name in ("b", "c", "slow", "failing", "deadly", "narrow"):
            service.stage(sources[name])
        yield service


@pytest.fixture
def service(shared: RolloutService) -> RolloutService:
    """The service, with "a" as its only version."""
    if shared.status()["desired"]["canary"] or shared.status()["desired"]["shadow"]:
        assert shared.run("rollback", NAME, "--wait") == 0
    if shared.status()["live"]["stable"] != "a":
        assert shared.run("promote", NAME, "a", "--wait") == 0
    assert wait_for(shared.is_settled, WITHIN_S)
    return shared


def test_a_canary_answers_its_share_chosen_by_the_request_id(service: RolloutService) -> None:
    """Every worker answers a request with the same version, which each answer names."""
    assert service.run("canary", NAME, "b", "--share", "0.3", "--wait") == 0
    values = samples(2)
    found: dict[str, set[str]] = {}
    for attempt in range(3):
        for number in range(60):
            answer = service.ask(values, request_id=f"request-{number}")
            assert is_right(answer, values, SEEDS), (attempt, answer.text)
            found.setdefault(f"request-{number}", set()).add(answer.headers["x-model-version"])
    assert all(len(versions) == 1 for versions in found.values())
    canary = sum(versions == {"b"} for versions in found.values())
    assert 6 <= canary <= 30  # 18 of 60 are expected, with a standard deviation of 3.5
    for version in ("a", "b") * 10:
        answer = service.ask(values, version=version)
        assert is_right(answer, values, SEEDS)
        assert answer.headers["x-model-version"] == version
    assert httpx.get(f"{service.url}/v2/models/{NAME}").json()["versions"] == ["a", "b"]
    generation = read_metrics(service.url)[f'inference_rollout_generation{{model="{NAME}"}}']
    assert generation == service.status()["live"]["generation"]
    name = f'inference_version_request_duration_seconds_count{{model="{NAME}",version="b"}}'
    assert wait_for(lambda: read_metrics(service.url)[name] >= 3 * canary, 5)


def test_a_promotion_and_a_rollback_lose_no_request(service: RolloutService) -> None:
    """Clients that send without pause get only right answers, first of "a", then of "b"."""
    with asked(service, SEEDS) as load:
        time.sleep(0.5)
        assert service.run("promote", NAME, "b", "--wait") == 0
        before = load.answers["a"]
        time.sleep(0.5)
        assert load.answers["a"] <= before + 4  # those in flight
        assert service.run("rollback", NAME, "--wait") == 0
        time.sleep(0.5)
    assert load.mistakes == []
    assert min(load.answers["a"], load.answers["b"]) > 10
    gone = service.ask(samples(1), version="b")
    assert gone.status_code == 404
    assert "served in version a, not 'b'" in gone.text


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("damaged", "was altered"),
        ("other", "fails its golden samples"),
        ("narrow", "a different contract"),
    ],
)
def test_a_version_that_is_not_proven_never_goes_live(
    service: RolloutService,
    sources: dict[str, Path],
    version: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A damaged version, one with a wrong weight and updated hashes, and other tensors fail."""
    folder = service.folder.bundle(version)
    if not folder.exists():  # `stage` would refuse the damaged one
        shutil.copytree(sources[version], folder)
    changes = {"stable": version, "previous": "a", "allow_contract_change": False}
    state = service.folder.read_desired().successor("test", **changes)
    with asked(service, SEEDS) as load:
        with service.folder.lock():
            service.folder.write_desired(state)
        assert wait_for(lambda: service.status()["outcome"] == "refused", WITHIN_S)
        time.sleep(0.3)
    assert words in service.status()["refused"]["reason"]
    assert load.mistakes == []
    assert set(load.answers) == {"a"}
    assert service.run("status", NAME) == 0
    assert words in capsys.readouterr().out


def test_a_canary_whose_engine_fails_is_taken_back_and_no_client_notices(
    service: RolloutService,
) -> None:
    """The stable version answers its failed requests, and the reason gives the error rate."""
    assert service.run("canary", NAME, "failing", "--share", "1", "--wait") == 0
    with asked(service, SEEDS, unlucky=UNLUCKY) as load:
        assert wait_for(service.is_back, WITHIN_S)
    assert load.mistakes == []
    assert load.answers["failing"] > 0
    status = service.status()
    assert status["live"]["stable"] == "a"
    assert "its engine failed for" in status["live"]["reason"]
    metrics = read_metrics(service.url)
    assert metrics[f'inference_rollout_returns_total{{model="{NAME}",role="canary"}}'] >= 1
    assert metrics[f'inference_version_failures_total{{model="{NAME}",version="failing"}}'] >= 1


def test_a_request_that_names_the_failing_version_is_told_so(service: RolloutService) -> None:
    """A request that names the failing version gets an error, not another version's answer."""
    assert service.run("canary", NAME, "failing", "--share", "0.001", "--wait") == 0
    unlucky = np.full((1, 4), UNLUCKY, np.float32)
    assert service.ask(unlucky, version="failing").status_code == 500
    assert service.ask(unlucky, version="a").status_code == 200


def test_a_slow_canary_is_taken_back(service: RolloutService) -> None:
    """The reason gives both versions' latencies."""
    assert service.run("canary", NAME, "slow", "--share", "0.3", "--wait") == 0
    with asked(service, SEEDS, clients=4) as load:
        assert wait_for(service.is_back, WITHIN_S)
    assert load.mistakes == []
    assert "> 2 x the stable version's" in service.status()["live"]["reason"]


def test_a_version_that_ends_workers_is_taken_back(service: RolloutService) -> None:
    """Only requests in the dead worker are lost, and after two deaths the canary is removed."""
    assert service.run("canary", NAME, "deadly", "--share", "0.5", "--wait") == 0
    with asked(service, SEEDS, unlucky=UNLUCKY) as load:
        assert wait_for(service.is_back, WITHIN_S)
    assert not any("wrong answer" in mistake for mistake in load.mistakes)
    assert "workers ended unexpectedly" in service.status()["live"]["reason"]


def test_a_retrained_shadow_that_disagrees_is_taken_back(service: RolloutService) -> None:
    """Its answers reach no client, and the worst disagreements are kept with inputs and answers."""
    assert service.run("shadow", NAME, "c", "--wait") == 0
    with asked(service, SEEDS, clients=4) as load:
        assert wait_for(service.is_back, WITHIN_S)
    assert load.mistakes == []
    assert set(load.answers) == {"a"}
    reason = service.status()["live"]["reason"]
    assert "answers disagree with the stable version's" in reason
    (worst, *_) = read_samples(service.folder)
    assert np.array(worst["inputs/x"]).shape == (4,)
    assert np.argmax(worst["stable/logits"]) != np.argmax(worst["shadow/logits"])
    metrics = read_metrics(service.url)
    labels = f'{{model="{NAME}",version="c"}}'
    assert metrics[f"inference_shadow_disagreements_total{labels}"] > 0


@pytest.mark.parametrize("phase", ["loading", "live", "returning"])
def test_a_killed_worker_leaves_one_generation(service: RolloutService, phase: str) -> None:
    """Whenever a worker is killed, all workers serve one generation again."""
    if phase == "returning":
        assert service.run("canary", NAME, "b", "--wait") == 0
    if phase == "live":
        assert service.run("promote", NAME, "b", "--wait") == 0
    elif phase == "loading":
        assert service.run("promote", NAME, "b") == 0
    else:
        assert service.run("rollback", NAME) == 0
    worker = worker_processes(service.url)[0]
    worker.kill()
    worker.wait(WITHIN_S)
    assert wait_for(service.is_settled, WITHIN_S)
    expected = "a" if phase == "returning" else "b"
    assert service.status()["live"]["stable"] == expected
    for _ in range(20):
        answer = service.ask(samples(1))
        assert answer.headers["x-model-version"] == expected
        assert is_right(answer, samples(1), SEEDS)
