"""This service beside BentoML's tutorial form, by an independent client: interleaved rounds of wrk.

Both serve the same ONNX file on the same cores, wrk takes what is left of them, and each round asks
each in turn, so that a busy machine slows both. On shared cores ratios alone mean something.
"""

import json
import re
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from loadtest.server import SERVICE, running_service

TUTORIAL = "loadtest.peers.bentoml_tutorial:Tutorial"
WRK = "wrk"
QUEUE_IMAGES = 16_384  # 128 requests of 64 images each wait, and are not refused
_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")
_LATENCY = re.compile(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s)\s*$", re.MULTILINE)
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class YardstickError(RuntimeError):
    """The comparison cannot be made; says what is missing or went wrong."""


@dataclass(frozen=True)
class Request:
    """What is sent again and again: a form of asking for so many images."""

    server: str
    name: str
    path: str
    body: bytes
    headers: dict[str, str]
    images: int = 1


@dataclass(frozen=True)
class Measured:
    """One form at one number of connections: medians over the rounds."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float


def requests(bundle: Path) -> list[Request]:
    """The forms that are compared; the first is the tutorial's, which the ratios are over.

    Raises:
        YardstickError: No bundle there.
    """
    try:
        manifest = json.loads((bundle / "manifest.json").read_text())
        with np.load(bundle / "golden.npz", allow_pickle=False) as golden:
            images = golden["inputs/images"]
    except (OSError, ValueError, KeyError) as error:
        raise YardstickError(f"{bundle} is no bundle with golden samples: {error}") from error
    infer, many = f"/v2/models/{manifest['name']}/infer", np.resize(images, (64, 28, 28))
    one = images[:1]
    text = json.dumps(
        {
            "inputs": [
                {
                    "name": "images",
                    "shape": [1, 28, 28],
                    "datatype": "UINT8",
                    "parameters": {"binary_data_size": 784},
                }
            ],
            "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
        }
    ).encode()
    as_json = {"content-type": "application/json"}
    length = "inference-header-content-length"
    return [
        _tutorial(one, "tutorial, JSON"),
        Request("service", "raw binary", infer, one.tobytes(), {length: "0"}),
        Request("service", "binary", infer, text + one.tobytes(), {length: str(len(text))}),
        Request(
            "service",
            "JSON",
            f"/predict?model={manifest['name']}",
            json.dumps({"images": one[0].tolist()}, separators=(",", ":")).encode(),
            as_json,
        ),
        _tutorial(many, "tutorial, JSON, 64 images"),
        Request("service", "raw binary, 64 images", infer, many.tobytes(), {length: "0"}, 64),
    ]


def compare(
    bundle: Path, connections: Sequence[int], *, rounds: int, seconds: int, workers: int
) -> Iterator[list[str]]:
    """Rows of a table: each form at each number of connections, over the tutorial's.

    Args:
        bundle: The folder of the bundle; the service serves it alone.
        connections: Numbers of open connections.
        rounds: Each asks every form once; medians are taken.
        seconds: A form's turn.
        workers: Processes of this service (the tutorial has one).

    Raises:
        YardstickError: wrk is not there, or an answer was not 200.
    """
    if shutil.which(WRK) is None:
        raise YardstickError(f"{WRK} is not installed (Debian and Ubuntu: apt install wrk)")
    asked = requests(bundle)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "bundles").mkdir()
        (folder / "bundles" / "model").symlink_to(bundle.resolve())
        ours = {
            "DIGITS_BUNDLES": str(folder / "bundles"),
            "DIGITS_WORKERS": str(workers),
            "DIGITS_DEVICE": "cpu",
            "DIGITS_MAX_QUEUE_IMAGES": str(QUEUE_IMAGES),
        }
        urls = {
            "service": stack.enter_context(
                running_service(folder / "service.log", service=SERVICE, settings=ours)
            ),
            "tutorial": stack.enter_context(
                running_service(
                    folder / "tutorial.log",
                    service=TUTORIAL,
                    settings={"BUNDLE": str(bundle.resolve())},
                )
            ),
        }
        for request in asked:
            _check(urls[request.server], request)
        for count in connections:
            yield from _rows(asked, _measure(folder, urls, asked, count, rounds, seconds), count)


def _tutorial(images: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", name: str) -> Request:
    body = json.dumps({"images": images.tolist()}, separators=(",", ":")).encode()
    headers = {"content-type": "application/json"}
    return Request("tutorial", name, "/predict", body, headers, len(images))


def _measure(
    folder: Path,
    urls: dict[str, str],
    asked: Sequence[Request],
    count: int,
    rounds: int,
    seconds: int,
) -> list[Measured]:
    found: list[list[Measured]] = [[] for _ in asked]
    for _ in range(rounds):
        for request, measured in zip(asked, found, strict=True):
            measured.append(_wrk(folder, urls[request.server], request, count, seconds))
    return [
        Measured(
            median(m.requests_per_s for m in measured),
            median(m.p50_ms for m in measured),
            median(m.p99_ms for m in measured),
        )
        for measured in found
    ]


def _rows(asked: Sequence[Request], found: Sequence[Measured], count: int) -> Iterator[list[str]]:
    base: dict[int, Measured] = {}
    for request, measured in zip(asked, found, strict=True):
        # Each is compared with the tutorial's form of as many images.
        base.setdefault(request.images, measured)
        ratio = measured.requests_per_s / base[request.images].requests_per_s
        spread = measured.p99_ms / measured.p50_ms
        yield [str(count), request.name, f"{ratio:.1f} x", f"{spread:.1f} x"]


def _wrk(folder: Path, url: str, request: Request, count: int, seconds: int) -> Measured:
    body = folder / "body"
    body.write_bytes(request.body)
    script = folder / "request.lua"
    lines = ['wrk.method = "POST"', f'wrk.body = io.open("{body}", "rb"):read("*a")']
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in request.headers.items()]
    script.write_text("\n".join(lines) + "\n")
    command = [WRK, "-t1", f"-c{count}", f"-d{seconds}s", "--latency", "-s", str(script)]
    ran = subprocess.run([*command, url + request.path], capture_output=True, text=True)
    rate = _RATE.search(ran.stdout)
    latency = {name: float(n) * _MS[unit] for name, n, unit in _LATENCY.findall(ran.stdout)}
    if rate is None or "Non-2xx" in ran.stdout or set(latency) != {"50", "99"}:
        raise YardstickError(f"{request.name}: {ran.stdout} {ran.stderr}")
    return Measured(float(rate[1]), latency["50"], latency["99"])


def _check(url: str, request: Request) -> None:
    """One answer before the clock runs."""
    asked = urllib.request.Request(  # noqa: S310 - our own servers
        url + request.path, request.body, request.headers
    )
    try:
        with urllib.request.urlopen(asked, timeout=10):  # noqa: S310 - the same
            pass
    except OSError as error:
        raise YardstickError(f"{request.name} at {url}: {error}") from error
