"""Arrival times of an open loop: drawn from a distribution, or replayed from a trace.

Arrivals are drawn from a seed, as in MLPerf LoadGen (its schedule_rng_seed): the same seed gives
the same schedule. LoadGen's Server scenario has Poisson arrivals; the other shapes are our own.
"""

import csv
import json
import random
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from loadtest.errors import LoadTestError
from loadtest.scenarios import Scenario

if TYPE_CHECKING:
    from loadtest.generator.expectations import Expectations


class TraceError(LoadTestError):
    """A file is not a trace of requests; the message names the row and what was expected."""


class Due(NamedTuple):
    """A request that is due.

    Attributes:
        at_s: The moment at which it is due, by ``time.perf_counter``.
        position: Index of the request among the prepared ones; None: the next one.
    """

    at_s: float
    position: int | None = None


class Event(NamedTuple):
    """One request of a trace.

    Attributes:
        at_s: Seconds after the first request of the trace.
        model: Name of the model; None: the first model under test.
        samples: Number of samples in the request.
    """

    at_s: float
    model: str | None
    samples: int


def drawn(
    scenario: Scenario, start_s: float, whole_s: float, users: int, seed: int
) -> Iterator[Due]:
    """One user's share of a scenario's arrivals, until the end of the load.

    Args:
        scenario: An open loop; its rate may climb from ``rate_per_s`` to ``ramp_to_per_s``.
        start_s: Start of the load, by ``time.perf_counter``.
        whole_s: Duration of the load in seconds, including the warm-up.
        users: Number of users among whom the rate is divided.
        seed: This user's random seed.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    after_s = 0.0
    while after_s < whole_s:
        rate = scenario.rate_at(after_s / whole_s) / users
        after_s += chance.gammavariate(scenario.shape, 1 / (rate * scenario.shape))
        yield Due(start_s + after_s)


def replayed(
    expectations: "Expectations", scenario: Scenario, start_s: float, share: tuple[int, int]
) -> Iterator[Due]:
    """One user's share of a trace's requests.

    Args:
        expectations: The prepared requests; those for the trace's models and sizes are added.
        scenario: Gives the trace's file and the factor by which it is replayed faster.
        start_s: The moment at which its first request is due, by ``time.perf_counter``.
        share: This user's number, and how many users share the trace.

    Raises:
        TraceError: The file is missing or is not a trace.
        PayloadError: The trace names a model whose bundle was not given.
    """
    positions: dict[tuple[str | None, int], list[int]] = {}
    turn: dict[tuple[str | None, int], int] = {}
    number, users = share
    for count, event in enumerate(read_trace(Path(str(scenario.trace)))):
        key = (event.model, event.samples)
        if key not in positions:
            positions[key] = expectations.positions(*key)
        turn[key] = turn.get(key, -1) + 1
        if count % users == number:
            found = positions[key]
            yield Due(start_s + event.at_s / scenario.speed, found[turn[key] % len(found)])


def read_trace(path: Path) -> list[Event]:
    """The requests of a trace, sorted by time.

    The file is CSV with a header row, or JSON lines. ``time`` is a number of seconds or an ISO 8601
    date; ``model`` and ``samples`` are optional (the first model, one sample). The service's JSON
    access log can be used directly: its lines are written when a request was answered, so their
    ``duration_s`` is subtracted. They do not contain the number of samples, so one is assumed.
    Lines of that log that name no model are skipped.

    Raises:
        TraceError: The file cannot be read, contains an invalid row, or contains no request.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise TraceError(f"the trace {path} cannot be read: {error}") from error
    rows: Iterator[Mapping[str, Any]] = (
        (json.loads(line) for line in lines if line.strip())
        if lines and lines[0].lstrip().startswith("{")
        else csv.DictReader(lines)
    )
    events = []
    try:
        for row in rows:
            event = _event(row)
            if event is not None:
                events.append(event)
    except (ValueError, LookupError, TypeError) as error:
        raise TraceError(
            f"{path}, request {len(events) + 1}: {error!r}; expected the field time (seconds, or "
            "an ISO 8601 date) and, optionally, model and samples"
        ) from error
    if not events:
        raise TraceError(f"{path} contains no request; expected the fields time, model, samples")
    first_s = min(event.at_s for event in events)
    shifted = [event._replace(at_s=event.at_s - first_s) for event in events]
    return sorted(shifted, key=lambda event: event.at_s)


def _event(row: Mapping[str, Any]) -> Event | None:
    """A row's request; None if the row is a log line that names no model."""
    if "logger" in row and not row.get("model"):
        return None
    samples = int(row.get("samples") or 1)
    if samples < 1:
        raise ValueError(f"{samples} samples")
    at_s = _seconds(row["time"]) - float(row.get("duration_s") or 0)
    return Event(at_s, row.get("model") or None, samples)


def _seconds(value: Any) -> float:
    try:
        return float(value)
    except ValueError:
        return datetime.fromisoformat(value).timestamp()
