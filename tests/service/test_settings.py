"""Settings come from the environment and are refused by the variable's name."""

import tomllib
from pathlib import Path

import pytest

from service.settings import ROOT, SettingsError, read_settings


def test_the_environment_goes_before_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable replaces its default, the others stay."""
    assert read_settings().bundles == ROOT / "artifacts" / "bundles"
    monkeypatch.setenv("DIGITS_BUNDLES", "/models")
    monkeypatch.setenv("DIGITS_MAX_BATCH_IMAGES", "16")
    settings = read_settings()
    assert (settings.bundles, settings.max_batch_images) == (Path("/models"), 16)
    assert settings.device == "auto"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DIGITS_DEVICE", "gpu"),
        ("DIGITS_THREADS", "-1"),
        ("DIGITS_MAX_BATCH_IMAGES", "many"),
        ("DIGITS_WORKERS", "0"),
        ("DIGITS_TIMEOUT_S", "0"),
    ],
)
def test_a_bad_value_is_named(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error holds the variable and what it held."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"{variable}='{value}'"):
        read_settings()


def test_a_request_must_fit_into_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that contradict each other are refused together."""
    monkeypatch.setenv("DIGITS_MAX_QUEUE_IMAGES", "10")
    with pytest.raises(SettingsError, match="DIGITS_MAX_QUEUE_IMAGES=10 must be at least"):
        read_settings()


def test_a_bento_installs_what_the_service_needs() -> None:
    """The packages of `bentoml build` are those of the extra `serve`, one for one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["tool"]["bentoml"]["build"]["python"]["packages"]) == {
        *project["project"]["optional-dependencies"]["serve"],
        *project["project"]["dependencies"],
    }
