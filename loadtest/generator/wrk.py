"""One turn of one form: wrk against a server, or ONNX Runtime without any."""

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
TIMEOUT_S = 20  # an answer that takes longer is lost
ALONE = "loadtest.peers.servers.onnxruntime_alone"
_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")
_ERRORS = re.compile(r"^\s*(Non-2xx .*|Socket errors: .*)$", re.MULTILINE)
_LATENCY = re.compile(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s)\s*$", re.MULTILINE)
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
# Writes each body once, with the headers of the first answer that had it. wrk has one thread here.
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


def by_wrk(
    folder: Path,
    url: str,
    request: Request,
    count: int,
    seconds: int,
    judge: Expectations | None = None,
) -> Measured:
    """Ask again and again.

    Args:
        folder: For files that wrk reads and writes.
        url: The server's.
        request: What is asked.
        count: Open connections.
        seconds: For how long.
        judge: Verifies every answer; None: none is verified.

    Raises:
        WrkError: It failed, an answer was wrong or not 200, or a request was lost or timed out.
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
            raise WrkError(f"wrong answers, such as: {complaint}")
    return Measured(float(rate[1]), latency["50"], latency["99"])


def _kept(answers: Path) -> Iterator[tuple[dict[str, str], bytes]]:
    """The different answers that wrk wrote: headers, their names in small letters, and bodies."""
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
