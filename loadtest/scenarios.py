"""Reads and validates the scenarios and profiles of ``scenarios.toml``."""

import tomllib
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadtest.errors import LoadTestError

SCENARIOS_FILE = Path(__file__).with_name("scenarios.toml")
Endpoint = Literal["predict", "predict/image", "infer/json", "infer/binary", "infer/raw"]
ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)
API_KEY_VARIABLE = "LOADTEST_API_KEY"
REQUEST_TIMEOUT_S = 10.0


class ScenarioError(LoadTestError):
    """A scenario or profile is unknown, or has unusable values."""


class Scenario(BaseModel):
    """Which clients send which requests; ``scenarios.toml`` explains the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    endpoint: Endpoint
    loop: Literal["closed", "open"] = "closed"
    users: int | None = Field(None, ge=1)
    rate_per_s: float | None = Field(None, gt=0)
    shape: float = Field(1.0, gt=0)
    ramp_to_per_s: float | None = Field(None, gt=0)
    trace: str | None = None
    speed: float = Field(1.0, gt=0)
    samples_per_request: int = Field(1, ge=1)
    slo_ms: float | None = Field(None, gt=0)
    seed: int = 0
    overload: bool = False
    of_capacity: float | None = Field(None, gt=0)
    new_connections: bool = False
    hang_up_share: float = Field(0.0, ge=0, lt=1)
    hang_up_within_ms: float = Field(5.0, gt=0)
    slow_clients: int = Field(0, ge=0)
    slow_byte_ms: float = Field(50.0, gt=0)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.endpoint == "predict/image" and self.samples_per_request != 1:
            raise ValueError("predict/image takes one image per request")
        if self.loop == "closed" and self.users is None:
            raise ValueError("a closed loop needs users")
        if self.loop == "open" and self.rate_per_s is None:
            raise ValueError("an open loop needs rate_per_s")
        if self.loop == "closed" and (self.trace or self.ramp_to_per_s):
            raise ValueError("a trace and a ramp need an open loop")
        return self

    @property
    def is_steady(self) -> bool:
        """Whether the rate of answers should be constant over the whole load."""
        is_even = self.shape >= 1 and self.trace is None and self.ramp_to_per_s is None
        return is_even and not self.overload

    def rate_at(self, share: float) -> float:
        """Requests per second that are due after this share (0 to 1) of an open loop's duration."""
        first = self.rate_per_s or 0.0
        return first + min(1.0, share) * ((self.ramp_to_per_s or first) - first)


class Profile(BaseModel):
    """How long a point is measured, in seconds, and how many times."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    duration_s: float = Field(gt=0)
    warmup_s: float = Field(ge=0)
    runs: int = Field(ge=1)


def scenario_names() -> list[str]:
    """All scenario names, in the order of the file."""
    return list(_read()["scenarios"])


def load_scenario(name: str, **changes: Any) -> Scenario:
    """A scenario by name; each change that is not None overrides the file's value.

    Giving ``users`` to an open loop makes it a closed one; ``rate_per_s`` makes any loop open.

    Raises:
        ScenarioError: The name is unknown or a value is unusable.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    if "rate_per_s" in given:
        given = {"loop": "open", "users": None, **given}
    elif "users" in given:
        given = {"loop": "closed", "rate_per_s": None, **given}
    return Scenario.model_validate(_found("scenarios", name, given))


def load_profile(name: str, **changes: Any) -> Profile:
    """A profile by name; each change that is not None overrides the file's value.

    Raises:
        ScenarioError: The name is unknown or a value is unusable.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    return Profile.model_validate(_found("profiles", name, given))


def price_per_hour() -> float:
    """The price of the serving machine per hour; 0 if the file states none."""
    return float(_read()["price_per_hour"])


def _found(kind: Literal["scenarios", "profiles"], name: str, given: dict[str, Any]) -> Any:
    known = _read()[kind]
    if name not in known:
        raise ScenarioError(f"unknown {kind[:-1]} {name!r}; known: {', '.join(known)}")
    model = Scenario if kind == "scenarios" else Profile
    try:
        return model.model_validate({"name": name, **known[name], **given}).model_dump()
    except ValidationError as error:
        raise ScenarioError(f"{kind[:-1]} {name}: {error}") from error


def _read() -> dict[str, Any]:
    return tomllib.loads(SCENARIOS_FILE.read_text())
