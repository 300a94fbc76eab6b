"""Measures throughput and latency with wrk against a server, or with ONNX Runtime alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loadtest.errors import LoadTestError
from loadtest.generator.expectations import Expectations
from loadtest.generator.payloads import Request
from loadtest.server import REPOSITORY

WRK = "wrk"
TIMEOUT_S = 20  # an answer that takes longer counts as lost
ALONE = "loadtest.peers.servers.onnxruntime_alone"
_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")
_ERRORS = re.compile(r"^\s*(Non-2xx .*|Socket errors: .*)$", re.MULTILINE)
_LATENCY = re.compile(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s)\s*$", re.MULTILINE)
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
# Writes each distinct body once, with the headers of its first answer. wrk runs with one thread.
_KEEP_ANSWERS = """
local seen, file = {{}}, nil
function response(status, headers, body)
  if seen[body] then return end
  seen[body] = true
  file = file or io.open("{file}", "wb")
  for name, value in pairs(headers) do file:write(name, ": ", value, "\\n") end
  file:write("\\n", #body, "\\n", body)
  file:flush()
end
"""


class WrkError(LoadTestError):
    """Nothing can be measured; the message says what is missing or what went wrong."""


@dataclass(frozen=True)
class Measured:
    """The figures of one measurement."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float


def require_wrk() -> None:
    """Raise unless wrk is installed.

    Raises:
        WrkError: wrk is missing; the message says how to install it.
    """
    if shutil.which(WRK) is None:
        raise WrkError(f"{WRK} is not installed (Debian and Ubuntu: apt install wrk)")


def by_wrk(
    folder: Path,
    url: str,
    request: Request,
    count: int,
    seconds: int,
    judge: Expectations | None = None,
) -> Measured:
    """Send one request repeatedly with wrk and measure the answers.

    Args:
        folder: Folder for the files that wrk reads and writes.
        url: The server's URL.
        request: The request to send.
        count: Number of open connections.
        seconds: Duration of the measurement.
        judge: Verifies every answer; None: no answer is verified.

    Raises:
        WrkError: wrk failed, an answer was wrong or not 200, or a request was lost or timed out.
    """
    body, answers, script = (folder / name for name in ("body", "answers", "request.lua"))
    body.write_bytes(request.content)
    answers.unlink(missing_ok=True)
    lines = ['wrk.method = "POST"', f'wrk.body = io.open("{body}", "rb"):read("*a")']
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in request.headers.items()]
    lines += [_KEEP_ANSWERS.format(file=answers)] if judge else []
    script.write_text("\n".join(lines) + "\n")
    command = [WRK, "-t1", f"-c{count}", f"-d{seconds}s", "--latency", f"--timeout={TIMEOUT_S}s"]
    command += ["-s", str(script)]
    ran = subprocess.run([*command, url + request.path], capture_output=True, text=True)
    if errors := _ERRORS.findall(ran.stdout):
        raise WrkError(f"{request.form}: {'; '.join(errors)}")
    rate = _RATE.search(ran.stdout)
    latency = {name: float(n) * _MS[unit] for name, n, unit in _LATENCY.findall(ran.stdout)}
    if rate is None or not float(rate[1]) or set(latency) != {"50", "99"}:
        raise WrkError(f"{request.form}: {ran.stdout} {ran.stderr}")
    for headers, content in _kept(answers) if judge else ():
        if judge and (complaint := judge.complaint(request, content, headers)) is not None:
            raise WrkError(f"wrong answers, for example: {complaint}")
    return Measured(float(rate[1]), latency["50"], latency["99"])


def _kept(answers: Path) -> Iterator[tuple[dict[str, str], bytes]]:
    """The distinct answers that wrk wrote: headers with lower-case names, and bodies."""
    if not answers.exists():
        return
    with answers.open("rb") as file:
        while line := file.readline():
            headers = {}
            while line.strip():
                name, _, value = line.decode("latin-1").partition(": ")
                headers[name.lower()] = value.rstrip("\n")
                line = file.readline()
            yield headers, file.read(int(file.readline()))


def alone(bundle: Path, samples: int, seconds: int) -> Measured:
    """Run batches of so many samples with ONNX Runtime, on one thread of a separate process.

    Raises:
        WrkError: The process failed, or an output was wrong.
    """
    command = [sys.executable, "-m", ALONE, "--samples", str(samples), "--seconds", str(seconds)]
    variables = {**os.environ, "BUNDLE": str(bundle.resolve())}
    ran = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True)
    if ran.returncode != 0:
        raise WrkError(f"ONNX Runtime alone: {ran.stdout} {ran.stderr}")
    return Measured(**json.loads(ran.stdout))
