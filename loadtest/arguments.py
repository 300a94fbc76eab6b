"""Arguments of the commands that measure load points: ``run`` and ``sweep``."""

import argparse
from pathlib import Path

from loadtest.run import REQUEST_TIMEOUT_S
from loadtest.scenarios import (
    ENDPOINTS,
    Profile,
    Scenario,
    load_profile,
    load_scenario,
    scenario_names,
)


def add_run_arguments(run: argparse.ArgumentParser) -> None:
    """What is measured, and what must be kept to."""
    _add_point(run, scenario="Concurrency")
    run.add_argument(
        "--request-timeout",
        type=float,
        default=REQUEST_TIMEOUT_S,
        help="seconds until a missing answer is an error; default: %(default)s",
    )
    run.add_argument("--max-p99-ms", type=float, help="fail above this")
    run.add_argument("--min-requests-per-s", type=float, help="fail below this")
    run.add_argument(
        "--max-error-share", type=float, default=0.0, help="refused or lost requests; default: 0"
    )


def add_sweep_arguments(sweep: argparse.ArgumentParser) -> None:
    """What is measured; its rate is searched."""
    _add_point(sweep, scenario="Server")


def point(arguments: argparse.Namespace) -> tuple[Scenario, Profile]:
    """What the arguments ask for.

    Raises:
        ScenarioError: Unknown name or unusable numbers.
    """
    scenario = load_scenario(
        arguments.scenario,
        users=arguments.users,
        rate_per_s=arguments.rate,
        images_per_request=arguments.images_per_request,
        endpoint=arguments.endpoint,
        slo_ms=arguments.slo_ms,
        seed=arguments.seed,
    )
    profile = load_profile(
        arguments.profile, duration_s=arguments.duration, warmup_s=arguments.warmup
    )
    return scenario, profile


def _add_point(parser: argparse.ArgumentParser, scenario: str) -> None:
    """What a load point is made of; values in place of the scenario's and the profile's."""
    parser.add_argument(
        "--scenario", choices=scenario_names(), default=scenario, help="default: %(default)s"
    )
    parser.add_argument("--url", default="http://localhost:3000", help="default: %(default)s")
    parser.add_argument(
        "--bundle",
        type=Path,
        default=Path("artifacts/bundles/cnn"),
        help="the bundle of the model to ask; default: %(default)s",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("artifacts/loadtest"),
        help="where .json, .html, .md and JUnit's .xml go; default: %(default)s",
    )
    parser.add_argument("--profile", default="smoke", help="how long; default: %(default)s")
    parser.add_argument("--duration", type=float, help="seconds, in place of the profile's")
    parser.add_argument("--warmup", type=float, help="seconds, in place of the profile's")
    parser.add_argument("--users", type=int, help="of a closed loop")
    parser.add_argument("--rate", type=float, help="of an open loop, requests/s")
    parser.add_argument("--images-per-request", type=int)
    parser.add_argument("--endpoint", choices=ENDPOINTS)
    parser.add_argument("--slo-ms", type=float, help="what 99%% of the answers must be under")
    parser.add_argument("--seed", type=int, help="of an open loop's drawn times")
    parser.add_argument("--processes", type=int, default=1, help="of the generator")
