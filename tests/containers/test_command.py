"""The compose test says clearly when it cannot run, and reads verdicts as they are meant."""

from pathlib import Path

import pytest

from tests.containers.__main__ import NO_ENGINE, main
from tests.containers.engine import Engine, NoEngineError, StepError, find_engine
from tests.containers.steps import verdict

SUMMARY = """
Type     Name      # reqs      # fails |    Avg     Min     Max    Med |   req/s  failures/s
--------|---------|-------|-------------|-------|-------|-------|-------|--------|-----------
POST     infer      22447     0(0.00%) |     12       1     100     10 | 2244.70        0.00
         Aggregated 22447     {} |     12       1     100     10 | 2244.70        0.00
"""


def test_without_an_engine_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A status of its own, what was tried, and what to do; nothing counts as passed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("COMPOSE", raising=False)
    assert main([]) == NO_ENGINE == 3
    said = capsys.readouterr().err
    assert said.startswith("NOT RUN: no container engine answers here: tried `docker compose` with")
    assert "podman-compose" in said


def _program(folder: Path, name: str, status: int) -> None:
    (folder / name).write_text(f"#!/bin/sh\nexit {status}\n")
    (folder / name).chmod(0o755)


def test_docker_comes_before_podman_and_must_answer(tmp_path: Path) -> None:
    """An engine whose daemon does not answer is none; the variables go before both."""
    for name, status in (("docker", 0), ("podman", 0), ("podman-compose", 0), ("mine", 0)):
        _program(tmp_path, name, status)
    environment = {"PATH": str(tmp_path)}
    assert find_engine(environment).engine == ("docker",)
    _program(tmp_path, "docker", 1)
    assert find_engine(environment) == Engine(("podman-compose",), ("podman",))
    named = environment | {"COMPOSE": "mine --further", "ENGINE": "podman"}
    assert find_engine(named) == Engine(("mine", "--further"), ("podman",))
    _program(tmp_path, "mine", 1)
    with pytest.raises(NoEngineError, match="tried `mine --further` with `podman`"):
        find_engine(named)


def test_without_bundles_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder without the CNN's bundle is refused before anything is started."""
    with pytest.raises(SystemExit):
        main(["--bundles", str(tmp_path)])
    assert "`make bundles` writes them" in capsys.readouterr().err


def test_the_load_tests_verdict_is_read() -> None:
    """Failures, no request and no summary fail the step."""
    assert verdict(SUMMARY.format("0(0.00%)")) == "22447 answers verified, 0 failed"
    for said in (SUMMARY.format("3(0.01%)"), "", "Aggregated 0 0(0.00%)"):
        with pytest.raises(StepError):
            verdict(said)
