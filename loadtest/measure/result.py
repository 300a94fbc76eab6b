"""The result of one load point: the offered load, the measured figures and their validity."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from loadtest.generator.recorder import MICROSECONDS, Tally, decoded
from loadtest.scenarios import Profile, Scenario

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
SPECTRUM = (*range(0, 91, 5), 92.5, 95, 97.5, 98, 99, 99.5, 99.9, 99.99, 100)
SECONDS_PER_HOUR = 3600
MIB = 2**20  # bytes
# Fields that a result copies from the tally and from the scenario, under the same names.
OF_TALLY = (
    *("processes", "sent", "latency_us", "errors", "wrong_answers", "window_width_s"),
    *("refused_each_window", "no_room", "stragglers", "hung_up", "hung_up_samples"),
)
OF_SCENARIO = ("loop", "endpoint", "samples_per_request", "shape", "seed", "slo_ms", "overload")
LONG_S = 60.0  # in shorter runs, growth of memory and open files is noise


class Verdict(BaseModel):
    """Whether a measurement is valid, and the reasons if it is not."""

    model_config = ConfigDict(frozen=True)

    valid: bool
    reasons: list[str]

    def __str__(self) -> str:
        """The verdict as text for a table or a terminal."""
        return "valid" if self.valid else f"INVALID: {'; '.join(self.reasons)}"


class Provenance(BaseModel):
    """Where and when the figures were measured, and with which versions."""

    model_config = ConfigDict(frozen=True)

    url: str
    machine: str
    versions: dict[str, str]
    commit: str
    began: str


class Result(BaseModel):
    """One point's figures; latencies are in milliseconds, from the moment a request was due.

    Attributes:
        users: Number of users of a closed loop; 0 for an open loop.
        offered_per_s: Requests per second that were due, for an open loop.
        requests: Right answers to requests of the window; ``requests_per_s`` is the rate of those
            that also came within it.
        goodput_per_s: Right answers per second within the scenario's latency bound, if it has one.
        cost_per_million: Cost of a million right samples; None if no price per hour is stated.
        lag_ms: How much later than due requests were sent.
        latency_us: The whole HDR histogram of latencies in microseconds, encoded.
        hung_up: Requests whose client did not wait for the answer; ``hung_up_samples`` are their
            samples, ``server["samples_in_vain"]`` those that the service computed in vain.
        slow_clients: Outcomes of requests that clients sent byte by byte, with their counts.
        wrong_answer_positions: Indices, among the prepared requests, of those with the examples.
        ceiling_per_s: Rate of the generator against a server that does nothing, if measured.
        server: Summary of the server's own metrics; ``server_samples`` are these at 1 Hz.
    """

    model_config = ConfigDict(frozen=True)

    scenario: str
    loop: str
    model: str
    version: str
    variant: str
    device: str
    endpoint: str
    samples_per_request: int
    users: int
    offered_per_s: float | None
    shape: float
    seed: int
    slo_ms: float | None
    overload: bool
    processes: int
    duration_s: float
    warmup_s: float
    sent: int
    requests: int
    requests_per_s: float
    samples_per_s: float
    goodput_per_s: float | None
    cost_per_million: float | None
    latency_ms: dict[str, float]
    latency_spectrum_ms: list[tuple[float, float]]
    latency_us: str
    lag_ms: dict[str, float]
    errors: dict[str, int]
    wrong_answers: int
    wrong_answer_examples: list[str]
    wrong_answer_positions: list[int]
    window_width_s: float
    requests_each_window: list[int]
    p99_each_window_ms: list[float]
    refused_each_window: list[int]
    no_room: int
    stragglers: int
    hung_up: int
    hung_up_samples: int
    slow_clients: dict[str, int]
    generator_cpu_share: float
    ceiling_per_s: float | None
    server: dict[str, Any]
    server_samples: list[dict[str, Any]]
    provenance: Provenance
    verdict: Verdict


def beside_the_load(result: Result) -> list[str]:
    """Further findings as text: clients that hung up or were slow, growth of memory and files."""
    said, server = [], result.server
    if result.hung_up:
        vain = server.get("samples_in_vain")
        known = "an unknown number of" if vain is None else f"{vain:,}"
        said.append(
            f"{result.hung_up:,} clients hung up ({result.hung_up_samples:,} samples); {known} "
            "samples were computed in vain (including the service's own golden checks)"
        )
    if result.slow_clients:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in result.slow_clients.items())
        said.append(f"requests of slow clients: {kinds}")
    memory, files = (
        server.get(f"{name}_growth{unit}_per_h")
        for name, unit in (("rss", "_bytes"), ("open_files", ""))
    )
    if memory is not None and files is not None and result.duration_s >= LONG_S:
        said.append(
            f"the server's memory grew by {memory / MIB:+,.0f} MiB and its open files by "
            f"{files:+,.0f} per hour"
        )
    return said


def percentiles_ms(encoded: str, shares: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """Percentiles of an encoded histogram in milliseconds, by name: p50, p99.9, ..."""
    histogram = decoded(encoded)
    return {
        f"p{share:g}": float(histogram.get_value_at_percentile(share)) / MICROSECONDS
        for share in shares
    }


def figures(tally: Tally, scenario: Scenario, profile: Profile, price: float) -> dict[str, Any]:
    """The measured fields of ``Result``."""
    histogram = decoded(tally.latency_us)
    per_s = tally.in_window / tally.window_s
    samples_per_s = tally.samples / tally.window_s
    spectrum = percentiles_ms(tally.latency_us, SPECTRUM)
    goodput = None
    if scenario.slo_ms is not None:
        within = count_up_to(tally.latency_us, scenario.slo_ms)
        goodput = per_s * within / max(1, histogram.get_total_count())
    windows = [decoded(text) for text in tally.windows_us]
    return {
        **{name: getattr(tally, name) for name in OF_TALLY},
        **{name: getattr(scenario, name) for name in OF_SCENARIO},
        "scenario": scenario.name,
        "users": scenario.users or 0,
        "offered_per_s": scenario.rate_per_s,
        "duration_s": tally.window_s,
        "warmup_s": profile.warmup_s,
        "requests": int(histogram.get_total_count()),
        "requests_per_s": per_s,
        "samples_per_s": samples_per_s,
        "goodput_per_s": goodput,
        "cost_per_million": price / (samples_per_s * SECONDS_PER_HOUR) * 1e6
        if price and samples_per_s
        else None,
        "latency_ms": percentiles_ms(tally.latency_us),
        "latency_spectrum_ms": list(zip(map(float, SPECTRUM), spectrum.values(), strict=True)),
        "lag_ms": percentiles_ms(tally.lag_us),
        "wrong_answer_examples": [wrong.complaint for wrong in tally.wrong_examples],
        "wrong_answer_positions": [wrong.position for wrong in tally.wrong_examples],
        "requests_each_window": [int(each.get_total_count()) for each in windows],
        "p99_each_window_ms": [
            float(each.get_value_at_percentile(99)) / MICROSECONDS for each in windows
        ],
        "slow_clients": tally.slow,
        "generator_cpu_share": tally.cpu_share,
    }


def count_up_to(encoded: str, bound_ms: float) -> int:
    """The number of values in an encoded histogram that are at most ``bound_ms``."""
    return sum(
        int(item.count_added_in_this_iter_step)
        for item in decoded(encoded).get_recorded_iterator()
        if item.value_iterated_to <= bound_ms * MICROSECONDS
    )
