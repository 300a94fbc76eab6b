"""Hand-made load points with known figures."""

from collections.abc import Sequence
from typing import Any

from loadtest.generator.recorder import Tally, new_histogram
from loadtest.measure.result import Provenance, Result, Verdict, figures
from loadtest.measure.sweep import Sweep
from loadtest.scenarios import load_profile, load_scenario
from loadtest.telemetry.watch import ServerSample, summary

SECONDS = 4
BEGAN = "2026-01-02T03:04:05+00:00"


def encoded(latencies_ms: Sequence[float]) -> str:
    """Encode a histogram of these latencies as text."""
    histogram = new_histogram()
    for latency_ms in latencies_ms:
        histogram.record_value(round(1000 * latency_ms))
    return bytes(histogram.encode()).decode()


def sample(at_s: float, **known: Any) -> ServerSample:
    """A server's sample of one second under load, with the given fields changed."""
    said: dict[str, Any] = {
        "samples_per_s": 100.0,
        "requests_per_s": 100.0,
        "refused_per_s": {},
        "batches_per_s": 50.0,
        "samples_per_batch": 2.0,
        "batch_sizes": {"1": 30, "2": 10, "4": 10, "8": 0, "+Inf": 0},
        "queue_ms": 0.25,
        "compute_ms": 0.5,
        "queued_samples": 0,
        "cpu_cores": 0.75,
        "rss_bytes": 256 * 2**20,
    }
    return ServerSample(at_s=at_s, seconds=1.0, **{**said, **known})


def point(
    *,
    rate: float = 100,
    latencies_ms: Sequence[float] = (2, 4, 6, 8),
    invalid: Sequence[str] = (),
    samples: Sequence[ServerSample] | None = None,
    price: float = 0.0,
    scenario: str = "Server",
    tally: dict[str, Any] | None = None,
    **changes: Any,
) -> Result:
    """A load point of four seconds, each with these latencies in equal shares.

    Args:
        rate: Offered requests per second.
        latencies_ms: Latencies of the answers in each second.
        invalid: Reasons why the point is INVALID; empty: it is valid.
        samples: The server's samples; None: four default ones.
        price: Price of the machine per hour.
        scenario: Name of a scenario of the file.
        tally: Changed fields of the tally.
        changes: Changed fields of the result.
    """
    counted = _tally(latencies_ms, tally or {})
    asked = load_scenario(scenario, rate_per_s=rate)
    seen = [sample(1.0 + i) for i in range(SECONDS)] if samples is None else list(samples)
    fields: dict[str, Any] = {
        **figures(counted, asked, load_profile("smoke", warmup_s=0), price),
        "model": "cnn",
        "version": "0123456789ab",
        "device": "cpu",
        "variant": "onnx",
        "ceiling_per_s": 1000.0,
        "server": summary(seen),
        "server_samples": [each.model_dump() for each in seen],
        "provenance": Provenance(
            url="http://127.0.0.1:3000",
            machine="a machine of 2 cores",
            versions={"locust": "2.47.0"},
            commit="abc1234",
            began=BEGAN,
        ),
        "verdict": Verdict(valid=not invalid, reasons=list(invalid)),
        **changes,
    }
    return Result(**fields)


def _tally(latencies_ms: Sequence[float], changes: dict[str, Any]) -> Tally:
    """The counts of such a point, with some fields changed."""
    return Tally(
        **{
            "window_s": SECONDS,
            "sent": SECONDS * len(latencies_ms),
            "in_window": SECONDS * len(latencies_ms),
            "samples": SECONDS * len(latencies_ms),
            "latency_us": encoded([*latencies_ms] * SECONDS),
            "lag_us": encoded([0.125]),
            "windows_us": [encoded(latencies_ms)] * SECONDS,
            "refused_each_window": [0] * SECONDS,
            "errors": {},
            "wrong_answers": 0,
            "wrong_examples": [],
            "no_room": 0,
            "stragglers": 0,
            "cpu_share": 0.25,
            "named": ("cpu", "onnx"),
            **changes,
        }
    )


def sweep_of(points: Sequence[Result], capacity: int | None) -> Sweep:
    """A search for the capacity that measured these points."""
    return Sweep(
        slo_ms=20,
        ceiling_per_s=1000,
        closed_loop_per_s=500,
        points=list(points),
        capacity=capacity,
    )
