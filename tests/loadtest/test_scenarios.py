"""Scenarios and profiles are read from their file and validated."""

from typing import Any

import pytest

from loadtest.scenarios import (
    ScenarioError,
    load_profile,
    load_scenario,
    price_per_hour,
    scenario_names,
)


def test_every_scenario_of_the_file_is_usable() -> None:
    """Each scenario can be loaded, has a description and keeps its name."""
    assert {"SingleStream", "MultiStream", "Server", "Offline", "Concurrency"} <= set(
        scenario_names()
    )
    assert {"Burst", "Overload"} <= set(scenario_names())
    for name in scenario_names():
        scenario = load_scenario(name)
        assert scenario.name == name
        assert scenario.description
        assert (scenario.users is None) == (scenario.loop == "open")
    assert load_scenario("MultiStream").samples_per_request == 8
    assert load_profile("full").duration_s >= 60 > load_profile("smoke").duration_s >= 10
    assert price_per_hour() == 0


def test_the_command_line_goes_before_the_file() -> None:
    """Given values override the file's, None does not; a rate opens a loop, users close it."""
    scenario = load_scenario("Concurrency", users=3, samples_per_request=None)
    assert (scenario.users, scenario.samples_per_request) == (3, 1)
    opened = load_scenario("Concurrency", rate_per_s=50.0)
    assert (opened.loop, opened.users, opened.rate_per_s) == ("open", None, 50.0)
    closed = load_scenario("Server", users=2)
    assert (closed.loop, closed.users, closed.rate_per_s) == ("closed", 2, None)
    assert load_profile("smoke", duration_s=3.0).duration_s == 3


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("Flood", {}, "known: SingleStream"),
        ("Concurrency", {"users": 0}, "users"),
        ("Upload", {"samples_per_request": 2}, "one image per request"),
        ("Server", {"rate_per_s": -1}, "rate_per_s"),
        ("Server", {"rate_per_s": None, "loop": "closed"}, "needs users"),
        ("Concurrency", {"loop": "open"}, "needs rate_per_s"),
        ("Concurrency", {"endpoint": "infer"}, "endpoint"),
    ],
)
def test_unusable_scenarios_are_refused(name: str, changes: dict[str, Any], named: str) -> None:
    """The error names the unusable value or the known scenarios."""
    with pytest.raises(ScenarioError, match=named):
        load_scenario(name, **changes)


def test_unusable_profiles_are_refused() -> None:
    """The error names the unusable value or the known profiles."""
    with pytest.raises(ScenarioError, match="known: smoke, full"):
        load_profile("long")
    with pytest.raises(ScenarioError, match="duration_s"):
        load_profile("smoke", duration_s=0.0)
