"""One load point: what was offered, what came of it, and whether it may be believed."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from loadtest.generator.recorder import MICROSECONDS, Tally, decoded
from loadtest.scenarios import Profile, Scenario

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
SPECTRUM = (*range(0, 91, 5), 92.5, 95, 97.5, 98, 99, 99.5, 99.9, 99.99, 100)
SECONDS_PER_HOUR = 3600
MIB = 2**20  # bytes
# Fields that a result has from what was counted and from what was asked, under the same names.
OF_TALLY = (
    *("processes", "sent", "latency_us", "errors", "wrong_answers", "window_width_s"),
    *("refused_each_window", "no_room", "stragglers", "hung_up", "hung_up_samples"),
)
OF_SCENARIO = ("loop", "endpoint", "samples_per_request", "shape", "seed", "slo_ms", "overload")
LONG_S = 60.0  # below this growth is noise


class Verdict(BaseModel):
    """Whether a measurement may be believed, and why not if not."""

    model_config = ConfigDict(frozen=True)

    valid: bool
    reasons: list[str]

    def __str__(self) -> str:
        """For a table or a terminal."""
        return "valid" if self.valid else f"INVALID: {'; '.join(self.reasons)}"


class Provenance(BaseModel):
    """Where and of what the figures are."""

    model_config = ConfigDict(frozen=True)

    url: str
    machine: str
    versions: dict[str, str]
    commit: str
    began: str


class Result(BaseModel):
    """One point's figures; latencies in milliseconds, from the moment a request was due.

    Attributes:
        users: Of a closed loop; 0 of an open one.
        offered_per_s: Requests a second that were due, of an open loop.
        requests: Right answers that count; ``requests_per_s`` of them came within the window.
        goodput_per_s: Right answers a second that came within the bound of the scenario, if it has
            one.
        cost_per_million: Right samples, at the price of the machine's hour; None if not stated.
        lag_ms: How much later than due requests were sent.
        latency_us: The whole HDR histogram, microseconds, encoded.
        hung_up: Requests whose client did not wait for the answer, and their samples; how much the
            service computed in vain is ``server["samples_in_vain"]``.
        slow_clients: What became of the requests of clients that send byte by byte.
        wrong_answer_positions: Of the requests that got the examples, among those of the bundle.
        ceiling_per_s: What the generator reaches against a server that does nothing, if measured.
        server: What the server said of itself, summed up; ``server_samples`` at 1 Hz.
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
    """What else there is to say, in words: who hung up or was slow, and what grew."""
    said, server = [], result.server
    if result.hung_up:
        vain = server.get("samples_in_vain")
        known = "an unknown number of" if vain is None else f"{vain:,}"
        said.append(
            f"{result.hung_up:,} clients hung up ({result.hung_up_samples:,} samples); {known} "
            "samples were computed in vain (the service's own golden checks among them)"
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
            f"{files:+,.0f} an hour"
        )
    return said


def percentiles_ms(encoded: str, shares: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """Percentiles of an encoded histogram, milliseconds, by name: p50, p99.9, ..."""
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
    """How many values of an encoded histogram are at most so many milliseconds."""
    return sum(
        int(item.count_added_in_this_iter_step)
        for item in decoded(encoded).get_recorded_iterator()
        if item.value_iterated_to <= bound_ms * MICROSECONDS
    )
