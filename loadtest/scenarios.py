"""The scenarios of ``scenarios.toml``, checked."""

import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SCENARIOS_FILE = Path(__file__).with_name("scenarios.toml")


class ScenarioError(ValueError):
    """An unknown scenario, or one whose numbers cannot be used."""


class Scenario(BaseModel):
    """Who sends what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    users: int = Field(ge=1)
    images_per_request: int = Field(ge=1)
    endpoint: Literal["predict", "predict/image"]

    @model_validator(mode="after")
    def _one_image_an_upload(self) -> Self:
        if self.endpoint == "predict/image" and self.images_per_request != 1:
            raise ValueError("predict/image takes one image a request")
        return self


def scenario_names() -> list[str]:
    """All names, in the file's order."""
    return list(_read())


def load_scenario(name: str, **changes: Any) -> Scenario:
    """A scenario by name, with the given numbers in place of the file's where they are not None.

    Raises:
        ScenarioError: Unknown name or unusable numbers.
    """
    known = _read()
    if name not in known:
        raise ScenarioError(f"unknown scenario {name!r}; known: {', '.join(known)}")
    given = {key: value for key, value in changes.items() if value is not None}
    try:
        return Scenario.model_validate({"name": name, **known[name], **given})
    except ValidationError as error:
        raise ScenarioError(f"scenario {name}: {error}") from error


def _read() -> dict[str, dict[str, Any]]:
    return tomllib.loads(SCENARIOS_FILE.read_text())
