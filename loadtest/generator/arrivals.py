"""When requests of an open loop are due: drawn from a distribution, or replayed from a trace.

Arrivals are drawn from a seed, as MLPerf LoadGen's are (its schedule_rng_seed): the same seed gives
the same schedule. Poisson arrivals are those of LoadGen's Server scenario; other shapes are not.
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
    """A file that is no trace of requests; says which line and what was expected."""


class Due(NamedTuple):
    """A request that is due.

    Attributes:
        at_s: When, by ``time.perf_counter``.
        position: Of the request among the prepared ones; None: the next one.
    """

    at_s: float
    position: int | None = None


class Event(NamedTuple):
    """One request of a trace.

    Attributes:
        at_s: Seconds after the first one.
        model: Its name; None: any that is asked.
        samples: In the request.
    """

    at_s: float
    model: str | None
    samples: int


def drawn(
    scenario: Scenario, start_s: float, whole_s: float, users: int, seed: int
) -> Iterator[Due]:
    """One user's share of a scenario's arrivals, till the end of the load.

    Args:
        scenario: An open loop; its rate may climb from ``rate_per_s`` to ``ramp_to_per_s``.
        start_s: The load's beginning, by ``time.perf_counter``.
        whole_s: Its seconds, the warm-up among them.
        users: Among whom the rate is divided.
        seed: Of this user.
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
        expectations: The prepared requests, among them those of the trace's models and sizes.
        scenario: Names the trace and how much faster it is replayed.
        start_s: When its first request is due, by ``time.perf_counter``.
        share: This user's number, and how many users share the trace.

    Raises:
        TraceError: It asks for a model that is not asked here.
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
    """The requests of a trace, by their time.

    A file of CSV with a head, or of JSON lines. ``time`` is a number of seconds or a date in ISO
    8601; ``model`` and ``samples`` may be left out (any model, one sample). A line of the service's
    access log in JSON is such a line: it is written when the request was answered, so its
    ``duration_s`` is taken off, and it does not say how many samples were sent, so one is. Other
    lines of that log, which name no model, are left out.

    Raises:
        TraceError: No such file, or a line that is none.
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
            f"{path}, request {len(events) + 1}: {error!r}; expected the fields time (seconds, or "
            "a date), and perhaps model and samples"
        ) from error
    if not events:
        raise TraceError(f"{path} holds no request; expected the fields time, model, samples")
    first_s = min(event.at_s for event in events)
    shifted = [event._replace(at_s=event.at_s - first_s) for event in events]
    return sorted(shifted, key=lambda event: event.at_s)


def _event(row: Mapping[str, Any]) -> Event | None:
    """A row's request; None if it is a line of a log about something else."""
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
