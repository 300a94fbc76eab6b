"""This service beside BentoML's tutorial form, by an independent client: interleaved rounds of wrk.

All serve the same ONNX file on the same cores, wrk takes what is left of them, and each round asks
each in turn, so that a busy machine slows all. On shared cores ratios alone mean something. The
base of the ratios is the tutorial's form as ``pip install bentoml`` leaves it.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from loadtest.client.forms import MANY, FormError, Forms, Request
from loadtest.client.wrk import Measured, WrkError, alone, by_wrk, check, require_wrk
from loadtest.errors import LoadTestError
from loadtest.server import SERVICE, running_service

TUTORIAL = "loadtest.peers.servers.bentoml_tutorial:Tutorial"
PLAIN, FAST, RUNTIME = "tutorial", "tutorial with uvloop and httptools", "ONNX Runtime"
RAW_MANY, ALONE_MANY = f"raw binary, {MANY} images", f"ONNX Runtime alone, {MANY} images"
QUEUE_IMAGES = 16_384  # 128 requests of 64 images each wait, and are not refused


class YardstickError(LoadTestError):
    """The comparison cannot be made; says what is missing or went wrong."""


@dataclass(frozen=True)
class Row:
    """One form at one number of connections: medians over the rounds.

    Attributes:
        base: What the tutorial's form of as many images gave.
    """

    connections: int
    request: Request
    measured: Measured
    base: Measured

    def cells(self) -> list[str]:
        """For a table."""
        ratio = self.measured.requests_per_s / self.base.requests_per_s
        spread = self.measured.p99_ms / self.measured.p50_ms
        return [str(self.connections), self.request.name, f"{ratio:.1f} x", f"{spread:.1f} x"]


def requests(forms: Forms, workers: Sequence[int] = (1,)) -> list[Request]:
    """What is compared; the first for each number of images is what the ratios are over.

    Args:
        forms: Makes them.
        workers: Each number of processes is a service of its own; all forms are asked of a
            service of one, the raw ones alone of others.
    """
    one = _service(1)
    asked = [forms.tutorial(PLAIN, "tutorial, JSON")]
    asked += [forms.tutorial(FAST, "tutorial, uvloop and httptools")]
    for count in workers:
        asked += [forms.raw(_service(count), _named("raw binary", count))]
    if 1 in workers:
        asked += [forms.binary(one, "binary"), forms.as_json(one, "JSON")]
        asked += [forms.png(one, "PNG upload"), forms.form(one, "PNG upload in a form")]
    asked += [forms.tutorial(PLAIN, f"tutorial, JSON, {MANY} images", MANY)]
    asked += [forms.raw(_service(n), _named(RAW_MANY, n), MANY) for n in workers]
    return [*asked, forms.raw(RUNTIME, ALONE_MANY, MANY)]


def chosen(asked: Sequence[Request], words: Sequence[str]) -> list[Request]:
    """Those whose names hold one of the words (all without any), and what they are compared with.

    Raises:
        YardstickError: No name holds any of them.
    """
    kept = [r for r in asked if not words or any(word in r.name for word in words)]
    if not kept:
        names = ", ".join(f'"{request.name}"' for request in asked)
        raise YardstickError(f"no form's name holds one of {list(words)}; there are: {names}")
    counts = {request.images for request in kept}
    bases = [next(r for r in asked if r.images == count) for count in counts]
    return [request for request in asked if request in kept or request in bases]


def compare(
    bundle: Path,
    connections: Sequence[int],
    *,
    rounds: int,
    seconds: int,
    workers: Sequence[int] = (1,),
    words: Sequence[str] = (),
) -> Iterator[Row]:
    """Rows of a table: each form at each number of connections, over the tutorial's.

    Args:
        bundle: The folder of the bundle; each server serves it alone.
        connections: Numbers of open connections.
        rounds: Each asks every form once; medians are taken.
        seconds: A form's turn.
        workers: Numbers of processes of this service (the tutorial has one).
        words: Only forms whose names hold one of them; all without any.

    Raises:
        YardstickError: wrk is not there, no form is left, or an answer was not right.
    """
    try:
        require_wrk()
        forms = Forms(bundle)
        asked = chosen(requests(forms, workers), words)
        with _running(bundle, {request.server for request in asked}) as (folder, urls):
            for request in asked:
                if request.server != RUNTIME:
                    check(urls[request.server], request, forms)
            for count in connections:
                base: dict[int, Measured] = {}
                found = _measure(bundle, folder, urls, asked, count, rounds, seconds)
                for request, measured in zip(asked, found, strict=True):
                    base.setdefault(request.images, measured)
                    yield Row(count, request, measured, base[request.images])
    except (WrkError, FormError) as error:
        raise YardstickError(str(error)) from error


def over_the_runtime(rows: Sequence[Row]) -> str:
    """This service's rate of images over ONNX Runtime's own, in words; empty if not measured."""
    own = {r.connections: r.measured for r in rows if r.request.server == RUNTIME}
    shares: dict[str, list[str]] = {}
    for row in rows:
        if row.request.name.startswith(RAW_MANY) and row.connections in own:
            share = row.measured.requests_per_s / own[row.connections].requests_per_s
            shares.setdefault(row.request.name, []).append(f"{share:.2f} at {row.connections}")
    return "; ".join(f"{name}: {', '.join(found)}" for name, found in shares.items())


@contextmanager
def _running(bundle: Path, servers: set[str]) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder for files, and the URLs of those servers by their names."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "bundles").mkdir()
        (folder / "bundles" / "model").symlink_to(bundle.resolve())
        urls = {}
        for number, server in enumerate(sorted(servers - {RUNTIME})):
            if server in {PLAIN, FAST}:
                settings = {"BUNDLE": str(bundle.resolve()), "PLAIN": str(int(server == PLAIN))}
            else:
                settings = {
                    "INFERENCE_BUNDLES": str(folder / "bundles"),
                    "INFERENCE_WORKERS": server.split(" ")[1],
                    "INFERENCE_DEVICE": "cpu",
                    "INFERENCE_VARIANT": "onnx",
                    "INFERENCE_MAX_QUEUE_SAMPLES": str(QUEUE_IMAGES),
                }
            started = running_service(
                folder / f"{number}.log",
                service=TUTORIAL if server in {PLAIN, FAST} else SERVICE,
                settings=settings,
            )
            urls[server] = stack.enter_context(started)
        yield folder, urls


def _measure(
    bundle: Path,
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
            if request.server == RUNTIME:
                measured.append(alone(bundle, request.images, seconds))
            else:
                measured.append(by_wrk(folder, urls[request.server], request, count, seconds))
    return [
        Measured(
            median(m.requests_per_s for m in measured),
            median(m.p50_ms for m in measured),
            median(m.p99_ms for m in measured),
        )
        for measured in found
    ]


def _service(workers: int) -> str:
    return f"service {workers}"


def _named(name: str, workers: int) -> str:
    return name if workers == 1 else f"{name}, {workers} workers"
