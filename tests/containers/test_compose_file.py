"""Every service of the compose file is limited, watched, hardened, pinned and without secrets."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings, old_name
from tests.containers.files import ROOT, compose_text, instructions, services

SERVICES = services()
JOBS = {"loadtest", "loadtest-worker", "train"}  # they end by themselves
KEYS = {
    *("image", "build", "command", "environment", "ports", "volumes", "tmpfs", "networks"),
    *("read_only", "cap_drop", "security_opt", "restart", "profiles", "scale", "deploy"),
    *("depends_on", "healthcheck", "stop_grace_period", "init"),
}
BUILT = {name: ROOT / str(s["build"]["dockerfile"]) for name, s in SERVICES.items() if "build" in s}
each_service = pytest.mark.parametrize("name", SERVICES)


def _seconds(text: Any) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(ms|s)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) / (1000 if unit == "ms" else 1)


def test_the_profiles_are_those_that_the_documentation_names() -> None:
    """The service alone needs no profile; each profile is a line of the file's head and docs."""
    profiles = {name: service.get("profiles", []) for name, service in SERVICES.items()}
    assert profiles.pop("service") == []
    named = {profile for found in profiles.values() for profile in found}
    assert named == {"gpu", "scale", "monitoring", "loadtest", "train"}
    assert all(len(found) == 1 for found in profiles.values())
    for text in (compose_text(), (ROOT / "docs" / "containers.md").read_text()):
        for profile in named:
            assert f"docker compose --profile {profile} " in text


@each_service
def test_a_service_says_only_what_compose_knows(name: str) -> None:
    """No key is misspelt, and what it depends on is there whenever it is."""
    service = SERVICES[name]
    assert set(service) <= KEYS
    for other in service.get("depends_on", {}):
        assert SERVICES[other].get("profiles", service.get("profiles")) == service.get("profiles")


@each_service
def test_a_service_is_limited(name: str) -> None:
    """It has a share of the cores, of the memory and of the process table, and no more."""
    limits = SERVICES[name]["deploy"]["resources"]["limits"]
    assert float(limits["cpus"]) > 0
    assert re.fullmatch(r"\d+[mg]", limits["memory"])
    assert 0 < limits["pids"] <= 512


@each_service
def test_a_service_is_hardened(name: str) -> None:
    """Nothing of it can be written or gained, and its ports are this machine's alone."""
    service = SERVICES[name]
    assert service["init"] is True
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@each_service
def test_a_service_is_restarted_and_watched_or_is_a_job(name: str) -> None:
    """What stays up comes back after a crash and has a health check; a job ends."""
    service = SERVICES[name]
    assert service["restart"] == ("no" if name in JOBS else "unless-stopped")
    if name not in JOBS:
        in_image = name in BUILT and "HEALTHCHECK" in dict(instructions(BUILT[name]))
        assert in_image or service["healthcheck"]["test"]


@each_service
def test_an_image_is_pinned(name: str) -> None:
    """Its tag is a version, or a variant of our own build, which no registry is asked for."""
    image = SERVICES[name]["image"]
    repository, _, tag = image.rpartition(":")
    assert "/" not in tag
    assert tag not in ("", "latest")
    if name in BUILT:
        assert repository.startswith("localhost/")
    else:
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)


def test_no_secret_is_in_the_file() -> None:
    """What may be secret comes from the shell, without a default."""
    for name, service in yaml.safe_load(compose_text())["services"].items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|TOKEN|_KEY", variable):
                assert value is None or re.fullmatch(r"\$\{\w+:-\}", value), (name, variable)


@each_service
def test_what_is_mounted_is_there(name: str) -> None:
    """A folder of the repository exists (`make` fills artifacts), a volume is declared."""
    volumes = yaml.safe_load(compose_text())["volumes"]
    for mount in SERVICES[name].get("volumes", []):
        source, target, *mode = mount.split(":")
        if not source.startswith("."):
            assert source in volumes
            assert target.startswith("/")
        elif not source.startswith("./artifacts/"):
            assert (ROOT / source).exists(), source
            assert mode == ["ro"]


@pytest.mark.parametrize("name", ["service", "gpu", "replica"])
def test_there_is_time_to_drain(name: str) -> None:
    """From the stop to the kill there is time for the drain and for the longest request."""
    drain_s = float(SERVICES[name]["environment"]["INFERENCE_DRAIN_S"])
    longest_s = drain_s + Settings.model_fields["timeout_s"].default
    assert _seconds(SERVICES[name]["stop_grace_period"]) > longest_s


def test_the_proxy_sees_a_drain_before_it_ends() -> None:
    """Two checks fit well into the drain, and the proxy's own stop waits as long as a request."""
    config = (ROOT / "service" / "deploy" / "haproxy.cfg").read_text()
    every_s = _seconds(re.findall(r"check inter (\S+) fall 1 ", config)[0])
    assert 4 * every_s < float(SERVICES["replica"]["environment"]["INFERENCE_DRAIN_S"])
    (hard_stop,) = re.findall(r"hard-stop-after (\S+)", config)
    assert Settings.model_fields["timeout_s"].default < _seconds(hard_stop)
    assert _seconds(hard_stop) < _seconds(SERVICES["proxy"]["stop_grace_period"])


def test_the_load_test_keeps_its_result() -> None:
    """It writes all files into a volume, whose folder belongs to the user of the image."""
    service = SERVICES["loadtest"]
    assert "results:/results" in service["volumes"]
    written = [word.partition("=")[2] for word in service["command"] if "/results" in word]
    assert written == ["/results/result.json", "/results/report.html", "/results/requests"]
    said = (ROOT / "loadtest" / "Dockerfile").read_text()
    assert "mkdir /results && chown digits /results" in said


def test_the_gpu_is_reserved_for_its_profile_alone() -> None:
    """Its service asks for CUDA and one device, in the other's place; nobody else asks for any."""
    reserved = {
        name: service["deploy"]["resources"]["reservations"]["devices"]
        for name, service in SERVICES.items()
        if "reservations" in service["deploy"]["resources"]
    }
    assert reserved == {"gpu": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]}
    assert SERVICES["gpu"]["environment"]["INFERENCE_DEVICE"] == "cuda"
    assert SERVICES["gpu"]["networks"]["default"]["aliases"] == ["service"]
    assert SERVICES["gpu"]["ports"] == SERVICES["service"]["ports"]


def test_settings_of_the_compose_file_are_the_services() -> None:
    """Each variable that a container gets is a setting; under old names none has a value here."""
    known = {f"INFERENCE_{name.upper()}" for name in Settings.model_fields}
    old = {old_name(name) for name in Settings.model_fields}
    for name in ("service", "gpu", "replica"):
        environment = SERVICES[name]["environment"]
        assert set(environment) <= known | old
        assert {environment[variable] for variable in old & set(environment)} == {None}
        assert "DIGITS_API_KEY" in environment  # else a key under its old name would be lost


def test_each_dockerfile_of_the_repository_is_built() -> None:
    """None of them lies about unused, and each named one is there."""
    named = {Path(path).resolve() for path in BUILT.values()}
    assert named == {path.resolve() for path in ROOT.glob("[a-z]*/**/Dockerfile")}
