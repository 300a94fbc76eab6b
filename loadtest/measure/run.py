"""Measures one load point: runs locust in a separate process against a running service."""

import base64
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from loadtest.errors import LoadTestError
from loadtest.generator.expectations import Expectations
from loadtest.generator.payloads import Model
from loadtest.generator.recorder import Tally
from loadtest.machine import machine
from loadtest.measure.result import Provenance, Result, beside_the_load, figures
from loadtest.measure.validity import judge
from loadtest.scenarios import REQUEST_TIMEOUT_S, Profile, Scenario
from loadtest.server import REPOSITORY, ask_ready, free_port
from loadtest.telemetry.watch import ServerWatch
from loadtest.telemetry.watch import summary as server_summary

LOCUSTFILE = REPOSITORY / "loadtest" / "locustfile.py"
SPAWN_PER_S = 1_000
# Added to the request timeout, so that a hanging request becomes an error before its user stops.
STOP_MARGIN_S = 2
# For locust's own start and shutdown on a busy machine.
GRACE_S = 60.0
VERSIONS = ("locust", "geventhttpclient", "numpy")


class Thresholds(BaseModel):
    """Thresholds that a run must meet; wrong answers are never allowed."""

    model_config = ConfigDict(frozen=True)

    max_p99_ms: float | None = None
    min_requests_per_s: float | None = None
    max_error_share: float = 0.0

    def missed(self, result: Result) -> list[str]:
        """The thresholds that the result missed, as text."""
        missed = []
        if result.wrong_answers:
            missed.append(
                f"{result.wrong_answers} wrong answers: {result.wrong_answer_examples[0]}"
            )
        if result.requests == 0:
            missed.append("no request was answered correctly")
        errors = sum(result.errors.values())
        refused = result.errors.get("HTTP 429", 0) if result.overload else 0
        if errors - refused > self.max_error_share * (result.requests + errors):
            kinds = ", ".join(f"{kind} x {count}" for kind, count in result.errors.items())
            missed.append(
                f"{errors} requests failed ({kinds}); allowed share {self.max_error_share:g}"
            )
        p99 = result.latency_ms["p99"]
        if self.max_p99_ms is not None and p99 > self.max_p99_ms:
            missed.append(f"p99 {p99:.2f} ms > {self.max_p99_ms:g} ms")
        rate = result.requests_per_s
        if self.min_requests_per_s is not None and rate < self.min_requests_per_s:
            missed.append(f"{rate:.1f} requests/s < {self.min_requests_per_s:g}")
        return missed


def run_scenario(
    scenario: Scenario,
    url: str,
    bundles: Sequence[Path],
    profile: Profile,
    *,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
    processes: int = 1,
    ceiling_per_s: float | None = None,
    price_per_hour: float = 0.0,
) -> Result:
    """Load a running service and return the figures.

    Args:
        scenario: The load that is sent.
        url: The service's URL, e.g. http://localhost:3000.
        bundles: Bundles whose models are loaded and whose golden samples verify the answers.
        profile: Durations of the warm-up and of the measured window.
        request_timeout_s: Seconds after which a missing answer is counted as an error.
        processes: Number of generator processes; their histograms are merged.
        ceiling_per_s: The generator's rate against a no-op server; only copied into the result.
        price_per_hour: Price of the serving machine; 0 if it is not stated.

    Raises:
        LoadTestError: No service is ready at the URL, or locust failed.
    """
    url, began, commit = url.rstrip("/"), datetime.now(UTC), _commit()
    models = [Model(bundle) for bundle in bundles]
    require_ready(url)
    with ServerWatch(url) as watch:
        tally = generate(
            *(scenario, url, bundles, profile),
            request_timeout_s=request_timeout_s,
            processes=processes,
        )
    device, variant = tally.named or ("unknown", "unknown")
    return Result(
        **figures(tally, scenario, profile, price_per_hour),
        model="+".join(model.name for model in models),
        version="+".join(model.version for model in models),
        device=device,
        variant=variant,
        ceiling_per_s=ceiling_per_s,
        server=server_summary(watch.samples),
        server_samples=[sample.model_dump() for sample in watch.samples],
        provenance=Provenance(
            url=url,
            machine=machine(),
            versions={name: metadata.version(name) for name in VERSIONS},
            commit=commit,
            began=began.isoformat(timespec="seconds"),
        ),
        verdict=judge(tally, scenario, profile),
    )


def generate(
    scenario: Scenario,
    url: str,
    bundles: Sequence[Path],
    profile: Profile,
    *,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
    processes: int = 1,
    ceiling: bool = False,
    peer: tuple[str, str] | None = None,
) -> Tally:
    """Run locust and return its counts; the other arguments are those of ``run_scenario``.

    With ``ceiling``, every answer with status 200 is right, because the server does nothing.
    ``peer`` is the form and the path of requests to a server other than this service.

    Raises:
        LoadTestError: Locust failed, or a bundle is missing.
    """
    seconds = profile.warmup_s + profile.duration_s
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        result_file, log_file = Path(folder) / "tally.json", Path(folder) / "locust.log"
        command = _command(scenario, url, profile, request_timeout_s, processes)
        command += ["--bundle", *(str(bundle.resolve()) for bundle in bundles)]
        command += ["--result", str(result_file)]
        command += ["--ceiling"] if ceiling else []
        command += ["--form", peer[0], *(["--path", peer[1]] if peer[1] else [])] if peer else []
        # Locust reads configuration files from its working directory: run it in an empty folder.
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(os.environ),
                start_new_session=True,  # so that killpg also ends its workers
            )
            try:
                bar = f"{scenario.name} {bundles[0].name}"
                _watch(process, bar, seconds, request_timeout_s + GRACE_S)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if not result_file.is_file():
            tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-15:])
            raise LoadTestError(f"locust exited with status {process.returncode}:\n{tail}")
        return Tally.model_validate_json(result_file.read_bytes())


def _command(
    scenario: Scenario, url: str, profile: Profile, request_timeout_s: float, processes: int
) -> list[str]:
    """Locust's command line, without the options that name files."""
    changes = scenario.model_dump(exclude={"name", "description"})
    # The window ends by itself; an open loop then waits for outstanding answers.
    margin_s = STOP_MARGIN_S + (request_timeout_s if scenario.loop == "open" else 0.0)
    seconds = profile.warmup_s + profile.duration_s
    several = ["--processes", str(processes), "--expect-workers", str(processes)]
    # A separate port, so that two simultaneous load tests do not share their workers.
    port = str(free_port())
    several += ["--master-bind-port", port, "--master-port", port, "--master-host", "127.0.0.1"]
    return [
        *(sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE)),
        *("--host", url, "--headless", "--only-summary"),
        *("--skip-log-setup", "--spawn-rate", str(SPAWN_PER_S)),
        *("--users", str(scenario.users or processes)),
        *("--run-time", f"{math.ceil(seconds + margin_s)}s"),
        *("--stop-timeout", str(math.ceil(request_timeout_s) + STOP_MARGIN_S)),
        *("--request-timeout", str(request_timeout_s)),
        *("--scenario", scenario.name, "--changes", json.dumps(changes)),
        *("--warmup", str(profile.warmup_s), "--window", str(profile.duration_s)),
        *(several if processes > 1 else []),
    ]


def require_ready(url: str) -> None:
    """Raise unless the service reports that it is ready.

    Raises:
        LoadTestError: The URL is invalid, nothing listens there, or the service is not ready.
    """
    if not url.startswith(("http://", "https://")):
        raise LoadTestError(f"{url!r} is not a URL; expected, for example, http://localhost:3000")
    try:
        ask_ready(url, timeout_s=10)
    except OSError as error:
        raise LoadTestError(
            f"no service is ready at {url} ({error}); start one with: make serve"
        ) from error


def summary(result: Result) -> str:
    """The result in a few lines for a terminal."""
    latency = "  ".join(f"{name} {value:.2f}" for name, value in result.latency_ms.items())
    errors = ", ".join(f"{kind} x {count}" for kind, count in result.errors.items()) or "none"
    who = (
        f"{result.users} users"
        if result.loop == "closed"
        else f"{result.offered_per_s:,.0f} requests/s offered"
    )
    ceiling = f" (ceiling {result.ceiling_per_s:,.0f})" if result.ceiling_per_s else ""
    goodput = (
        f"  goodput {result.goodput_per_s:,.1f}/s under {result.slo_ms:g} ms"
        if result.goodput_per_s is not None
        else ""
    )
    return (
        f"{result.scenario} on {result.model} ({result.variant}, {result.device}): {who}, "
        f"{result.endpoint}, {result.samples_per_request} samples per request, "
        f"{result.duration_s:.1f} s\n"
        f"  {result.requests_per_s:,.1f} requests/s{ceiling}  "
        f"{result.samples_per_s:,.1f} samples/s{goodput}\n"
        f"  latency, ms: {latency}\n"
        f"  wrong answers: {result.wrong_answers}  errors: {errors}  "
        f"generator: {100 * result.generator_cpu_share:.0f}% of a core{_shared(result)}, "
        f"send delay p99 {result.lag_ms['p99']:.2f} ms\n"
        + "".join(f"  {words}\n" for words in beside_the_load(result))
        + f"  {result.verdict}"
    )


def _shared(result: Result) -> str:
    """Text on how many cores the generator and a service on this machine share; else empty."""
    if result.server.get("cpu_cores") is None:
        return ""
    return f" of the {os.cpu_count()} shared with the service"


def save_wrong_answers(
    results: Sequence[Result], scenario: Scenario, bundles: Sequence[Path], path: Path
) -> None:
    """Write examples of wrong answers as JSON, each with its whole request for reproduction."""
    expectations = Expectations(bundles, scenario.samples_per_request, scenario.endpoint)
    expectations.prepare_trace(scenario)
    prepared = expectations.requests
    wrong = []
    examples = [
        example
        for result in results
        for example in zip(result.wrong_answer_examples, result.wrong_answer_positions, strict=True)
    ]
    for words, position in examples:
        sent = prepared[position]
        content = base64.b64encode(sent.content).decode()
        wrong.append(
            {"complaint": words, "path": sent.path, "headers": sent.headers, "body_base64": content}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(wrong, indent=2) + "\n")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    except OSError:  # git is not installed
        return "unknown"
    return ran.stdout.strip() or "unknown"


def _watch(
    process: subprocess.Popen[bytes], description: str, seconds: float, grace_s: float
) -> None:
    """Show a progress bar until the process ends; raise once it exceeds its time by ``grace_s``."""
    start = time.perf_counter()
    bar = tqdm(total=round(seconds), desc=description, unit="s", leave=False, disable=None)
    with bar:
        while process.poll() is None:
            time.sleep(0.1)
            elapsed = time.perf_counter() - start
            bar.update(min(round(elapsed), round(seconds)) - bar.n)
            if elapsed > seconds + grace_s:
                raise LoadTestError(
                    f"locust was still running {elapsed - seconds:.0f} s after its scheduled end"
                )
