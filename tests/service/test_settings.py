"""Settings come from the environment, and errors name the variable."""

import tomllib
from pathlib import Path

import pytest

from service.settings import ROOT, Settings, SettingsError, list_old_names, read_settings


def test_the_environment_goes_before_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable overrides its default, and the other settings keep theirs."""
    assert read_settings().bundles == ROOT / "artifacts" / "bundles"
    monkeypatch.setenv("INFERENCE_BUNDLES", "/models")
    monkeypatch.setenv("INFERENCE_MAX_BATCH_SAMPLES", "16")
    settings = read_settings()
    assert (settings.bundles, settings.max_batch_samples) == (Path("/models"), 16)
    assert settings.device == "auto"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("INFERENCE_DEVICE", "gpu"),
        ("INFERENCE_THREADS", "-1"),
        ("INFERENCE_MAX_BATCH_SAMPLES", "many"),
        ("INFERENCE_WORKERS", "0"),
        ("INFERENCE_TIMEOUT_S", "0"),
    ],
)
def test_a_bad_value_is_named(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error contains the variable and its value."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"{variable}='{value}'"):
        read_settings()


def test_the_names_before_this_release_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old names work and appear in errors; both names at once are refused, empty ones ignored."""
    monkeypatch.setenv("DIGITS_MAX_BATCH_IMAGES", "16")
    monkeypatch.setenv("DIGITS_DRAIN_S", "7")
    monkeypatch.setenv("DIGITS_WORKERS", "")
    settings = read_settings()
    assert (settings.max_batch_samples, settings.drain_s, settings.workers) == (16, 7, 1)
    assert list_old_names() == ["DIGITS_MAX_BATCH_IMAGES", "DIGITS_DRAIN_S"]
    monkeypatch.setenv("INFERENCE_DRAIN_S", "7")
    with pytest.raises(SettingsError, match="DIGITS_DRAIN_S is the old name of INFERENCE_DRAIN_S"):
        read_settings()
    monkeypatch.delenv("INFERENCE_DRAIN_S")
    monkeypatch.setenv("DIGITS_DRAIN_S", "never")
    with pytest.raises(SettingsError, match="DIGITS_DRAIN_S='never'"):
        read_settings()


def test_a_request_must_fit_into_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that contradict each other are refused together."""
    monkeypatch.setenv("INFERENCE_MAX_QUEUE_SAMPLES", "10")
    with pytest.raises(SettingsError, match="INFERENCE_MAX_QUEUE_SAMPLES=10 must be at least"):
        read_settings()


def test_every_setting_is_documented_as_it_is() -> None:
    """The table of docs/serving.md lists exactly these names, defaults and descriptions."""
    lines = (ROOT / "docs" / "serving.md").read_text().splitlines()
    documented = [line for line in lines if line.startswith("| `INFERENCE_")]
    assert documented == [
        f"| `INFERENCE_{name.upper()}` | {_shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]


def _shown(default: object) -> str:
    if isinstance(default, Path):
        return str(default.relative_to(ROOT))
    return (
        ""
        if default is None
        else str(default).lower()
        if default in (True, False)
        else str(default)
    )


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is too short is refused without being shown."""
    monkeypatch.setenv("INFERENCE_API_KEY", "hush")
    with pytest.raises(SettingsError, match=r"INFERENCE_API_KEY: .*16") as refused:
        read_settings()
    assert "hush" not in str(refused.value)


def test_a_bento_installs_what_the_service_needs() -> None:
    """`bentoml build` has exactly the packages of the extras `serve` and `grpc`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    needed = {*project["project"]["dependencies"]}
    needed.update(*(extras[name] for name in ("serve", "serve-core", "grpc")))
    needed.remove("proven-digits[serve-core]")
    assert set(project["tool"]["bentoml"]["build"]["python"]["packages"]) == needed
