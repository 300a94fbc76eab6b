"""One measured run: locust in a process of its own against a service that is up, then a verdict."""

import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from loadtest.record import Result
from loadtest.scenarios import Scenario

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
SPAWN_PER_S = 1_000
REQUEST_TIMEOUT_S = 10.0
# Longer than a request's: one that hangs at the end becomes an error before its user is ended.
STOP_MARGIN_S = 2
# Locust's own start and end, on a busy machine.
GRACE_S = 60.0
# Past this share of one core the generator rather measures itself.
BUSY_GENERATOR = 0.8


class LoadTestError(RuntimeError):
    """The run could not be made: no service there, or locust failed."""


class Thresholds(BaseModel):
    """What a run must keep to; wrong answers are never allowed."""

    model_config = ConfigDict(frozen=True)

    max_p99_ms: float | None = None
    min_requests_per_s: float | None = None
    max_error_share: float = 0.0

    def missed(self, result: Result) -> list[str]:
        """What the result missed, in words."""
        missed = []
        if result.wrong_answers:
            missed.append(
                f"{result.wrong_answers} wrong answers: {result.wrong_answer_examples[0]}"
            )
        if result.requests == 0:
            missed.append("not one request was answered rightly")
        errors = sum(result.errors.values())
        if errors > self.max_error_share * (result.requests + errors):
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
    bundle: Path,
    *,
    duration_s: float,
    warmup_s: float,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
) -> Result:
    """Load a running service and return the figures.

    Args:
        scenario: Who sends what.
        url: The service, e.g. http://localhost:3000.
        bundle: The bundle whose model is asked and whose golden samples judge the answers.
        duration_s: Seconds that count.
        warmup_s: Seconds before these.
        request_timeout_s: Seconds until an answer that does not come is counted as an error.

    Raises:
        LoadTestError: No service is ready there, or locust failed.
    """
    if duration_s <= 0 or warmup_s < 0:
        raise LoadTestError(
            f"a run of {duration_s:g} s after {warmup_s:g} s of warm-up cannot be made; "
            "give a positive duration"
        )
    url = url.rstrip("/")
    require_ready(url)
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        result_file, log_file = Path(folder) / "result.json", Path(folder) / "locust.log"
        command = [
            *(sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE)),
            *("--host", url, "--headless", "--only-summary", "--skip-log-setup"),
            *("--users", str(scenario.users), "--spawn-rate", str(SPAWN_PER_S)),
            *("--run-time", f"{math.ceil(duration_s + warmup_s)}s"),
            *("--stop-timeout", str(math.ceil(request_timeout_s) + STOP_MARGIN_S)),
            *("--request-timeout", str(request_timeout_s)),
            *("--bundle", str(bundle.resolve()), "--scenario", scenario.name),
            *("--images-per-request", str(scenario.images_per_request)),
            *("--warmup", str(warmup_s), "--result", str(result_file)),
        ]
        # Locust reads configuration files of the folder it runs in: run it where there are none.
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ)
            )
            try:
                bar = f"{scenario.name} {bundle.name}"
                _watch(process, bar, duration_s + warmup_s, request_timeout_s + GRACE_S)
            finally:
                process.kill()
                process.wait()
        if not result_file.is_file():
            tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-15:])
            raise LoadTestError(f"locust ended with {process.returncode}:\n{tail}")
        return Result.model_validate_json(result_file.read_bytes())


def require_ready(url: str) -> None:
    """Raise unless the service says that it is ready.

    Raises:
        LoadTestError: Nobody there, or not ready.
    """
    if not url.startswith(("http://", "https://")):
        raise LoadTestError(f"{url!r} is no URL; expected one such as http://localhost:3000")
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10):  # noqa: S310 - checked above
            pass
    except (urllib.error.URLError, OSError) as error:
        raise LoadTestError(
            f"no service is ready at {url} ({error}); start one with: make serve"
        ) from error


def summary(result: Result) -> str:
    """A few lines for a terminal."""
    latency = "  ".join(f"{name} {value:.2f}" for name, value in result.latency_ms.items())
    errors = ", ".join(f"{kind} x {count}" for kind, count in result.errors.items()) or "none"
    busy = result.generator_cpu_share
    warning = "  (it may have been the bottleneck)" if busy > BUSY_GENERATOR else ""
    return (
        f"{result.scenario} on {result.model}: {result.users} users, "
        f"{result.images_per_request} images a request, {result.duration_s:.1f} s\n"
        f"  {result.requests_per_s:,.1f} requests/s  {result.images_per_s:,.1f} images/s\n"
        f"  latency, ms: {latency}\n"
        f"  wrong answers: {result.wrong_answers}  errors: {errors}  "
        f"generator: {100 * busy:.0f}% of a core{warning}"
    )


def _watch(
    process: subprocess.Popen[bytes], description: str, seconds: float, grace_s: float
) -> None:
    """Show a bar until the process ends; give it up when it is far beyond its time."""
    start = time.perf_counter()
    bar = tqdm(total=round(seconds), desc=description, unit="s", leave=False, disable=None)
    with bar:
        while process.poll() is None:
            time.sleep(0.1)
            elapsed = time.perf_counter() - start
            bar.update(min(round(elapsed), round(seconds)) - bar.n)
            if elapsed > seconds + grace_s:
                raise LoadTestError(
                    f"locust had not ended {elapsed - seconds:.0f} s after its time"
                )
