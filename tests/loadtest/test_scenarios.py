"""Scenarios are read from their file and checked."""

import pytest

from loadtest.scenarios import ScenarioError, load_scenario, scenario_names


def test_every_scenario_of_the_file_is_usable() -> None:
    """Each name loads, says what it does and keeps its name."""
    assert "SingleStream" in scenario_names()
    for name in scenario_names():
        scenario = load_scenario(name)
        assert scenario.name == name
        assert scenario.description


def test_the_command_line_goes_before_the_file() -> None:
    """A given number replaces the file's; None does not."""
    scenario = load_scenario("Concurrency", users=3, images_per_request=None)
    assert (scenario.users, scenario.images_per_request) == (3, 1)


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("Flood", {}, "known: SingleStream"),
        ("Concurrency", {"users": 0}, "users"),
        ("Upload", {"images_per_request": 2}, "one image a request"),
    ],
)
def test_unusable_scenarios_are_refused(name: str, changes: dict[str, int], named: str) -> None:
    """The error names the number or the known scenarios."""
    with pytest.raises(ScenarioError, match=named):
        load_scenario(name, **changes)
