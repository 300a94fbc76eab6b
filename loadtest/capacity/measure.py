"""Measures the points of one replica, which runs on one core; the client runs on another one.

Compute times come from the answers' headers, so that they exclude the client's time. CPU times are
the system's accounting of the processes, which excludes time in which other work had the core.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from loadtest.capacity.client import Timing, send_at, send_in_turn
from loadtest.capacity.points import MS, AtSlo, Origin, Points, PointsError, fit, quantiles
from loadtest.capacity.proxy import running_proxy
from loadtest.capacity.simulation import poisson_arrivals
from loadtest.generator.expectations import Expectations
from loadtest.machine import cores, machine, pinned
from loadtest.measure.sweep import Sweep
from loadtest.scenarios import Endpoint
from loadtest.server import only_bundle, running_service
from loadtest.telemetry.usage import MIB, Processes

# One replica on one core. Golden checks would add batches to the measured ones, so they are rare.
SETTINGS = {
    "INFERENCE_WORKERS": "1",
    "INFERENCE_THREADS": "1",
    "INFERENCE_GOLDEN_CHECK_S": "3600",
}
MAX_BATCH_SAMPLES, MAX_QUEUE_SAMPLES = 64, 512  # the service's defaults
SIZES = (1, 2, 4, 8, 16, 32, 64)
WARM = 20  # warm-up requests of each size
ROUNDS = 5
IDLE_S = 2.0  # for measuring the CPU time of idle servers
LEAST_MS = 1e-3  # below the resolution of the system's counters, hundredths of a second
VERSIONS = ("bentoml", "onnxruntime", "onnxruntime-gpu", "uvloop", "numpy")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The requests that measure a replica.

    Attributes:
        bundle: The folder of the bundle that is served.
        endpoint: The form of the requests.
        samples_per_request: Number of samples in each request.
        count: Number of requests for each batch size, and for ``Points.path_ms``.
        rate_per_s: Rate of the requests for ``Points.path_ms``; so low that hardly any waits.
        seed: Seed of their arrivals.
        with_proxy: Put HAProxy in front; without it ``Points.proxy_ms`` is unknown.
    """

    bundle: Path
    endpoint: Endpoint
    samples_per_request: int
    count: int
    rate_per_s: float
    seed: int
    with_proxy: bool


@dataclass(frozen=True)
class _Measured:
    """Raw measurements; ``replica_ms`` and ``proxy_ms`` are CPU times per request, without idle."""

    start_s: float
    memory_bytes: int
    compute_ms: dict[int, list[float]]
    timings: list[Timing]
    replica_ms: float
    proxy_ms: float | None


def measure(workload: Workload, sweep_file: Path | None) -> Points:
    """Start a replica, and the proxy in front of it, and measure its points.

    Args:
        workload: The requests to send.
        sweep_file: JSON file from ``loadtest sweep``; None leaves ``at_slo`` unknown.

    Raises:
        LoadTestError: A server did not start, an answer is wrong, or HAProxy is not installed.
    """
    at_slo = None if sweep_file is None else read_sweep(sweep_file)
    began = datetime.now(UTC).isoformat(timespec="seconds")
    samples = workload.samples_per_request
    expectations = Expectations(workload.bundle, samples, workload.endpoint)
    found = _run(workload, expectations)
    model = expectations.models[0]
    fixed_ms, sample_ms = fit(found.compute_ms)
    request_ms = max(0.0, found.replica_ms - (fixed_ms + samples * sample_ms))
    return Points(
        origin=Origin(
            how="python -m loadtest capacity measure",
            machine=machine(),
            versions=_versions(),
            began=began,
        ),
        model=f"{model.name} {model.version}",
        endpoint=workload.endpoint,
        cores_per_replica=1,
        samples_per_request=samples,
        request_bytes=max(len(request.wire()) for request in expectations.requests),
        answer_bytes=max(timing.answer_bytes for timing in found.timings),
        fixed_ms=fixed_ms,
        sample_ms=sample_ms,
        request_ms=request_ms,
        scatter=scatter(found.compute_ms, fixed_ms, sample_ms),
        path_ms=quantiles([_beside(timing, request_ms) for timing in found.timings]),
        max_batch_samples=MAX_BATCH_SAMPLES,
        max_queue_samples=MAX_QUEUE_SAMPLES,
        start_s=found.start_s,
        memory_mib=found.memory_bytes / MIB,
        at_slo=at_slo,
        proxy_ms=found.proxy_ms,
    )


def _run(workload: Workload, expectations: Expectations) -> _Measured:
    """Start the servers, load them and take the raw measurements."""
    service_cores, client_cores = cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = SETTINGS | {"INFERENCE_BUNDLES": str(only_bundle(folder, workload.bundle))}
        began_s = time.monotonic()
        with pinned(set(sorted(service_cores)[:1])):
            url = stack.enter_context(running_service(folder / "log", settings=settings))
        start_s = time.monotonic() - began_s
        stack.enter_context(pinned(client_cores))
        asked = url
        if workload.with_proxy:
            asked = stack.enter_context(running_proxy(folder, [url], "least-loaded"))
        compute_ms = measure_compute(url, workload.bundle, workload.endpoint, workload.count)
        seconds = workload.count / workload.rate_per_s
        due_s = poisson_arrivals(workload.rate_per_s, seconds, workload.seed).tolist()
        both = [Processes(server) for server in dict.fromkeys((url, asked))]
        idle_s = _spent(both, lambda: time.sleep(IDLE_S))
        timings: list[Timing] = []
        spent_s = _spent(both, lambda: timings.extend(send_at(asked, expectations, due_s)))
        memory = both[0].used()[1]
    each_ms = [
        max(LEAST_MS, (spent - idle * seconds / IDLE_S) * MS / len(timings))
        for spent, idle in zip(spent_s, idle_s, strict=True)
    ]
    proxy_ms = each_ms[1] if workload.with_proxy else None
    return _Measured(start_s, memory, compute_ms, timings, each_ms[0], proxy_ms)


def _spent(servers: Sequence[Processes], work: Callable[[], object]) -> list[float]:
    """CPU seconds that each server spends while ``work`` runs."""
    before = [sum(server.used()[0].values()) for server in servers]
    work()
    return [
        sum(server.used()[0].values()) - earlier
        for server, earlier in zip(servers, before, strict=True)
    ]


def measure_compute(
    url: str, bundle: Path, endpoint: Endpoint, count: int
) -> dict[int, list[float]]:
    """Compute times by batch size in samples, from requests of that size sent one at a time.

    Sizes are interleaved in rounds, so that a busy moment of the machine does not affect only one.
    """
    asked = {size: Expectations(bundle, size, endpoint) for size in SIZES}
    found: dict[int, list[float]] = {size: [] for size in SIZES}
    for expectations in asked.values():
        send_in_turn(url, expectations, WARM)
    for _ in range(ROUNDS):
        for size, expectations in asked.items():
            timings = send_in_turn(url, expectations, max(1, count // ROUNDS))
            found[size] += [t.compute_ms for t in timings if t.batch_samples == size]
    return found


def scatter(
    compute_ms: dict[int, list[float]], fixed_ms: float, sample_ms: float
) -> dict[int, list[float]]:
    """Quantiles of the ratio of measured to fitted times, by batch size in samples."""
    return {
        size: quantiles([time_ms / (fixed_ms + size * sample_ms) for time_ms in times])
        for size, times in compute_ms.items()
    }


def read_sweep(path: Path) -> AtSlo:
    """Read the capacity that a sweep found.

    Raises:
        PointsError: The file is not a sweep's, or the sweep found no valid capacity.
    """
    try:
        found = Sweep.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PointsError(
            f"{path} is not the result of an open-loop `python -m loadtest sweep`: {error}"
        ) from error
    if found.capacity is None:
        raise PointsError(
            f"{path}: the sweep found no valid point within {found.slo_ms:g} ms; repeat it with "
            "separate cores for the generator"
        )
    goodput = found.points[found.capacity].goodput_per_s
    if not goodput:
        raise PointsError(f"{path}: the capacity has no goodput; repeat the sweep with --slo-ms")
    return AtSlo(requests_per_s=goodput, slo_ms=found.slo_ms)


def _beside(timing: Timing, request_ms: float) -> float:
    return max(0.0, timing.latency_ms - timing.queue_ms - timing.compute_ms - request_ms)


def _versions() -> dict[str, str]:
    installed: dict[str, Any] = {d.name: d.version for d in metadata.distributions()}
    return {name: installed[name] for name in VERSIONS if name in installed}
