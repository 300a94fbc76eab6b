"""One turn of one form: wrk against a server, or ONNX Runtime without any."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from loadtest.errors import LoadTestError
from loadtest.generator.payloads import Request
from loadtest.server import REPOSITORY

WRK = "wrk"
ALONE = "loadtest.peers.servers.onnxruntime_alone"
_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")
_LATENCY = re.compile(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s)\s*$", re.MULTILINE)
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class WrkError(LoadTestError):
    """Nothing can be measured; says what is missing or went wrong."""


@dataclass(frozen=True)
class Measured:
    """What one turn gave."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float


def require_wrk() -> None:
    """Raise unless wrk is there.

    Raises:
        WrkError: Says how to install it.
    """
    if shutil.which(WRK) is None:
        raise WrkError(f"{WRK} is not installed (Debian and Ubuntu: apt install wrk)")


def by_wrk(folder: Path, url: str, request: Request, count: int, seconds: int) -> Measured:
    """Ask again and again.

    Args:
        folder: For files that wrk reads.
        url: The server's.
        request: What is asked.
        count: Open connections.
        seconds: For how long.

    Raises:
        WrkError: It failed, an answer was not 200, or a request was lost or timed out.
    """
    body = folder / "body"
    body.write_bytes(request.content)
    script = folder / "request.lua"
    lines = ['wrk.method = "POST"', f'wrk.body = io.open("{body}", "rb"):read("*a")']
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in request.headers.items()]
    script.write_text("\n".join(lines) + "\n")
    command = [WRK, "-t1", f"-c{count}", f"-d{seconds}s", "--latency", "-s", str(script)]
    ran = subprocess.run([*command, url + request.path], capture_output=True, text=True)
    rate = _RATE.search(ran.stdout)
    latency = {name: float(n) * _MS[unit] for name, n, unit in _LATENCY.findall(ran.stdout)}
    has_errors = "Non-2xx" in ran.stdout or "Socket errors" in ran.stdout
    if rate is None or has_errors or set(latency) != {"50", "99"}:
        raise WrkError(f"{request.form}: {ran.stdout} {ran.stderr}")
    return Measured(float(rate[1]), latency["50"], latency["99"])


def alone(bundle: Path, samples: int, seconds: int) -> Measured:
    """ONNX Runtime in a process of its own, one thread, asked for so many samples again and again.

    Raises:
        WrkError: It failed, or answered wrongly.
    """
    command = [sys.executable, "-m", ALONE, "--samples", str(samples), "--seconds", str(seconds)]
    variables = {**os.environ, "BUNDLE": str(bundle.resolve())}
    ran = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True)
    if ran.returncode != 0:
        raise WrkError(f"ONNX Runtime alone: {ran.stdout} {ran.stderr}")
    return Measured(**json.loads(ran.stdout))
